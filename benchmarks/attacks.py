"""Attacks in robustx and elsewhere: how strong, in how many passes, in how much time and memory?

    python benchmarks/attacks.py [--rounds 5] [--only pgd apgd-ce ... step curve autoattack] [--models digits resnet]

Two adversarially trained models: ``digits``, the convolutional network of the zoo, and ``resnet``, torchvision's
ResNet-18 on the same digits at 32x32 and in colour, which is trained here in a minute. The contestants (this library
with exact and with fast precision, torchattacks, foolbox, adversarial-library) take turns in one process with equal
budgets and steps. Each row of the table says

- how strong: the share of examples that the model still gets right, or for attacks that look for the nearest point the
  share of those that it found and their median distance (inf where it found none), all judged by the model itself, with
  what left the ball or the box counted as a failure;
- the rows forward and backward through the model for each example, counted around the model;
- the processor's time as a share of that of a bare loop: as many rows, forward and backward, with frozen weights, all
  examples at once and nothing else done;
- the same as a share of the time of torchattacks, or the first contestant that is there;
- the most memory that tensors took at once, in MiB.

Times are medians and quartiles of the rounds; each round times the bare loop, too. ``step`` is one gradient of all, of
half and of a quarter of the examples, ``curve`` asks for five budgets in one call, and ``autoattack`` compares the
ensemble with the published one, made of parts of torchattacks.
"""

import argparse
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from contest import Run, peak, seconds, spread
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from robustx import zoo
from robustx.attacks import ATTACKS, make
from robustx.engine import Probe
from robustx.engine.prepare import AS_IS, prepare
from robustx.perturb.goals import Leave

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib could draw with it, which nobody asks for
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import adv_lib.attacks as al
    import foolbox as fb
    import torchattacks as ta

Peer = Callable[[nn.Module, Tensor, Tensor, float | None], Tensor]


