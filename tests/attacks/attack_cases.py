"""What the laws of attacks are asked of: every attack by name, in every norm, and the variants of those that vary."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from robustx.attacks import ATTACKS, make
from robustx.perturb import NORMS

BUDGET = {"L0": 1.0, "L1": 0.3, "L2": 0.14, "Linf": 0.04}  # about half of the examples below fall
QUICK = {"pgd": {"steps": 8}, "bisection": {"steps": 5, "rounds": 4}}  # an attack that is not here runs as it is
QUICK["square"] = {"steps": 40}
QUICK["autoattack"] = {"steps": 2, "flags": False}  # what it flags has tests of its own
QUICK |= {name: {"steps": 3} for name in ("bim", "mi-fgsm", "ni-fgsm", "si-ni-fgsm", "di-fgsm", "ti-fgsm")}
QUICK |= {name: {"steps": 3, "neighbours": 2} for name in ("vmi-fgsm", "vni-fgsm")}
QUICK |= {name: {"steps": 8, "random_start": True} for name in ("apgd-ce", "apgd-dlr", "apgd-t")}
QUICK["di-fgsm"] |= {"enlarge": 1.6}
QUICK["ti-fgsm"] |= {"kernel": 3}
QUICK |= {"fmn": {"steps": 12}, "ddn": {"steps": 8}, "trust-region": {"steps": 20}}
QUICK |= {name: {"steps": 12} for name in ("alma", "pdpgd", "pdgd")}
QUICK |= {"cw": {"steps": 30, "rounds": 6}, "sigma-zero": {"steps": 12}}
QUICK |= {"ead": {"steps": 20, "rounds": 3}, "vfga": {"draws": 4}, "sparsefool": {"boldness": 1.0}}
QUICK |= {"fab": {"steps": 8}, "fab-t": {"steps": 5, "targets": 3}}
QUICK["portfolio"] = {"steps": 5}
PICTURES = {"diversity": 0.5, "enlarge": 1.6, "kernel": 3}  # parts that only pictures have
OTHERS = {"r-fgsm", "ffgsm", "bim", "mi-fgsm", "ni-fgsm", "si-ni-fgsm", "di-fgsm", "ti-fgsm", "vmi-fgsm", "vni-fgsm"}
"""Names of options of PGD: one norm is enough for each, as a variant has all of them together in every norm."""
VARIANTS = {
    "everything, but for pictures": ("vni-fgsm", {"steps": 3, "reach": 1.5, "scales": 2, "neighbours": 2}),
    "everything, for pictures": ("vni-fgsm", {"steps": 3, "reach": 1.5, "scales": 2, "neighbours": 2, **PICTURES}),
    "apgd, from the input": ("apgd-ce", {"steps": 6, "random_start": False, "restarts": 2}),
    "apgd, large eps first": ("apgd-t", {"steps": 10, "large_eps": True, "restarts": 2, "random_start": True}),
    "pgd, random": ("pgd", {"steps": 5, "restarts": 2, "random_start": True}),
    "pgd, all rivals": ("pgd", {"steps": 5, "loss_func": "margin", "targets": 3}),
}


@dataclass(frozen=True)
class Case:
    """An attack in a norm; ``case(model)`` binds it."""

    name: str
    norm: str
    told: str
    options: dict = field(default_factory=dict)

    def __call__(self, model, **options):
        usual = {"bounds": (0, 1), "norm": self.norm, "eps": BUDGET[self.norm], **self.options}
        return make(self.name, model, **{**usual, **options})

    def but(self, **options):
        return replace(self, options=self.options | {k: v for k, v in options.items() if k in self.options})

    @property
    def all_options(self):
        """With those that the name stands for."""
        return {**ATTACKS[self.name].options, **self.options}

    @property
    def starts_at_random(self):
        return self.has_square or self.all_options.get("random_start", False)

    @property
    def pictures_only(self):
        """Whether it knows what lies beside what: then inputs must be pictures, in one way only."""
        parts = self.all_options
        return self.has_square or parts.get("diversity", 0) > 0 or parts.get("kernel", 1) > 1

    @property
    def has_square(self):
        return self.name in ("square", "autoattack")

    @property
    def by_values(self):
        """Whether it asks for no gradients."""
        return ATTACKS[self.name].needs == "scores"

    @property
    def untargeted_only(self):
        return self.all_options.get("targets") is not None

    def __str__(self):
        return f"{self.told}-{self.norm}"


ALL = [(name, name, QUICK.get(name, {})) for name in ATTACKS] + [(told, *v) for told, v in VARIANTS.items()]
CASES = [
    Case(name, norm, told, options)
    for told, name, options in ALL
    for norm in (["Linf"] if told in OTHERS else NORMS)
    if norm in ATTACKS[name].norms
]


def mlp(classes=4, dtype=torch.float64, seed=6):
    """A small smooth network on [B, 2, 3, 3] that gives every class its share of [0, 1]."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    first, last = model[1], model[3]
    first.weight.data.mul_(1.5)
    first.bias.data = -0.5 * first.weight.data.sum(1)
    last.bias.data.zero_()
    return model.to(dtype).eval()


def affine(d, classes, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(d, classes)).to(dtype)


def examples(model, count=12, shape=(2, 3, 3), dtype=torch.float64, seed=2, wrong=2):
    """Inputs in [0, 1] with the model's own answers as labels, but for the last few, which are wrong already."""
    torch.manual_seed(seed)
    x = torch.rand(count, *shape, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        scores = model(x)
    y = scores.argmax(1)
    y[count - wrong :] = (y[count - wrong :] + 1) % scores.shape[1]
    return x, y


class Counted(nn.Module):
    """A model that counts, from the outside, how often each example goes through it forward and backward.

    Its second input says which example a row is: ``run(x, y, additional_forward_args=torch.arange(len(x)))``.
    """

    def __init__(self, model, count):
        super().__init__()
        self.model = model
        self.forwards = torch.zeros(count, dtype=torch.long)
        self.backwards = torch.zeros(count, dtype=torch.long)
        self.calls = 0

    def forward(self, x, which):
        self.calls += 1
        self.forwards += which.bincount(minlength=len(self.forwards))
        return self.model(_Count.apply(x, which, self.backwards))


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, which, backwards):
        ctx.seen = which, backwards
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        which, backwards = ctx.seen
        backwards += which.bincount(minlength=len(backwards))
        return g, None, None
