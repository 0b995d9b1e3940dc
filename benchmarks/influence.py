"""Influence in robustx and in Captum: the same scores, in how much of the time and of the memory?

    python benchmarks/influence.py [--rounds 7] [--train 64] [--tests 8] [--batch 16] [--only TracInCP ...]

A convolutional network with random weights at two checkpoints, random images of 32 pixels a side. The contestants take
turns in one process, each with the same loaders. Captum takes gradients of one example after another by default, and of
a batch at once with ``sample_wise_grads_per_batch``, which knows linear maps and convolutions of pictures only. Each
row tells how far the answers are apart (as a share of the largest number), the processor's time as a share of Captum's
in the same round (median and quartiles), and the most memory that tensors took at once beside the model and the data
(counted by a mode that sees every operation).
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.influence as theirs
import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction as CaptumArnoldi
from contest import Run, apart, peak, shares, spread
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustx import attribution as ours

Ask = Callable[[Any], Any]


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10)),
    ).eval()


def load(model: nn.Module, state: dict[str, Tensor]) -> float:
    model.load_state_dict(state)
    return 0.1


def contests(asked: argparse.Namespace) -> Iterator[tuple[str, Run, Run]]:
    """What is compared: (name, robustx, Captum)."""
    torch.manual_seed(0)
    model = cnn()
    states = [{n: t + 0.05 * t.std() * torch.randn_like(t) for n, t in model.state_dict().items()} for _ in range(2)]
    draw = [(torch.rand(n, 3, 32, 32), torch.arange(n) % 10) for n in (asked.train, asked.tests)]
    data, tests = TensorDataset(*draw[0]), draw[1]
    loader = DataLoader(data, asked.batch)
    each, total = (nn.CrossEntropyLoss(reduction=r) for r in ("none", "sum"))
    one = ours.TracInCP(model, loader, states, load, None, total)
    slow = theirs.TracInCP(model, loader, states, load, None, each)
    samplewise = theirs.TracInCP(model, loader, states, load, None, total, sample_wise_grads_per_batch=True)
    asks: dict[str, Ask] = {
        "influence": lambda t: t.influence(tests),
        "on all tests together": lambda t: t.influence(tests, aggregate=True),
        "self influence": lambda t: t.self_influence(),
        "ten proponents": lambda t: t.influence(tests, k=10),
    }
    for name, ask in asks.items():
        for other, how in ((slow, "default"), (samplewise, "by samples")):
            yield f"TracInCP, {name}, {how}", lambda a=ask: a(one), lambda a=ask, o=other: a(o)
    fast = [room.TracInCPFast(model, model[11], loader, states, load, total) for room in (ours, theirs)]
    for name in ("influence", "self influence"):
        yield f"TracInCPFast, {name}", *((lambda a=asks[name], t=t: a(t)) for t in fast)
    yield from functions(model, loader, states[0], tests)


def functions(model: nn.Module, loader: Any, state: dict[str, Tensor], tests: Any) -> Iterator[tuple[str, Run, Run]]:
    """The last layer's whole Hessian (650 parameters), and ten directions of that of all.

    These begin with another direction in each library, so that answers are only about alike.
    """
    each = nn.CrossEntropyLoss(reduction="none")
    naive = [
        lambda room=room: room.NaiveInfluenceFunction(model, loader, state, load, ["11"], each, projection_dim=9)
        for room in (ours, theirs)
    ]
    krylov = [
        lambda kind=kind: kind(model, loader, state, load, None, each, arnoldi_dim=10, projection_dim=1)
        for kind in (ours.ArnoldiInfluenceFunction, CaptumArnoldi)
    ]
    for name, makes in (("NaiveInfluenceFunction", naive), ("ArnoldiInfluenceFunction", krylov)):
        yield f"{name}, made", *((lambda make=make: inverse(make().R)) for make in makes)
        made = [make() for make in makes]
        for ask in ("influence", "self_influence"):
            given = (tests,) if ask == "influence" else ()
            yield f"{name}, {ask}", *((lambda m=m, a=ask, g=given: getattr(m, a)(*g)) for m in made)


def inverse(root: Any) -> Tensor:
    """The length of the inverse Hessian's root, whichever way its columns point: of a matrix, or of a list of them."""
    columns = [root] if isinstance(root, Tensor) else [t for column in root for t in column]
    return torch.stack([t.square().sum() for t in columns]).sum().sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", type=int, default=64, help="training examples")
    parser.add_argument("--tests", type=int, default=8, help="test examples")
    parser.add_argument("--batch", type=int, default=16, help="examples in a batch of the loader")
    parser.add_argument("--only", nargs="+", default=[], help="what has one of these in its name")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Captum tells that inputs required no gradients, each time
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores")
    print(f"{asked.train} training examples in batches of {asked.batch}, {asked.tests} test examples, 2 checkpoints")
    print(f"{'':44}{'difference':>11}{'time / Captum':>24}{'peak MiB':>22}{'share':>7}")
    for name, run, other in contests(asked):
        if asked.only and not any(word in name for word in asked.only):
            continue
        far = apart(run(), other())
        times = spread(shares(run, other, asked.rounds))
        weights = peak(run), peak(other)
        memory = " against ".join(f"{w:.3g}" for w in weights)
        print(f"{name:44}{far:>11.1e}{times:>24}{memory:>22}{weights[0] / weights[1]:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