@dataclass(frozen=True)
class Task:
    """A model and examples that it gets right."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: dict[str, float]

    def first(self, count: int) -> "Task":
        return replace(self, x=self.x[:count], y=self.y[:count])


@dataclass(frozen=True)
class Contest:
    """An attack by its name here, its options, and what it is called elsewhere."""

    name: str
    norm: str
    options: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    most: int = 128  # examples; some contestants take them one by one

    def ours(self, precision: str) -> Peer:
        def run(model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
            attack = make(self.name, model, bounds=(0, 1), norm=self.norm, eps=eps, precision=precision, **self.options)
            return attack(x, y)

        return run

    @property
    def minimal(self) -> bool:
        return ATTACKS[self.name].minimal

    def __str__(self) -> str:
        return ", ".join([self.name, self.norm, *(f"{k}={v}" for k, v in self.options.items() if k in TOLD)])


TOLD = ("steps", "rounds")


def foolbox(attack: Any) -> Peer:
    def run(model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
        return attack(fb.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]

    return run


def torchattacks(attack: Callable[..., Any], *names: str, **options: Any) -> Peer:
    """``names``: what the budget is called, if the attack has one."""

    def run(model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
        return attack(model, **dict.fromkeys(names, eps), **options)(x, y)

    return run


def pgd(steps: int, share: float, norm: str = "Linf") -> Peer:
    def run(model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
        attack = {"Linf": ta.PGD, "L2": ta.PGDL2}[norm]
        return attack(model, eps=eps, alpha=share * eps, steps=steps, random_start=False)(x, y)

    return run


CONTESTS = [
    Contest("fgsm", "Linf", {}, {
        "torchattacks": torchattacks(ta.FGSM, "eps"),
        "foolbox": foolbox(fb.attacks.LinfFastGradientAttack()),
    }, 400),
    Contest("pgd", "Linf", {"steps": 40}, {
        "torchattacks": pgd(40, 1 / 16),
        "foolbox": foolbox(fb.attacks.LinfPGD(steps=40, rel_stepsize=1 / 16, random_start=False)),
        "adv-lib": lambda m, x, y, e: al.pgd_linf(m, x, y, e, steps=40, random_init=False, relative_step_size=1 / 16),
    }, 400),
    Contest("pgd", "L2", {"steps": 40}, {
        "torchattacks": pgd(40, 1 / 16, "L2"),
        "foolbox": foolbox(fb.attacks.L2PGD(steps=40, rel_stepsize=1 / 16, random_start=False)),
    }, 400),
    Contest("apgd-ce", "Linf", {"steps": 40}, {
        "torchattacks": torchattacks(ta.APGD, "eps", steps=40),
        "adv-lib": lambda m, x, y, e: al.apgd(m, x, y, e, norm=float("inf"), n_iter=40, loss_function="ce"),
    }),
    Contest("apgd-t", "Linf", {"steps": 20}, {
        "torchattacks": torchattacks(ta.APGDT, "eps", steps=20),
        "adv-lib": lambda m, x, y, e: al.apgd_targeted(m, x, y, e, norm=float("inf"), n_iter=20),
    }),
    Contest("fab", "Linf", {"steps": 10}, {
        "torchattacks": torchattacks(ta.FAB, steps=10, eps=1e3),
        "adv-lib": lambda m, x, y, e: al.fab(m, x, y, norm=float("inf"), n_iter=10),
    }, 32),
    Contest("deepfool", "L2", {"steps": 50}, {
        "torchattacks": torchattacks(ta.DeepFool, steps=50),
        "foolbox": foolbox(fb.attacks.L2DeepFoolAttack(steps=50)),
        "adv-lib": lambda m, x, y, e: al.df(m, x, y, steps=50),
    }, 32),
    Contest("ddn", "L2", {"steps": 100}, {
        "foolbox": foolbox(fb.attacks.DDNAttack(steps=100)),
        "adv-lib": lambda m, x, y, e: al.ddn(m, x, y, steps=100, levels=None),
    }),
    Contest("fmn", "L2", {"steps": 100}, {
        "foolbox": foolbox(fb.attacks.L2FMNAttack(steps=100)),
        "adv-lib": lambda m, x, y, e: al.fmn(m, x, y, norm=2, steps=100),
    }),
    Contest("fmn", "Linf", {"steps": 100}, {
        "foolbox": foolbox(fb.attacks.LInfFMNAttack(steps=100)),
        "adv-lib": lambda m, x, y, e: al.fmn(m, x, y, norm=float("inf"), steps=100, α_init=10.0),
    }),
    Contest("cw", "L2", {"steps": 100, "rounds": 5}, {
        "foolbox": foolbox(fb.attacks.L2CarliniWagnerAttack(5, 100)),
        "adv-lib": lambda m, x, y, e: al.carlini_wagner_l2(m, x, y, binary_search_steps=5, max_iterations=100),
    }),
    Contest("square", "Linf", {"steps": 500}, {
        "torchattacks": torchattacks(ta.Square, "eps", n_queries=500),
    }),
]  # fmt: skip


class Counting(nn.Module):
    """Counts the rows that go in, and those whose gradients come back; no hooks, with which nothing is prepared."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        out = self.model(x)
        if out.requires_grad:
            out.register_hook(self.seen)
        return out

    def seen(self, g: Tensor) -> None:
        self.backwards += len(g)


def in_colour(x: Tensor) -> Tensor:
    """Digits of 8x8 as pictures [N, 3, 32, 32]."""
    large = F.interpolate(x, size=32, mode="bilinear")
    return large * torch.tensor([1.0, 0.8, 0.6]).view(1, 3, 1, 1)


def trained(eps: float, examples: int, epochs: int = 4, batch: int = 64) -> nn.Module:
    """A ResNet-18 after adversarial training by single steps from random points (Wong et al., ICLR 2020)."""
    torch.manual_seed(0)
    data = zoo.data("digits", split="train")
    x, y = in_colour(data.x[:examples]), data.y[:examples]
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    steps = epochs * (examples // batch)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=steps, pct_start=0.15)
    for _ in range(epochs):
        for rows in torch.randperm(examples).split(batch)[: examples // batch]:
            low, high = (x[rows] - eps).clamp(min=0), (x[rows] + eps).clamp(max=1)
            z = torch.lerp(low, high, torch.rand_like(low)).requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(z), y[rows]), z)
            z = (z.detach() + 1.25 * eps * g.sign()).clamp(low, high)
            sgd.zero_grad()
            F.cross_entropy(model(z), y[rows]).backward()
            sgd.step(), rate.step()
    return model.eval()


