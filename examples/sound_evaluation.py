"""Can an evaluation be believed? An honest network, and the same one behind seven ways to hide from an attack.

    python examples/sound_evaluation.py
    python examples/sound_evaluation.py --eps 0.15 --steps 40 --samples 32

Each line tells how many samples the attack fools, the verdict on that figure, and the first reason for it. All eight
networks look robust; only of one does that mean something.
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from robustx import zoo
from robustx.attacks import PGD
from robustx.evaluation import assess

Model = Callable[[Tensor], Tensor]


class NoWayBack(torch.autograd.Function):
    """Passes everything forward, and nothing backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.zeros_like(g)


def left_on(net: nn.Module) -> Model:
    """Behind dropout that is still in train mode."""
    model = nn.Sequential(nn.Dropout(0.2), net)
    model[0].train()
    return model


def hiding(net: nn.Module) -> dict[str, Model]:
    """Ways to look robust."""
    return {
        "as it is": net,
        "input rounded": lambda x: net((8 * x).round() / 8),
        "logits x 1000": lambda x: 1000 * net(x),
        "softmax at the end": lambda x: net(x).softmax(1),
        "noise on the input": lambda x: net(x + 0.1 * torch.randn_like(x)),
        "detached": lambda x: net(x.detach()),
        "no gradient backward": lambda x: net(NoWayBack.apply(x)),
        "dropout left on": left_on(net),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-robust", help="any of the zoo that brings its data")
    parser.add_argument("--eps", type=float, default=0.1, help="the budget in Linf")
    parser.add_argument("--steps", type=int, default=20, help="of PGD on the cross-entropy, from two starts")
    parser.add_argument("--samples", type=int, default=16, help="most samples that are looked at")
    asked = parser.parse_args()

    net, data = zoo.load(asked.model)
    for name, model in hiding(net).items():
        attack = PGD(model, bounds=(0, 1), eps=asked.eps, steps=asked.steps, restarts=2)
        found = assess(model, data.x, data.y, attack, limit=asked.samples)
        fooled = f"fools {found.measured['fooled']:4.0%}" if "fooled" in found.measured else "fails     "
        print(f"{name:<21} {fooled}  {found.verdict:<8} {', '.join(flag.name for flag in found.flags)}")
        if found.flags:
            print(f"{'':<21} {found.flags[0].reason}.\n{'':<21} Try: {found.flags[0].next}.")


if __name__ == "__main__":
    main()
