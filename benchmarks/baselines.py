"""What named strategies find, beside the guided search.

    python benchmarks/baselines.py [--rows 40]

Breast cancer (30 columns, in a box), a small network and a forest that has no gradients; the training rows are known.
All counterfactuals are asked of the model anew. Told are the share that is valid, means over the valid ones of the
columns that change, the sum of the moves, the columns that could be taken back and the local outlier factor (1: as
usual as the training rows), and the passes that each row takes.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from sklearn.ensemble import RandomForestClassifier

from robustx import zoo
from robustx.counterfactual import STRATEGIES, CounterfactualExplainer, benchmark
from robustx.engine import BlackBox

NAMES = ("guided", "nice", "nice-proximity", "nearest-unlike", "sedc", "growing-spheres", "dice", "wachter")
METRICS = {"valid": 2, "l0": 2, "l1": 2, "n_redundant": 2, "lof": 2, "forwards": 0, "backwards": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40, help="so many of the test rows")
    asked = parser.parse_args()

    network, test = zoo.load("breast-cancer", limit=asked.rows)
    train = zoo.data("breast-cancer", split="train")
    forest = RandomForestClassifier(50, random_state=0).fit(train.x.numpy(), train.y.numpy())
    for title, model, names in (
        ("network", network, NAMES),
        ("forest", BlackBox(forest.predict_proba), [n for n in NAMES if n not in ("dice", "wachter")]),
    ):
        explainers = {
            n: CounterfactualExplainer(model, bounds=(0, 1), strategy=STRATEGIES[n]).fit(train.x) for n in names
        }
        methods = {n: e.generate for n, e in explainers.items()}
        metrics = [m for m in METRICS if m not in ("forwards", "backwards")]
        rows = benchmark(methods, model, test.x, data=train.x, metrics=metrics).rows
        table = rows.groupby("method", sort=False)[list(METRICS)].mean()
        print(f"| {title} | {' | '.join(METRICS)} |\n|{'---|' * (len(METRICS) + 1)}")
        for name, row in table.iterrows():
            print(f"| {name} | {' | '.join(f'{row[m]:.{d}f}' for m, d in METRICS.items())} |")
        print()


if __name__ == "__main__":
    main()