def right(model: nn.Module, x: Tensor, y: Tensor, count: int, eps: dict[str, float]) -> Task:
    with torch.no_grad():
        good = (model(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return Task(model, x[good], y[good], eps)


def tasks(names: Iterable[str], resnet_rows: int) -> dict[str, Task]:
    data = zoo.data("digits")
    found = {}
    if "digits" in names:
        found["digits"] = right(zoo.model("digits-robust"), data.x, data.y, 400, {"Linf": 0.2, "L2": 0.8})
    if "resnet" in names:
        net = trained(16 / 255, 640)
        found["resnet"] = right(net, in_colour(data.x), data.y, resnet_rows, {"Linf": 16 / 255, "L2": 1.0})
    return found


def sizes(d: Tensor, norm: str) -> Tensor:
    d = d.double().flatten(1)
    return {"Linf": d.abs().amax(1), "L2": d.norm(dim=1)}[norm]


def quality(task: Task, contest: Contest, moved: Tensor) -> str:
    with torch.no_grad():
        wrong = task.model(moved).argmax(1) != task.y
    size = sizes(moved - task.x, contest.norm)
    wrong &= (moved >= 0).flatten(1).all(1) & (moved <= 1).flatten(1).all(1)
    if contest.minimal:
        size = torch.where(wrong, size, torch.inf)
        return f"{wrong.double().mean():.3f}, {size.median():.4f}"
    wrong &= size <= task.eps[contest.norm] * (1 + 1e-5)
    return f"{1 - wrong.double().mean():.3f}"


def bare(task: Task, back: bool) -> Run:
    """All examples once through the model with frozen weights."""
    flags = [p.requires_grad for p in task.model.parameters()]

    def run() -> None:
        task.model.requires_grad_(False)
        with torch.set_grad_enabled(back):
            z = task.x.clone().requires_grad_(back)
            out = F.cross_entropy(task.model(z), task.y, reduction="sum")
            if back:
                torch.autograd.grad(out, z)
        for p, flag in zip(task.model.parameters(), flags, strict=True):
            p.requires_grad_(flag)

    return run


def contested(contest: Contest, task: Task, rounds: int) -> list[list[str]]:
    """The cells of the contestants' rows."""
    budget = None if contest.minimal else task.eps[contest.norm]
    contestants = {"robustx": contest.ours("exact"), "robustx, fast": contest.ours("fast"), **contest.peers}
    runs = {who: lambda a=attack: a(task.model, task.x, task.y, budget) for who, attack in contestants.items()}
    counted = {who: Counting(task.model).eval() for who in contestants}
    found = {who: a(counted[who], task.x, task.y, budget) for who, a in contestants.items()}  # the warm-up
    times: dict[str, list[float]] = {who: [] for who in ("forward", "both", *runs)}
    forward, both = bare(task, False), bare(task, True)
    repeats = max(1, int(0.3 / max(seconds(both), 1e-4)))
    for _ in range(rounds):
        times["forward"].append(seconds(forward, repeats) / repeats)
        times["both"].append(seconds(both, repeats) / repeats)
        for who, run in runs.items():
            times[who].append(seconds(run))
    rival = next(iter(contest.peers), "robustx")
    rows = []
    for who in contestants:
        c, n = counted[who], len(task.x)
        units = [
            c.forwards / n * f + c.backwards / n * (b - f) for f, b in zip(times["forward"], times["both"], strict=True)
        ]
        rows.append([
            who,
            quality(task, contest, found[who]),
            f"{c.forwards / n:.1f} / {c.backwards / n:.1f}",
            spread([t / u for t, u in zip(times[who], units, strict=True)]),
            spread([t / u for t, u in zip(times[who], times[rival], strict=True)]),
            f"{peak(runs[who]):.3g}",
        ])  # fmt: skip
    return rows


def step(task: Task, rounds: int) -> Iterable[list[str]]:
    """The cells of rows: one gradient of some examples, as the bare loop and as a search asks for it."""
    whole = bare(task, True)
    for share in (1, 2, 4):
        some = task.first(len(task.x) // share)
        n = len(some.x)
        f = Probe(task.model, (some.x,), Leave(some.y, "ce"))
        asked = {"bare": bare(some, True)}
        for precision in (None, "exact", "fast"):
            quick = prepare(f, precision)
            asked[str(precision)] = lambda q=quick: q.grad(q.point)
            seconds(asked[str(precision)], 1 + AS_IS // n)  # until it is prepared
        times: dict[str, list[float]] = {who: [] for who in ("whole", *asked)}
        repeats = max(1, int(0.3 / max(seconds(whole), 1e-4)))
        for _ in range(rounds):
            for who, run in {"whole": whole, **asked}.items():
                times[who].append(seconds(run, repeats))
        per_row = [a / n / (b / len(task.x)) for a, b in zip(times["bare"], times["whole"], strict=True)]
        ratios = [[a / b for a, b in zip(times[who], times["bare"], strict=True)] for who in list(asked)[1:]]
        yield [str(n), spread(per_row), *map(spread, ratios)]


def curve(task: Task, rounds: int) -> list[str]:
    """The cells of a row: five budgets in one call, beside the largest of them alone."""
    eps = task.eps["Linf"]

    def pgd(model: nn.Module, budgets: Any) -> Any:
        return make("pgd", model, bounds=(0, 1), steps=40).run(task.x, task.y, eps=budgets)

    asked = {"five": [eps * k / 5 for k in range(1, 6)], "largest": eps}
    rows, times = {}, {}
    for what, budgets in asked.items():
        model = Counting(task.model).eval()
        pgd(model, budgets)
        rows[what] = model.forwards / len(task.x), model.backwards / len(task.x)
        times[what] = []
    for _ in range(rounds):
        for what, budgets in asked.items():
            times[what].append(seconds(lambda b=budgets: pgd(task.model, b)))
    return [
        *(f"{f:.1f} / {b:.1f}" for f, b in rows.values()),
        spread([five / one for five, one in zip(*times.values(), strict=True)]),
    ]


def published(model: nn.Module, eps: float) -> Any:
    """AutoAttack's standard version with its paper's steps, of torchattacks' parts (whose own has ten steps each)."""
    return ta.MultiAttack([
        ta.APGD(model, eps=eps, steps=100),
        ta.APGDT(model, eps=eps, steps=100),
        ta.FAB(model, eps=eps, steps=100, multi_targeted=True),
        ta.Square(model, eps=eps, n_queries=5000),
    ])  # fmt: skip


def ensembles(name: str, eps: float, count: int) -> Iterable[list[str]]:
    """The cells of the rows of AutoAttack on a model of the zoo."""
    data = zoo.data("digits")
    task = right(zoo.model(name), data.x, data.y, count, {"Linf": eps})
    contest = Contest("autoattack", "Linf", {}, {"as published": lambda m, x, y, e: published(m, e)(x, y)})
    for who, attack in {"robustx": contest.ours("exact"), **contest.peers}.items():
        model = Counting(task.model).eval()
        moved = attack(model, task.x, task.y, eps)
        strength = quality(task, contest, moved)
        time = seconds(lambda a=attack: a(task.model, task.x, task.y, eps))
        yield [name, who, strength, f"{model.forwards / count:.0f} / {model.backwards / count:.0f}", f"{time:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[*(c.name for c in CONTESTS), "step", "curve", "autoattack"],
        help="names of attacks",
    )
    parser.add_argument("--models", nargs="*", default=["digits", "resnet"])
    parser.add_argument("--rows", type=int, default=32, help="examples for the ResNet")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {asked.rounds} rounds")
    found = tasks(asked.models, asked.rows)
    contests = [c for c in CONTESTS if c.name in asked.only and c.name in ATTACKS]
    for name, task in found.items() if contests else ():
        print(f"\n{name}, eps {task.eps}\n")
        print("| attack, examples | | strength | rows | time / bare loop | time / rival | peak MiB |")
        print("|---|---|---|---|---|---|---|")
        for contest in contests:
            for cells in contested(contest, task.first(contest.most), asked.rounds):
                print(f"| {contest}, {min(contest.most, len(task.x))} |", " | ".join(cells), "|", flush=True)
    if "step" in asked.only:
        print("\n| one step | examples | bare loop, a row, of that with all | as it is / bare loop | exact | fast |")
        print("|---|---|---|---|---|---|")
        for name, task in found.items():
            for cells in step(task, asked.rounds):
                print(f"| {name} |", " | ".join(cells), "|", flush=True)
    if "curve" in asked.only:
        print("\n| five budgets of pgd | rows | rows of the largest alone | time / the largest alone |")
        print("|---|---|---|---|")
        for name, task in found.items():
            print(f"| {name} |", " | ".join(curve(task, asked.rounds)), "|", flush=True)
    if "autoattack" in asked.only:
        print("\n| autoattack | | strength | rows | seconds |")
        print("|---|---|---|---|---|")
        for model, eps in (("digits", 0.2), ("digits-robust", 0.2)):
            for cells in ensembles(model, eps, 64):
                print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
