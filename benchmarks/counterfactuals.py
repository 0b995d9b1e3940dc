"""How few features, how near and how soon: counterfactuals of this library beside those of DiCE, NICE and CFNOW?

    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/counterfactuals.py [--rows 20] [--slow 5] [--seconds 10] [--only NAME ...]

Breast cancer, scaled to [0, 1], and a network of 16 and 16 units that is trained here. All explain the same rows, this
library (and an attack of it) as one batch, the others one by one, since they know no batches; their answers are asked
of the network anew, by a forward pass written in numpy. Told of each: the share of rows with a valid answer, and with
one inside [0, 1]; over the valid ones the features that change (by more than 1e-5), the way in L1, the share from which
a single change can be taken back, the local outlier factor (1: as usual as the data); milliseconds of the processor for
each row; and this library's features and way as shares of theirs, on the rows where both are valid (with 95 % of 10,000
bootstrap samples of these rows). CFNOW knows no bounds and leaves [0, 1], so it is compared with this library in
[-1, 2].

A second table prunes what the others found (:func:`robustx.counterfactual.prune`), a third tells how the time grows
with the rows. DiCE by gradients takes minutes for each row, so it is asked about the first ``--slow`` rows only.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from datetime import datetime, tzinfo
from functools import partial
from importlib import metadata
from io import StringIO
from types import ModuleType
from unittest.mock import MagicMock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor, nn

from robustx.attacks import make
from robustx.counterfactual import CounterfactualExplainer, prune

Finder = Callable[[np.ndarray], np.ndarray | None]
"""A row [D] -> its counterfactual [D], or None."""

FEWER = 1e-5  # what is no change
OWN, FREE, ATTACK = "robustx, default", "robustx, in [-1, 2]", "an attack (DDN, L2)"


class Network(nn.Sequential):
    """30-16-16-2, trained on what it is given."""

    def __init__(self, x: Tensor, y: Tensor, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        adam = torch.optim.Adam(self.parameters(), 1e-2, weight_decay=1e-4)
        for _ in range(200):
            adam.zero_grad()
            nn.functional.cross_entropy(self(x), y).backward()
            adam.step()
        self.requires_grad_(False).eval()

    def outside(self, x: np.ndarray) -> np.ndarray:
        """Logits [N, 2] in float64, by numpy."""
        first, second, last = ((m.weight.double().numpy(), m.bias.double().numpy()) for m in list(self)[::2])
        x = np.maximum(np.asarray(x, np.float64) @ first[0].T + first[1], 0)
        return np.maximum(x @ second[0].T + second[1], 0) @ last[0].T + last[1]


class Classifier:
    """The network as scikit-learn has it."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.classes_ = np.arange(2)

    def predict_proba(self, x: object) -> np.ndarray:
        logits = self.net.outside(np.asarray(x, np.float64))
        share = np.exp(logits - logits.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True)

    def predict(self, x: object) -> np.ndarray:
        return self.predict_proba(x).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20, help="of the test set")
    parser.add_argument("--slow", type=int, default=5, help="rows for DiCE by gradients")
    parser.add_argument("--seconds", type=int, default=10, help="of the processor, limit of CFNOW for each row")
    parser.add_argument("--only", nargs="*", help="names of contestants, or parts of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    x, y = load_breast_cancer(return_X_y=True)
    train, test, label, _ = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    low, high = train.min(0), train.max(0)
    train, test = ((t - low) / (high - low) for t in (train, test))
    test = test[((test >= 0) & (test <= 1)).all(1)].astype(np.float32)
    net = Network(torch.tensor(train, dtype=torch.float32), torch.tensor(label))
    right = (Classifier(net).predict(train) == label).mean()
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "numpy", *PEERS) if found(p))
    print(f"{versions}; one thread; the network is right about {right:.3f} of its {len(train)} rows\n")

    rows = test[: asked.rows]
    finders = {k: v for k, v in peers(net, train, label, asked.seconds).items() if wanted(k, asked.only)}
    answers, times = {}, {}
    explainer = CounterfactualExplainer(net, bounds=(0, 1))
    explainer.generate(torch.from_numpy(rows[:2]))  # whatever is made at the first call
    begin = time.process_time()
    answers[OWN] = explainer.generate(torch.from_numpy(rows)).counterfactual.numpy()
    times[OWN] = (time.process_time() - begin) / len(rows)
    begin = time.process_time()
    answers[FREE] = explainer.set_params(bounds=(-1, 2)).generate(torch.from_numpy(rows)).counterfactual.numpy()
    times[FREE] = (time.process_time() - begin) / len(rows)
    explainer.set_params(bounds=(0, 1))
    if wanted(ATTACK, asked.only):
        ddn, y_own = make("ddn", net, bounds=(0, 1), norm="L2"), torch.from_numpy(net.outside(rows).argmax(1))
        begin = time.process_time()
        answers[ATTACK] = ddn(torch.from_numpy(rows), y_own).numpy()
        times[ATTACK] = (time.process_time() - begin) / len(rows)
    for name, finder in finders.items():
        some = rows[: asked.slow] if "gradient" in name else rows
        begin = time.process_time()
        answers[name] = np.stack([answer(finder, row) for row in some])
        times[name] = (time.process_time() - begin) / len(some)
        print(f"  {name}: {len(some)} rows, {times[name] * len(some):.0f} s", file=sys.stderr, flush=True)
    usual = LocalOutlierFactor(20, novelty=True).fit(train)
    told = {name: Measured(net, rows, found, usual) for name, found in answers.items()}
    print(HEAD + "\n" + "|---" * 11 + "|")
    for name, measured in told.items():
        alike = OWN if measured.inside.sum() == measured.valid.sum() else FREE  # who keeps to [0, 1] has less to choose
        print(measured.row(name, times[name], told[alike]))

    print("\n| pruned | rows valid | still valid | features before | after | added | share | forwards | ms per row |")
    print("|---" * 9 + "|")
    for name, found_ in answers.items():
        if told[name].valid.any():
            print(pruned(net, name, rows[: len(found_)], found_))

    print("\n| rows at once | ms per row | times one row |\n|---|---|---|")
    many, once = torch.from_numpy(np.tile(test, (1 + 1000 // len(test), 1))), 0.0
    for n in (1, 10, 100, 1000):
        took = min(timed(lambda n=n: explainer.generate(many[:n])) for _ in range(3 if n < 1000 else 1))
        once = once or took
        print(f"| {n} | {1000 * took / n:.1f} | {took / once:.1f} |", flush=True)


HEAD = (
    "| method | rows | valid | in the box | features | L1 | reducible | LOF | ms per row "
    "| features, ours / theirs | L1, ours / theirs |"
)
PEERS = ("dice-ml", "NICEx", "cfnow")


class Measured:
    """What is told of one contestant's answers."""

    def __init__(self, net: Network, rows: np.ndarray, answers: np.ndarray, usual: LocalOutlierFactor) -> None:
        self.rows = rows = rows[: len(answers)]
        self.there = ~np.isnan(answers).any(1)
        found = np.where(self.there[:, None], answers, rows)
        self.valid = self.there & (net.outside(found).argmax(1) != net.outside(rows).argmax(1))
        self.inside = self.valid & (found >= -1e-6).all(1) & (found <= 1 + 1e-6).all(1)
        changed = np.abs(found - rows) > FEWER
        self.count, self.way = changed.sum(1), np.abs(found - rows).sum(1)
        self.reducible = np.zeros(len(rows), bool)
        for i, j in np.argwhere(changed & self.valid[:, None]):
            back = np.where(np.arange(rows.shape[1]) == j, rows[i], found[i])[None]
            self.reducible[i] |= net.outside(back).argmax() != net.outside(rows[i : i + 1]).argmax()
        self.lof = -usual.score_samples(found)

    def row(self, name: str, seconds: float, own: "Measured") -> str:
        v = self.valid
        if not v.any():
            return f"| {name} | {len(v)} | 0.00 " + "| - " * 8 + "|"
        means = [f"{t[v].mean():.2f}" for t in (self.count, self.way, self.reducible, self.lof)]
        both = v & own.valid[: len(v)]
        pairs = ((own.count, self.count), (own.way, self.way))
        more = [spread(a[: len(v)][both], b[both]) for a, b in pairs]
        told = (f"{len(v)}", f"{v.mean():.2f}", f"{self.inside.mean():.2f}", *means, f"{1000 * seconds:.0f}", *more)
        return f"| {name} | {' | '.join(told)} |"


def spread(one: np.ndarray, other: np.ndarray) -> str:
    """The ratio of means, and where 95 % of it lie when rows are drawn with replacement."""
    draw = np.random.default_rng(0).integers(0, len(one), (10_000, len(one)))
    ratio = one[draw].mean(1) / np.maximum(other[draw].mean(1), 1e-12)
    low, high = np.quantile(ratio, (0.025, 0.975))
    return f"{one.mean() / other.mean():.2f} ({low:.2f} to {high:.2f})"


def pruned(net: Network, name: str, rows: np.ndarray, answers: np.ndarray) -> str:
    begin = time.process_time()
    exact = deepcopy(net).double()  # some stop so near the boundary that single precision sees them on the other side
    found = prune(exact, torch.from_numpy(rows).double(), torch.from_numpy(answers).double(), tolerance=FEWER)
    took = (time.process_time() - begin) / len(rows)
    after = found.counterfactual.numpy()
    there = ~np.isnan(answers).any(1)
    own = net.outside(rows).argmax(1)
    before = there & (net.outside(np.where(there[:, None], answers, rows)).argmax(1) != own)
    still = net.outside(after).argmax(1) != own
    was, now = (np.abs(np.where(there[:, None], t, rows) - rows) > FEWER for t in (answers, after))
    n, m = was[before].sum(1).mean(), now[before].sum(1).mean()
    told = (
        f"{before.sum()}",
        f"{still[before].sum()}",
        f"{n:.2f}",
        f"{m:.2f}",
        f"{(now & ~was).sum()}",
        f"{m / n:.2f}",
        f"{found.forwards[torch.from_numpy(before)].double().mean():.0f}",
        f"{1000 * took:.1f}",
    )
    return f"| {name} | {' | '.join(told)} |"


def answer(finder: Finder, row: np.ndarray) -> np.ndarray:
    """What a contestant finds, NaN if nothing; it may fail in any way."""
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # how they get on
            warnings.simplefilter("ignore")
            given = finder(row)
    except Exception as e:  # a library that gives up is told as one that finds nothing
        print(f"    {type(e).__name__}: {str(e)[:100]}", file=sys.stderr)
        given = None
    return np.full_like(row, np.nan) if given is None else np.asarray(given, np.float64).reshape(-1)


def timed(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def wanted(name: str, only: list[str] | None) -> bool:
    return only is None or any(part in name for part in only)


def found(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


class Clock(datetime):
    """Tells the time of the processor, so that a limit in seconds is as long on a busy machine."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Clock":
        return cls.fromtimestamp(time.process_time(), tz)


# --- the others -------------------------------------------------------------------------------------------


def peers(net: Network, train: np.ndarray, label: np.ndarray, seconds: int) -> dict[str, Finder]:
    """Those that are installed, with their own settings but for what is named here."""
    stand_in()
    made: dict[str, Finder] = {}
    names = [f"f{i}" for i in range(train.shape[1])]
    frame, model = pd.DataFrame(train, columns=names), Classifier(net)
    if found("dice-ml"):
        made |= dice(net, frame, label)
    if found("NICEx"):
        from nice import NICE

        for goal in ("sparsity", "proximity"):
            explain = NICE(model.predict_proba, train, [], y_train=label, optimization=goal, justified_cf=True).explain
            made[f"NICE, {goal}"] = lambda row, explain=explain: explain(row[None].astype(np.float64))
    if found("cfnow"):
        from cfnow import _cf_searchers, _fine_tune, cf_finder, find_tabular

        for module in (_cf_searchers, _fine_tune, cf_finder):
            module.datetime = Clock

        def search(row: np.ndarray, strategy: str) -> np.ndarray | None:
            np.random.seed(0)
            kinds = dict.fromkeys(names, "num")
            told = find_tabular(
                pd.Series(row.astype(np.float64), names),
                model.predict_proba,
                feat_types=kinds,
                cf_strategy=strategy,
                limit_seconds=seconds,
            )
            return np.asarray(told.cfs[0]) if len(told.cfs) else None

        made |= {f"CFNOW, {strategy}": partial(search, strategy=strategy) for strategy in ("greedy", "random")}
    return made


def dice(net: Network, frame: pd.DataFrame, label: np.ndarray) -> dict[str, Finder]:
    import dice_ml

    data = dice_ml.Data(dataframe=frame.assign(y=label), continuous_features=list(frame.columns), outcome_name="y")

    class Chance(nn.Module):
        """The probability of class 1 [N, 1], which is all that DiCE by gradients can explain."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(-1)[..., 1:]

    as_tree = dice_ml.Model(model=Classifier(net), backend="sklearn", model_type="classifier")
    as_torch = dice_ml.Model(model=Chance(), backend="PYT", func="ohe-min-max")

    def search(row: np.ndarray, method: str, options: dict[str, object]) -> np.ndarray | None:
        np.random.seed(0)
        query = pd.DataFrame(row[None].astype(np.float64), columns=frame.columns)
        explainer = dice_ml.Dice(data, as_torch if method == "gradient" else as_tree, method=method)
        told = explainer.generate_counterfactuals(
            query, total_CFs=1, desired_class="opposite", verbose=False, **options
        )
        table = told.cf_examples_list[0].final_cfs_df
        return None if table is None or not len(table) else table[list(frame.columns)].to_numpy(np.float64)[0]

    settings: dict[str, tuple[str, dict[str, object]]] = {
        "DiCE, random": ("random", {"random_seed": 0}),
        "DiCE, genetic": ("genetic", {}),
        "DiCE, gradient": ("gradient", {}),
        "DiCE, gradient, no sparsity": ("gradient", {"posthoc_sparsity_param": None}),
    }
    return {name: partial(search, method=m, options=o) for name, (m, o) in settings.items()}


def stand_in() -> None:
    """Puts modules that the others import, but that nothing here needs, in the place of what is not installed.

    CFNOW would also download word lists when it is imported.
    """
    for name in ("raiutils", "raiutils.exceptions", "counterplots", "cv2", "nltk", "nltk.corpus", "jsonschema"):
        if name not in sys.modules:
            module: ModuleType = MagicMock(__path__=[], __spec__=None)
            sys.modules[name] = module
    sys.modules["raiutils.exceptions"].UserConfigValidationException = type(
        "UserConfigValidationException", (Exception,), {}
    )


if __name__ == "__main__":
    main()
