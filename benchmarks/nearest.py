"""How near to the truth do attacks come, where the truth is known?

    python benchmarks/nearest.py [--steps 100 300] [--only fmn cw ...]

Two kinds of models whose least distances are exact: an affine classifier of 48 inputs and 5 classes in the box [0, 1],
with a fifth of its inputs at the walls (closed forms and linear programmes), and two ReLU networks on digits (mixed
integer programmes, in L1 and Linf). For every attack that looks for the nearest point, in each of its norms, and for
those of foolbox and adv-lib: the share of examples that it found, the median, the 95th percentile and the largest ratio
to the truth, and the rows forward and backward for each example, counted around the model. Last, the adversarially
trained network for digits, whose least distances nobody knows: there the distances themselves are told.
"""

import argparse
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from exact import distances
from exact_relu import stored
from torch import Tensor, nn

from robustx import attacks, zoo
from robustx.perturb import NORMS

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib could draw with it, which nobody asks for
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import adv_lib.attacks as al
    import foolbox as fb

P = {"L0": 0, "L1": 1, "L2": 2, "Linf": float("inf")}
ROUNDS = 9  # of searches over a constant, here and there
Contestant = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100], help="gradient steps")
    parser.add_argument("--only", nargs="*", default=attacks.names(minimal=True), help="names of attacks")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, one thread; ratios to the exact distance")
    for told, model, x, y, truth in problems():
        print(f"\n{told}\n| norm | attack | steps | found | median | 95 % | largest | rows forward, backward |")
        print("|---|---|---|---|---|---|---|---|")
        for norm, exact in truth.items():
            for steps in asked.steps:
                for name, contestant in contestants(norm, asked.only).items():
                    print(row(contestant, name, model, x, y, norm, exact, steps), flush=True)


def problems() -> Iterator[tuple[str, nn.Module, Tensor, Tensor, dict[str, np.ndarray]]]:
    torch.manual_seed(0)
    affine = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    x = 0.2 + 0.6 * torch.rand(32, 3, 4, 4)
    x[torch.rand_like(x) < 0.1] = 0.0
    x[torch.rand_like(x) < 0.1] = 1.0
    y = affine(x).argmax(1)
    weight, bias = (t.detach() for t in (affine[1].weight, affine[1].bias))
    yield "affine", affine, x, y, {n: distances(weight, bias, x.flatten(1), y, n) for n in NORMS}
    for name in ("plain", "robust"):
        net = stored(name)
        model, x, y = (
            net.model.float().eval(),
            torch.from_numpy(net.x).float().view(-1, 1, 8, 8),
            torch.from_numpy(net.y),
        )
        yield f"ReLU, {name}", model, x, y, net.distance
    model, data = zoo.load("digits-robust", limit=128)
    right = model(data.x).argmax(1) == data.y
    unknown = np.ones(int(right.sum()))
    yield "digits-robust (distances)", model, data.x[right], data.y[right], dict.fromkeys(NORMS, unknown)


def contestants(norm: str, only: list[str]) -> dict[str, Contestant]:
    """Attacks here and there that know the norm."""

    def own(name: str, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        known = attacks.ATTACKS[name].arguments()
        options = {k: v for k, v in {"steps": steps, "rounds": ROUNDS}.items() if k in known and name != "bisection"}
        return attacks.make(name, model, bounds=(0, 1), norm=norm, precision=None, **options)(x, y)

    def foolbox(attack: Callable[..., fb.Attack], model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        return attack(steps=steps)(fb.PyTorchModel(model, (0, 1)), x, y, epsilons=None)[1]

    def adv_lib(attack: Callable[..., Tensor], model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        options: dict[str, float] = {NORM[attack]: P[norm]} if attack in NORM else {}
        return attack(model, x.clone(), y, **options, **{STEPS.get(attack, "steps"): steps})

    found: dict[str, Contestant] = {n: partial(own, n) for n in attacks.names(norm, minimal=True) if n in only}
    for name, attack in FOOLBOX.get(norm, {}).items():
        if name in only:
            found[f"{name} (foolbox)"] = partial(foolbox, attack)
    for name, attack in ADV_LIB.get(norm, {}).items():
        if name in only:
            found[f"{name} (adv-lib)"] = partial(adv_lib, attack)
    return found


NORM = dict.fromkeys((al.fmn, al.fab, al.df, al.pdpgd), "norm") | {al.tr: "p"}
STEPS = {al.fab: "n_iter", al.tr: "iter", al.pdpgd: "num_steps", al.sigma_zero: "num_steps"}
FOOLBOX = {
    "L2": {
        "deepfool": fb.attacks.L2DeepFoolAttack,
        "cw": partial(fb.attacks.L2CarliniWagnerAttack, binary_search_steps=ROUNDS),
    },
    "Linf": {"deepfool": fb.attacks.LinfDeepFoolAttack, "fmn": fb.attacks.LInfFMNAttack},
    "L1": {"ead": partial(fb.attacks.EADAttack, binary_search_steps=ROUNDS), "fmn": fb.attacks.L1FMNAttack},
}
ADV_LIB = {
    "L0": {"fmn": al.fmn, "sigma-zero": al.sigma_zero},
    "L1": {"fmn": al.fmn, "fab": al.fab, "pdpgd": al.pdpgd},
    "L2": {"fmn": al.fmn, "fab": al.fab, "deepfool": al.df, "ddn": al.ddn, "trust-region": al.tr, "pdpgd": al.pdpgd},
    "Linf": {"fmn": al.fmn, "fab": al.fab, "deepfool": al.df, "trust-region": al.tr, "pdpgd": al.pdpgd},
}


def row(
    contestant: Contestant, name: str, model: nn.Module, x: Tensor, y: Tensor, norm: str, exact: np.ndarray, steps: int
) -> str:
    counted = [0, 0]

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        counted[0] += len(args[0])
        if args[0].requires_grad:
            args[0].register_hook(lambda g: counted.__setitem__(1, counted[1] + len(g)))

    handle = model.register_forward_pre_hook(count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved = contestant(model, x, y, steps).detach()
    finally:
        handle.remove()
        model.zero_grad()
    with torch.no_grad():
        found = ((model(moved).argmax(1) != y) & ((moved >= 0) & (moved <= 1)).flatten(1).all(1)).numpy()
    ratio = NORMS[norm].size((moved - x).flatten(1).double()).numpy()[found] / exact[found]
    told = [f"{v:.4f}" for v in (np.median(ratio), np.quantile(ratio, 0.95), ratio.max())] if found.any() else ["-"] * 3
    rows = ", ".join(f"{c / len(x):.0f}" for c in counted)
    return f"| {norm} | {name} | {steps} | {found.mean():.2f} | {' | '.join(told)} | {rows} |"


if __name__ == "__main__":
    main()
