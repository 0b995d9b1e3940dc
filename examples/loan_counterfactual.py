"""A loan is refused: what would have had to be different? A table from end to end, for a network and for a forest.

    python examples/loan_counterfactual.py
    python examples/loan_counterfactual.py --row 12 --keep loan --sure 0.8 --out letter

The table is made up, and the same every time: who asks for how much, for how long, and whether such a loan was paid
back. A small network learns it. For a refused applicant the letter names the fewest things that would have had to be
different, in their own units and within what can change at all: age and schooling only grow, past payments stay, a loan
is no more than a year's income; that there is no better answer is proved. A scikit-learn forest is asked the same
through the same object.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from robustx.counterfactual import CounterfactualExplainer, CounterfactualResult, FeatureSchema, Linear
from robustx.engine import BlackBox
from robustx.plot import TIGHT

SCHOOLS = ("primary", "secondary", "bachelor", "master")
JOBS = ("none", "part time", "full time", "self-employed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, default=4, help="which of the first forty refused applicants")
    parser.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="must not change")
    parser.add_argument("--sure", type=float, default=0.6, help="the probability of a yes to reach (default: 0.6)")
    parser.add_argument("--out", type=Path, default=Path("loan"), help="folder for the pictures")
    asked = parser.parse_args()

    table, paid = applicants(1200)
    schema = rules(table)
    x = schema.encode(table)  # what a model takes: numbers from 0 to 1, a block for each category
    model = network(x, paid)
    refused = (model(x).argmax(1) == 0).nonzero().flatten()[:40].tolist()
    print(f"{len(table)} applicants; the network agrees with what happened in {right(model, x, paid):.1%}")

    # One call for all of them: the fewest features, then the least change of them, each in its own units.
    explainer = CounterfactualExplainer(model, schema)
    result = explainer.generate(table.iloc[refused], target=1, min_prob=asked.sure, immutable=asked.keep)
    print(result)
    who = refused[asked.row]
    print(f"\nApplicant {who}:\n{table.iloc[who].to_string()}\n")

    # One applicant: two more ways to a yes, each with other features, and the proof that there is no better.
    explainer = CounterfactualExplainer(model, schema, strategy="exact")
    result = explainer.generate(table.iloc[[who]], target=1, min_prob=asked.sure, immutable=asked.keep, n=3)
    print(letter(result))
    assert bool(result.verify().all())
    asked.out.mkdir(parents=True, exist_ok=True)
    for kind in ("waterfall", "table", "path"):
        figure = result.plot(kind, title=f"Applicant {who}: {result.summary(0)}")
        figure.savefig(asked.out / f"loan_{kind}.png", **TIGHT)
    result.to_dataframe().to_csv(asked.out / "loan.csv", index=False)
    print(f"written to {asked.out}/")

    # A forest has no gradients. Everything else is the same.
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0).fit(x.numpy(), paid.numpy())
    explainer = CounterfactualExplainer(BlackBox(forest.predict_proba), schema)
    other = explainer.generate(table.iloc[[who]], target=1, immutable=asked.keep)
    print(f"\nAsked of a forest of 100 trees: {other.message(0)}")


def letter(result: CounterfactualResult) -> str:
    """What would have changed the decision, in words."""
    lines = ["We have to say no."]
    for one in (result, *result.alternatives):
        if one.valid[0]:
            lines.append(f"\nIt would have been a yes with ({one.summary(0)})")
            lines += [f"  {step.words:50} {step.contribution:+.2f}" for step in one.steps(0)]
            lines.append(f"  {'together, in logits':50} {float(one.margin[0] - one.before[0]):+.2f}")
        else:
            lines.append(f"\n{one.message(0).capitalize()}.")
    return "\n".join([*lines, ""])


def applicants(count: int, seed: int = 0) -> tuple[pd.DataFrame, torch.Tensor]:
    """Made-up applicants, and whether each paid the loan back."""
    draw = np.random.default_rng(seed)
    age = draw.integers(19, 70, count)
    employed = (draw.random(count) * (age - 17)).astype(int)
    school = draw.choice(4, count, p=[0.15, 0.45, 0.25, 0.15])
    job = draw.choice(4, count, p=[0.1, 0.2, 0.55, 0.15])
    factor = np.array([0.35, 0.6, 1.0, 1.1])[job]
    income = (draw.lognormal(7.6, 0.3, count) * factor * (1 + 0.15 * school) / 50).round() * 50
    savings = (draw.lognormal(7.5, 1.2, count) / 100).round() * 100
    loan = np.minimum((draw.lognormal(8.9, 0.6, count) / 500).round() * 500, (12 * income // 500) * 500).clip(500)
    months = draw.integers(2, 15, count) * 6
    late = draw.poisson(0.6, count)
    owns = draw.random(count) < 0.15 + 0.006 * (age - 19)
    burden = loan / months / income  # the share of an income that goes into the loan
    score = 1.6 - 7 * burden - 0.8 * late + 0.6 * np.log1p(savings / 1000) + 0.05 * employed.clip(max=15)
    score += 0.4 * owns + np.array([-0.8, -0.2, 0.3, 0.0])[job] + 0.6 * draw.logistic(size=count)
    table = pd.DataFrame(
        {
            "age": age,
            "years employed": employed,
            "income": income,
            "savings": savings,
            "loan": loan,
            "duration": months,
            "late payments": late,
            "schooling": np.array(SCHOOLS)[school],
            "job": np.array(JOBS)[job],
            "home": np.where(owns, "owned", "rented"),
        }
    )
    return table, torch.from_numpy(score > 0.8).long()


def rules(table: pd.DataFrame) -> FeatureSchema:
    """What the columns are, and what can be different about a person and a loan."""
    return (
        FeatureSchema.from_dataframe(
            table,
            ordinal={"schooling": SCHOOLS},
            immutable=["late payments"],
            increasing=["age", "years employed", "schooling"],
            ranges={"age": (18, 99), "income": (0, 12000), "savings": (0, 60000), "loan": (500, 60000)},
            max_changes={
                "age": 2,
                "years employed": 2,
                "income": 400,
                "savings": 2000,
                "loan": 3000,
                "duration": 24,
                "schooling": 1,
            },
            steps={"income": 50, "savings": 100, "loan": 500, "duration": 6},
            units={"age": "years", "income": "EUR a month", "savings": "EUR", "loan": "EUR", "duration": "months"},
            transitions={
                "job": {
                    "none": ["part time", "full time"],
                    "part time": ["full time"],
                    "full time": [],
                    "self-employed": ["full time"],
                }
            },
        )
        .add_constraint(Linear({"age": 1, "years employed": -1}, ">=", 16))
        .add_constraint(Linear({"loan": 1, "income": -12}, "<=", 0))
    )


def network(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A small network that has learnt who pays back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 2))
        steps = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
        for _ in range(300):
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
    return model.eval().requires_grad_(False)


def right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


if __name__ == "__main__":
    main()
