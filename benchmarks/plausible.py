"""What limits of plausibility cost, and what they bring.

    python benchmarks/plausible.py [--rows 20]

Breast cancer (30 columns, in a box) and a small network; the training rows are known. Told are how many of the test
rows get a counterfactual, and means over those: the columns that change, the sum of the moves and scikit-learn's local
outlier factor among the training rows (1: as usual as they are).
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from robustx import zoo
from robustx.counterfactual import LOF, CounterfactualExplainer, Neighbours, Prototype, Quantiles

LIMITS = {
    "without": (),
    "`Quantiles(0.05, 0.95)`": Quantiles(0.05, 0.95),
    "`Quantiles(0.25, 0.75)`": Quantiles(0.25, 0.75),
    "`LOF(1.2)`": LOF(1.2),
    "`Neighbours()`": Neighbours(),
    "`Prototype()`": Prototype(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20, help="so many of the test rows")
    asked = parser.parse_args()

    model, test = zoo.load("breast-cancer", limit=asked.rows)
    train = zoo.data("breast-cancer", split="train")
    print("| | found | features | L1 | LOF |\n|---|---|---|---|---|")
    for name, limit in LIMITS.items():
        explainer = CounterfactualExplainer(model, bounds=(0, 1), plausible=limit).fit(train.x)
        result = explainer.generate(test.x)
        told = result.evaluate(data=train.x, metrics=["valid", "l0", "l1", "lof"])
        mean = told[told["valid"] > 0].mean(numeric_only=True)
        print(f"| {name} | {int(told['valid'].sum())} | {mean['l0']:.2f} | {mean['l1']:.2f} | {mean['lof']:.2f} |")


if __name__ == "__main__":
    main()
