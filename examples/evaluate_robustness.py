"""Measure how robust models are, and write a report: in Python what `robustx evaluate` does.

    python examples/evaluate_robustness.py
    python examples/evaluate_robustness.py --model breast-cancer --norm L2 --limit 60
    python examples/evaluate_robustness.py --model mine:net --data mine:test --eps 0.01 0.02 0.03

`mine:net` is a torch.nn.Module, or a function that returns one, in mine.py; `mine:test` a pair of tensors
(x, y), a Dataset, a DataLoader, or a function that returns one of them.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

from robustx import evaluation, report, zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["digits", "digits-robust"], help="one model, or several")
    parser.add_argument("--data", help="their data; models of the zoo bring theirs")
    parser.add_argument("--norm", default="Linf", help="Linf, L2, L1 or L0")
    parser.add_argument("--eps", type=float, nargs="+", default=[], help="budgets (default: those of the norm)")
    parser.add_argument("--steps", type=int, default=20, help="gradient steps of each attack")
    parser.add_argument("--limit", type=int, help="how many samples (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="the run folder")
    asked = parser.parse_args()

    # Any callables that return class scores will do, under names of your choice.
    data = zoo.load(asked.model[0], asked.data).data
    models = {name: zoo.model(name) for name in asked.model}

    # The specification says everything that decides the numbers. Attacks are tried in order, the cheap ones
    # first, and each sees only the samples that the earlier ones left standing.
    spec = evaluation.Spec(
        models=tuple(models),
        data=data.name,
        norm=asked.norm,
        eps=tuple(asked.eps),
        attacks=evaluation.standard_attacks(asked.steps),
        limit=asked.limit,
    )

    # A run is a folder. Interrupted or killed, the same call goes on from the last finished block of samples.
    run = evaluation.evaluate(models, data, spec, asked.out, show_progress=sys.stderr.isatty())

    # What was found is an upper bound: other attacks may find more. The intervals speak of other samples only.
    for model in run.summary()["models"]:
        print(f"{model['name']}: right about {model['clean']['count']} of {model['clean']['total']} samples")
        for robust in model["robust"]:
            low, high = robust["low"], robust["high"]
            print(
                f"  {spec.norm} {robust['eps']:<6g} {robust['value']:6.1%} still right (95%: {low:.1%} to {high:.1%})"
            )

    # The same numbers for every sample are in samples.csv, the adversarial examples in tensors/.
    print(f"report: {report.write(run.folder)}")


if __name__ == "__main__":
    main()
