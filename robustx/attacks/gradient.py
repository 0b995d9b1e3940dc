"""Attacks that climb the goal inside a ball of fixed size."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import at_least, whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..engine.scores import Everything
from ..perturb.goals import Leave, Loss, as_logits
from ..perturb.norms import Norm, norm_of
from ..perturb.region import Region
from .base import Perturbation, flat, per_row, warn_if_flat, warn_of
from .found import Found
from .momentum import Climbing, Momentum, Part, Translation, Variance, steered
from .views import Diversity, Scales, View, Viewed, pictures


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
    parts: Sequence[Part] = (),
    noise: Noise | None = None,
    quiet: bool = False,
) -> Found:
    """``steps`` steepest steps of ``length`` [N], each followed by the projection onto the region; the best point.

    Madry et al. (ICLR 2018), section 2. With ``stop`` a row leaves when it reaches the goal. ``parts`` steer the steps;
    those that draw need ``noise``. Unless ``quiet``, warns of rows whose gradients were zero throughout.
    """
    found, still = Found.nothing(region.centre), torch.full_like(rows, steps > 0 and not quiet, dtype=torch.bool)
    a = Climbing.of(rows, region, start, length, found, noise)
    for step in range(steps + 1):
        margin, g = steered(f, a, parts) if step < steps else (f.value(a.z, a.rows), a.z)
        if step < steps and bool(still.any()):  # a view, or momentum, may have a gradient in a later step only
            still[a.index] &= flat(margin, g)
        better = margin > a.best.margin
        now = Found(a.z, margin.to(a.best.margin), a.best.size)
        a = a.to(best=now if bool(better.all()) else a.best.where(better, now))
        gone = better & (margin > 0)
        if stop and bool(gone.any()):
            found = found.put(a.index[gone], a.best.at(gone))
            a, g = a.at(~gone), g[~gone]
        if step == steps or not len(a):
            break
        for part in parts:
            g, a = part.turn(f, a, g)
        a = a.to(z=a.region.step(a.z, g, a.length))
    warn_of(still)
    found = found.put(a.index, a.best)
    return Found(found.z, found.margin, region.size(found.z))


def likeliest(f: Probe, rows: Tensor, count: int) -> Tensor:
    """The other classes than the label, the likeliest first [N, T]; T is ``count``, or as many as there are.

    Raises:
        ValueError: the goal is not to leave a class.
    """
    if not isinstance(f.of, Leave):
        raise ValueError("targets=... is for untargeted attacks; leave it out with targeted=True or another goal")
    logits = as_logits(f.to(of=Everything()).value(f.point[rows], rows), rows)
    logits = logits.scatter(1, f.of.y[rows][:, None], -torch.inf)
    return logits.topk(min(count, logits.shape[1] - 1), dim=1).indices


def rivals(f: Probe, rows: Tensor, count: int) -> Iterator[Probe]:
    """``f`` climbing towards one other class after the other, the likeliest first.

    Croce, Hein (ICML 2020), section 5: an untargeted attack, made of targeted ones.
    """
    classes = likeliest(f, rows, count)
    assert isinstance(f.of, Leave)
    for towards in classes.unbind(1):
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
        return fgsm(f, region.reachable(), rows)

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
        step_size: length of a step in the units of eps; None: ``reach`` * eps / steps.
        reach: how far all steps together could lead, in budgets.
        momentum: how much of the past steps' gradients goes on into each, see :class:`Momentum`; 0: nothing.
        restarts: attempts; the first starts at the input (or at random too, with ``random_start``), later ones
            at random points of the region.
        random_start: also start the first attempt at random.
        random_step: random starts lie not anywhere in the region, but one steepest step along Gaussian noise away from
            the input, of this share of the budget: Tramèr et al. (ICLR 2018), arXiv 1705.07204, section 4.1.
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
        reach: float = 2.5,
        momentum: float = 0.0,
        restarts: int = 1,
        random_start: bool = False,
        random_step: float | None = None,
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
        at_least("reach", reach, 0)
        at_least("momentum", momentum, 0)
        at_least("random_step", random_step or 0, 0)
        self.steps, self.step_size, self.reach, self.momentum = steps, step_size, reach, momentum
        self.restarts, self.random_start, self.random_step = restarts, random_start, random_step
        self.targets, self.early_stop = targets, early_stop

    def _parts(self) -> tuple[Part, ...]:
        """What steers the steps."""
        return (Momentum(self.momentum),) if self.momentum else ()

    def _views(self) -> tuple[View, ...]:
        """What the gradients are taken of, besides the point itself."""
        return ()

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = Found.nothing(region.centre)
        for restart in range(self.restarts):
            draws = noise.again(restart)
            start = self.start(region, draws) if self.random_start or restart > 0 else None
            seen = self._seen(f, rows, draws)
            for g in [seen] if self.targets is None else rivals(seen, rows, self.targets):
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
                    self._parts(),
                    draws.at(left),
                )
                best = best.put(left, best.at(left).stronger(found))
        return best

    def _seen(self, f: Probe, rows: Tensor, noise: Noise) -> Probe:
        return Viewed.of_probe(f, rows, noise, self._views()) if self._views() else f

    def start(self, region: Region, noise: Noise) -> Tensor:
        """Random points to start from."""
        region = region.reachable()
        if self.random_step is None:
            return region.draw(noise)
        way = noise.normal(region.centre.shape[1], region.centre)
        return region.step(region.centre, way, self.random_step * region.radius)

    def length(self, f: Probe, region: Region, rows: Tensor) -> Tensor:
        """Of a step, for each of the rows [N]."""
        if self.step_size is not None:
            return per_row(self.step_size, f, "step_size")[rows]
        return self.reach * region.reachable().radius / max(self.steps, 1)

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
            start = self.start(region, noise) if random_start else None
            length = per_row(step_size, f, "step_size")
            return pgd(self._seen(f, rows, noise), region, rows, step_num, length, start, False, self._parts(), noise)

        same = copy(self)
        same.norm = self.norm if norm is None else norm_of(norm)
        return same._perturb(inputs, radius, target, additional_forward_args, targeted, mask, search)


class TransferPGD(PGD):
    """Momentum, and parts to choose that make what fools one model fool others, too: the family of MI-FGSM.

    By itself it is MI-FGSM; NI-, SI-, DI-, TI-, VMI- and VNI-FGSM add options, and any of them add up. No example stops
    once the model at hand is fooled, unless ``early_stop`` says so: other models want more. A step costs
    ``scales`` * (1 + ``neighbours``) passes, in one question to the model for the gradient and one for the neighbours;
    and one forward pass more where the gradient is not asked for at the point itself (``nesterov``, ``diversity``), so
    that success and the best point are those of the point.

    Args:
        nesterov: ask for the gradient where the momentum is about to lead (NI), see :class:`Momentum`.
        scales: mean over this many copies, divided by 1, 2, 4... (SI), see :class:`Scales`.
        diversity: the probability with which pictures are enlarged and padded (DI), see :class:`Diversity`.
        enlarge: at most to this many times their size.
        kernel: size in pixels of the Gaussian that blurs the gradient of pictures (TI), see :class:`Translation`; odd.
        neighbours: tune by the mean gradient of this many neighbours (VMI), see :class:`Variance`.
        spread: how far around they lie, in budgets.

    Further arguments as for :class:`PGD`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> x, y = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    >>> attack = TransferPGD(model, bounds=(0, 1), eps=0.1, nesterov=True, scales=3, kernel=3)
    >>> bool((attack(x, y) - x).abs().max() <= 0.1)
    True
    """

    def __init__(
        self,
        *args: Any,
        steps: int = 10,
        reach: float = 1.0,
        momentum: float = 1.0,
        early_stop: bool = False,
        nesterov: bool = False,
        scales: int = 1,
        diversity: float = 0.0,
        enlarge: float = 1.1,
        kernel: int = 1,
        neighbours: int = 0,
        spread: float = 1.5,
        **options: Any,
    ) -> None:
        super().__init__(*args, steps=steps, reach=reach, momentum=momentum, early_stop=early_stop, **options)
        for name, value, least in (("scales", scales, 1), ("kernel", kernel, 1), ("neighbours", neighbours, 0)):
            whole(name, value, least)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that it has a middle, got {kernel}")
        if not 0 <= diversity <= 1:
            raise ValueError(f"diversity must be a probability from 0 to 1, got {diversity}")
        at_least("enlarge", enlarge, 1)
        at_least("spread", spread, 0)
        self.nesterov, self.scales, self.diversity, self.enlarge = nesterov, scales, diversity, enlarge
        self.kernel, self.neighbours, self.spread = kernel, neighbours, spread

    def _parts(self) -> tuple[Part, ...]:
        tuned = (Variance(self.neighbours, self.spread),) if self.neighbours else ()
        blurred = (Translation(self.kernel),) if self.kernel > 1 else ()
        return (*tuned, *blurred, Momentum(self.momentum, self.nesterov))

    def _views(self) -> tuple[View, ...]:
        scaled = (Scales(self.scales),) if self.scales > 1 else ()
        return (*scaled, Diversity(self.diversity, self.enlarge)) if self.diversity else scaled

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        for name in ("diversity", "kernel"):
            if getattr(self, name) > (name == "kernel"):
                pictures(f.packing, name)
        return super().search(f, region.reachable() if self.neighbours else region, rows, noise)
