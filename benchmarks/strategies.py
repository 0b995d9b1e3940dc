"""How near the best counterfactual does each strategy come, and for how many passes?

    python benchmarks/strategies.py [--only NAME ...]

Networks of 8 and 8 units on breast cancer and wine, in [0, 1] and within 0.15 of each row, for which a mixed-integer
solver has proved what is the best (``tests/fixtures/relu_counterfactuals.npz``). For the fewest features first
(``l0+l1``): the share of rows found, the share with the fewest features, how many more there are in the mean, and how
many times the least L1 where the count is the best. For the least cost alone: how many times the least, in the mean and
at most. Passes are rows forward and backward, for each example.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustx.counterfactual import CounterfactualExplainer

KEPT = Path(__file__).parents[1] / "tests" / "fixtures" / "relu_counterfactuals.npz"
CASES = [f"{name}/{box}" for name in ("breast-cancer", "wine") for box in ("all", "near")]
FEW = ("auto", "guided", "proximal", "masked-pgd", "sigma-zero", "fmn")
LEAST = ("auto", "guided", "fmn", "pdpgd", "fab-t", "alma")


def network(told: dict[str, torch.Tensor]) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(sum(name.startswith("weight") for name in told)):
        layer = nn.Linear(told[f"weight{i}"].shape[1], len(told[f"weight{i}"])).double()
        layer.load_state_dict({"weight": told[f"weight{i}"], "bias": told[f"bias{i}"]})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def asked(strategy: str, distance: str, cases: dict[str, dict[str, torch.Tensor]]) -> str:
    """One line of the table."""
    valid, excess, ratio, passes = [], [], [], []
    for told in cases.values():
        explainer = CounterfactualExplainer(
            network(told), bounds=(told["low"], told["high"]), distance=distance, scale=1.0, strategy=strategy
        )
        result = explainer.generate(told["x"])
        count, cost = told[f"{distance}/count"], told[f"{distance}/cost"]
        ok = result.valid & cost.isfinite()
        valid.append(result.valid[cost.isfinite()])
        more = (result.n_changed - count)[ok]
        excess.append(more)
        part = (result.cost / cost)[ok]
        ratio.append(part[more == 0] if distance.startswith("l0") else part)
        passes.append(result.forwards + result.backwards)
    found, extra, times = (torch.cat(v).double() for v in (valid, excess, ratio))
    few = f"{(extra == 0).double().mean():8.2f} {extra.mean():8.3f}" if distance.startswith("l0") else " " * 17
    mean = torch.cat(passes).double().mean()
    return f"{strategy:12s} {found.mean():6.2f} {few} {times.mean():8.3f} {times.max():8.3f} {mean:8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="strategies")
    only = parser.parse_args().only
    with np.load(KEPT) as kept:
        cases = {
            at: {k.removeprefix(f"{at}/"): torch.from_numpy(kept[k]) for k in kept if k.startswith(f"{at}/")}
            for at in CASES
        }
    for distance, names in (("l0+l1", FEW), ("l1", LEAST), ("linf", tuple(n for n in LEAST if n != "alma"))):
        print(f"{distance:12s} {'found':>6s} {'fewest':>8s} {'more':>8s} {'cost':>8s} {'worst':>8s} {'passes':>8s}")
        for name in names if only is None else [n for n in names if n in only]:
            print(asked(name, distance, cases), flush=True)


if __name__ == "__main__":
    main()
