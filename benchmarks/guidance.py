"""Which attribution should choose the features of a counterfactual?

    python benchmarks/guidance.py [--rows 40] [--rounds 3] [--only NAME ...] [--picture docs/pictures/guidance.png]

Breast cancer, wine and digits, scaled to [0, 1], and a network of 16 and 16 units, trained here; each round splits the
data and draws the network anew. Each ranking's leading features are freed, one more at a time, until the domain's own
search for a point (``Move.attempt``, begun from home and from the farthest point) reaches the goal; the number is set
beside the number of features that the whole default search ends with, for the rows for which that finds anything. Two
tables: mean number, mean ratio and the share of rows where they are equal; then how many features more than along
``IG to the farthest`` it takes, row by row. In brackets stand 95 % bootstrap intervals, over rows.

The farthest point is the one of largest margin that a gradient ascent finds in the box, the corner that where every
feature goes as far as the gradient points; baselines are ranked by how much features speak for the class that is to be
left, or by the size of that.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from robustx.attribution.gradient import saliency
from robustx.attribution.path import integrated_gradients
from robustx.attribution.shapley import shares_of_change
from robustx.counterfactual import Benchmark, CounterfactualExplainer
from robustx.counterfactual.best import Task
from robustx.counterfactual.domain import NODES, Move
from robustx.counterfactual.guided import guided
from robustx.perturb.references import mean, through

GUIDE, OWN = "IG to the farthest", "best of the search's own"
TOWARDS = ("gradient times range", "IG to the corner", GUIDE, "Shapley to the farthest", "what-if, alone", OWN)
"""Rankings that look at what the constraints allow."""
DATA: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], float]] = {
    "breast cancer": (datasets.load_breast_cancer, 1.0),
    "wine": (datasets.load_wine, 1.0),
    "digits": (datasets.load_digits, 1.0),
    "breast cancer, 0.15 around": (datasets.load_breast_cancer, 0.15),
}
"""Where rows come from, and how far each feature may move."""


def rankings(task: Task, domain: Move, train: Tensor) -> dict[str, list[Tensor]]:
    """By name: attributions [B, F], the more the sooner a feature is freed; of several, the best one counts."""
    f, far = domain.f, domain.farthest()[0]
    all_of_them = torch.ones_like(task.movable)
    zero, usual = (-integrated_gradients(f, reference, NODES) for reference in (through(0.0), mean(train)))
    alone = domain.attempt(*singles(all_of_them), domain.home.repeat_interleave(all_of_them.shape[1], 0)).margin
    farthest, *_, corner, ranged = own = domain.rankings()
    return {
        "at random": [task.noise.uniform(all_of_them.shape[1], far)],
        "gradient, absolute": [saliency(f).abs()],
        "IG from zero": [zero],
        "IG from zero, absolute": [zero.abs()],
        "IG from the mean": [usual],
        "IG from the mean, absolute": [usual.abs()],
        "gradient times range": [ranged],
        "IG to the corner": [corner],
        GUIDE: [farthest],
        "Shapley to the farthest": [shares_of_change(f, domain.features, domain.inputs(far), all_of_them, walks=8)],
        "what-if, alone": [alone.reshape(all_of_them.shape)],
        OWN: own,
    }


def singles(movable: Tensor) -> tuple[Tensor, Tensor]:
    """Every example with every feature alone: rows [B * F], sets [B * F, F]."""
    b, count = movable.shape
    return torch.arange(b).repeat_interleave(count), torch.eye(count, dtype=torch.bool).repeat(b, 1)


def smallest(domain: Move, tries: Tensor, rows: Tensor) -> Tensor:
    """How many leading features of rankings [T, B, F] it takes for some rows [n]: [T, n]; F + 1: all do not do."""
    count, far = tries.shape[2], domain.farthest()[0]
    rank = tries.argsort(dim=2, descending=True, stable=True).argsort(2)[:, rows].flatten(0, 1)
    rows = rows.repeat(len(tries))
    k = torch.full_like(rows, count + 1)
    for size in range(1, count + 1):
        left = (k > count).nonzero().squeeze(1)
        if not len(left):
            break
        sets = rank[left] < size
        found = domain.attempt(rows[left], sets, domain.back(far[rows[left]], rows[left], ~sets))
        k[left[found.success]] = size
    return k.reshape(len(tries), -1)


def ablate(name: str, seed: int, rows: int) -> pd.DataFrame:
    """One row for each example and ranking."""
    load, reach = DATA[name]
    x, y = (torch.as_tensor(t) for t in load(return_X_y=True))
    split = train_test_split(x.float(), y, test_size=0.4, random_state=seed, stratify=y)
    train, test, label = split[:3]
    low, width = train.amin(0), (train.amax(0) - train.amin(0)).clamp(min=1e-12)
    train, test = (train - low) / width, (test - low) / width
    test = test[((test >= 0) & (test <= 1)).all(1)][:rows]
    net = network(train, label, seed)
    told: dict[str, Tensor] = {}
    final = torch.zeros(0)

    def strategy(task: Task) -> None:
        nonlocal final
        domain = task.domain
        assert isinstance(domain, Move)
        ranks = rankings(task, domain, train)
        guided(task)
        found = task.best.found.nonzero().squeeze(1)
        final = task.best.count[found]
        k = smallest(domain, torch.stack([r for tries in ranks.values() for r in tries]), found)
        each = k.split([len(tries) for tries in ranks.values()])
        told.update({method: few.amin(0) for method, few in zip(ranks, each, strict=True)})

    bounds = (test - reach).clamp(min=0), (test + reach).clamp(max=1)
    CounterfactualExplainer(net, bounds=bounds, strategy=strategy, seed=seed).generate(test)
    return pd.concat(
        pd.DataFrame({
            "data": name, "method": method, "example": [f"{seed}/{i}" for i in range(len(k))], "counterfactual": 0,
            "features": k.double(), "ratio": (k / final).double(), "equal": (k == final).double(),
        })
        for method, k in told.items()
    )  # fmt: skip


def network(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, len(y.unique()))
    )
    adam = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(200):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    return net.requires_grad_(False).eval()


def tell(found: dict[str, pd.DataFrame]) -> None:
    """Prints both tables; ``found`` are summaries by data."""
    for head, cell in (
        ("features; as a share of the search's; equal", spread),
        (f"features more than along {GUIDE}", more),
    ):
        print(f"\n| {head} | {' | '.join(found)} |\n|" + "---|" * (1 + len(found)))
        for method in dict.fromkeys(next(iter(found.values())).index.get_level_values(0)):
            print(f"| {method} | {' | '.join(cell(t.loc[method]) for t in found.values())} |")


def spread(told: pd.DataFrame) -> str:
    k, ratio, equal = (told.loc[m] for m in ("features", "ratio", "equal"))
    return f"{k['mean']:.2f}; {ratio['mean']:.2f} ({ratio.low:.2f} to {ratio.high:.2f}); {equal['mean']:.0%}"


def more(told: pd.DataFrame) -> str:
    d = told.loc["features"]
    if pd.isna(d.difference):
        return "-"
    return f"{d.difference:+.2f} ({d.difference_low:+.2f} to {d.difference_high:+.2f})"


def draw(found: dict[str, pd.DataFrame], path: Path) -> None:
    figure = Figure(figsize=(2.2 + 2.1 * len(found), 4.0), layout="constrained")
    grid = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, told) in zip(grid, found.items(), strict=True):
        ratio = told.xs("ratio", level="metric")
        for place, (method, r) in enumerate(ratio[::-1].iterrows()):
            colour = "tab:red" if method in TOWARDS else "0.45"
            axes.plot([r.low, r.high], [place, place], color=colour, linewidth=2)
            axes.plot(r["mean"], place, "o", color=colour, markersize=4)
        axes.axvline(1, color="0.8", zorder=0)
        axes.set(title=name, yticks=range(len(ratio)), yticklabels=ratio.index[::-1], xscale="log")
        axes.set_xticks([1, 2, 4], ["1", "2", "4"])
        axes.set_xticks([1.5, 3, 6], ["", "", ""], minor=True)
        axes.title.set_size(9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.supxlabel("features that it takes, as a share of those that the whole search ends with", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written to {path}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40, help="of the test set, at most")
    parser.add_argument("--rounds", type=int, default=3, help="splits, and networks")
    parser.add_argument("--only", nargs="*", choices=DATA, default=list(DATA), metavar="NAME", help="names of data")
    parser.add_argument("--picture", type=Path, help="also draw a picture into this file")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, at most {asked.rows} rows")
    found = {}
    for name in asked.only:
        rows = pd.concat(ablate(name, seed, asked.rows) for seed in range(asked.rounds))
        found[name] = Benchmark(rows).summary(against=GUIDE).set_index(["method", "metric"])
        print(f"{name}: {len(rows) // rows['method'].nunique()} rows", flush=True)
    tell(found)
    if asked.picture:
        draw(found, asked.picture)


if __name__ == "__main__":
    main()
