"""Attacks that climb the goal inside a ball of fixed size."""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..engine.scores import Everything
from ..perturb.goals import Leave, Loss, as_logits
from ..perturb.norms import Norm, norm_of
from ..perturb.region import Region
from .base import Active, Found, Perturbation, per_row, warn_if_flat


@dataclass(frozen=True, eq=False)
class _Climbing(Active):
    """Rows on their way up, each by steps of its own ``length`` [n]."""

    length: Tensor


def fgsm(f: Probe, region: Region, rows: Tensor) -> Found:
    """One step of the whole radius along the gradient: the best point if the model were linear.

    Goodfellow, Shlens, Szegedy (ICLR 2015), section 4, for any norm and box.
    """
    margin, g = f.grad(region.centre, rows)
    warn_if_flat(margin, g)
    z = region.step(region.centre, g, region.radius)
    return Found(z, f.value(z, rows), region.size(z))


def pgd(
    f: Probe,
    region: Region,
    rows: Tensor,
    steps: int,
    length: Tensor,
    start: Tensor | None = None,
    stop: bool = True,
) -> Found:
    """``steps`` steepest steps of ``length`` [N], each followed by the projection onto the region; the best point.

    Madry et al. (ICLR 2018), section 2. With ``stop`` a row leaves when it reaches the goal.
    """
    best = Found.nothing(region.centre)
    a = _Climbing.of(rows, region, start, length)
    for step in range(steps + 1):
        margin, g = f.grad(a.z, a.rows) if step < steps else (f.value(a.z, a.rows), a.z)
        if step == 0 and steps:
            warn_if_flat(margin, g)
        best = best.put(a.index, best.at(a.index).stronger(Found(a.z, margin, a.region.size(a.z))))
        if stop:
            going = ~(margin > 0)
            a, g = a.at(going), g[going]
        if step == steps or not len(a):
            break
        a = a.to(z=a.region.step(a.z, g, a.length))
    return best


def likeliest(f: Probe, rows: Tensor, count: int) -> Tensor:
    """The other classes than the label, the likeliest first [N, T]; T is ``count``, or as many as there are."""
    assert isinstance(f.of, Leave)
    logits = as_logits(f.to(of=Everything()).value(f.point[rows], rows), rows)
    logits = logits.scatter(1, f.of.y[rows][:, None], -torch.inf)
    return logits.topk(min(count, logits.shape[1] - 1), dim=1).indices


def rivals(f: Probe, rows: Tensor, count: int) -> Iterator[Probe]:
    """``f`` climbing towards one other class after the other, the likeliest first.

    Croce, Hein (ICML 2020), section 5: an untargeted attack, made of targeted ones.
    """
    assert isinstance(f.of, Leave)
    for towards in likeliest(f, rows, count).unbind(1):
        yield f.to(of=replace(f.of, toward=f.of.y.index_copy(0, rows, towards)))


class FGSM(Perturbation):
    """Fast gradient method: one step. In every norm and box it is exact for a linear model with two classes.

    Goodfellow, Shlens, Szegedy (ICLR 2015), arXiv 1412.6572. Arguments as for :class:`Attack`.

    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> moved = FGSM(model, bounds=(0, 1)).perturb(x, 0.1, y)
    >>> bool((moved - x).abs().max() <= 0.1 + 1e-6)
    True
    """

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        return fgsm(f, region, rows)

    def perturb(
        self,
        inputs: Any,
        epsilon: float | Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        targeted: bool = False,
        mask: Any = None,
    ) -> Any:
        """Captum's call: inputs moved by ``epsilon`` (a number, or one per example) away from (towards) ``target``."""

        def search(f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
            return fgsm(f, region, rows)

        return self._perturb(inputs, epsilon, target, additional_forward_args, targeted, mask, search)


class PGD(Perturbation):
    """Projected gradient descent, in every norm; the best point seen is kept and fooled examples leave the batch.

    Madry et al. (ICLR 2018), arXiv 1706.06083. Further arguments as for :class:`Attack`.

    Args:
        steps: gradient steps per attempt.
        step_size: length of a step in the units of eps; None: 2.5 * eps / steps.
        restarts: attempts; the first starts at the input (or at random too, with ``random_start``), later ones
            at random points of the region.
        random_start: also start the first attempt at random.
        targets: climb towards each of this many other classes in turn, the likeliest first (all: K - 1), instead
            of away from the true one. Stronger, and as many times dearer.
        early_stop: leave an example alone once it is fooled.

    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    >>> result = PGD(model, bounds=(0, 1), norm="L2", eps=0.5, steps=10).run(x, y)
    >>> bool((result.distance <= 0.5).all()), result.adversarial.shape
    (True, torch.Size([5, 4]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 40,
        step_size: float | Tensor | None = None,
        restarts: int = 1,
        random_start: bool = False,
        targets: int | None = None,
        early_stop: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        for name, value, least in (
            ("steps", steps, 0),
            ("restarts", restarts, 1),
            ("targets", 1 if targets is None else targets, 1),
        ):
            whole(name, value, least)
        self.steps, self.step_size, self.restarts = steps, step_size, restarts
        self.random_start, self.targets, self.early_stop = random_start, targets, early_stop

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        if self.targets is not None and not isinstance(f.of, Leave):
            raise ValueError("targets=... is for untargeted attacks; leave it out with targeted=True or another goal")
        best = Found.nothing(region.centre)
        for restart in range(self.restarts):
            at_random = self.random_start or restart > 0
            start = region.draw(noise.again(restart)) if at_random else None
            for g in [f] if self.targets is None else rivals(f, rows, self.targets):
                left = (~best.success if self.early_stop else torch.ones_like(best.success)).nonzero().squeeze(1)
                if not len(left):
                    return best
                near = region.at(left)
                found = pgd(
                    g,
                    near,
                    rows[left],
                    self.steps,
                    self.length(f, near, rows[left]),
                    None if start is None else start[left],
                    self.early_stop,
                )
                best = best.put(left, best.at(left).stronger(found))
        return best

    def length(self, f: Probe, region: Region, rows: Tensor) -> Tensor:
        """Of a step, for each of the rows [N]."""
        if self.step_size is not None:
            return per_row(self.step_size, f, "step_size")[rows]
        return 2.5 * region.radius / max(self.steps, 1)

    def perturb(
        self,
        inputs: Any,
        radius: float | Tensor,
        step_size: float | Tensor,
        step_num: int,
        target: Any = None,
        additional_forward_args: Any = None,
        targeted: bool = False,
        random_start: bool = False,
        norm: str | Norm | None = None,
        mask: Any = None,
    ) -> Any:
        """Captum's call: ``step_num`` steps of ``step_size`` within ``radius``; the best point of each example.

        Steps are the steepest of the norm (Captum takes the sign of the gradient in L2, too), and no example stops
        early. ``radius`` and ``step_size`` may be numbers, or one per example. ``norm`` overrides the constructor's.
        """
        whole("step_num", step_num, 0)

        def search(f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
            start = region.draw(noise) if random_start else None
            return pgd(f, region, rows, step_num, per_row(step_size, f, "step_size"), start, stop=False)

        same = copy(self)
        same.norm = self.norm if norm is None else norm_of(norm)
        return same._perturb(inputs, radius, target, additional_forward_args, targeted, mask, search)
