"""How near the closest point lies that any of several attacks can find."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise
from ..perturb.goals import Goal, Loss
from ..perturb.norms import Norm
from ..perturb.region import Region
from .base import Attack
from .deepfool import SuperDeepFool, superdeepfool
from .fab import FAB
from .found import Found
from .minimal import FMN
from .result import AttackResult
from .sparse import VFGA, SigmaZero, fewer


def polished(f: Probe, region: Region, rows: Tensor, found: Found, steps: int = 10) -> Found:
    """Each point that succeeded, moved to the nearest point of the boundary that the model has around it.

    A network of linear pieces is affine there, so that one projection is exact as long as it stays on the piece; where
    it does not, a step across the boundary and another projection follow, as in SuperDeepFool, with the likeliest rival
    alone. A count is lessened by putting elements back.
    """
    if region.norm.unit:
        return fewer(f, region, rows, found)
    left = found.success.nonzero().squeeze(1)
    if not len(left):
        return found
    nearer = superdeepfool(f, region.at(left), rows[left], steps, 0.02, 1, found.z[left])
    return found.put(left, found.at(left).smaller(nearer))


class Portfolio(Attack):
    """The nearest point that any of several attacks finds, example by example, polished on the boundary around it.

    No attack finds the nearest boundary of every example; they seldom miss it together. The distance is an upper bound
    on the true one, verified by the model itself; ``result.by`` names the attack that found the point, and the passes
    are those of all.

    Args:
        steps: gradient steps of FMN and sigma-zero; SuperDeepFool takes a quarter of them, as does FAB-T to each rival.
        attacks: which ones, by name: attacks for nearest points in this norm. None: SuperDeepFool, FAB-T and FMN; in L0
            VFGA, sigma-zero and FMN.

    Further arguments as for :class:`Attack`; ``loss_func`` is climbed by those that climb one.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> x = torch.tensor([[0.8, 0.4], [0.6, 0.5]])
    >>> result = Portfolio(model, bounds=(0, 1), norm="L2").run(x, torch.tensor([0, 0]))
    >>> result.distance
    tensor([0.2828, 0.0707])
    >>> set(result.by) <= {"superdeepfool", "fab-t", "fmn"}
    True
    """

    minimal = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        loss_func: str | Loss | None = None,
        lower_bound: float | Tensor = -torch.inf,
        upper_bound: float | Tensor = torch.inf,
        *,
        steps: int = 100,
        attacks: Mapping[str, Attack] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, loss_func, lower_bound, upper_bound, **options)
        self.steps = whole("steps", steps, 1)
        for name, attack in (attacks or {}).items():
            if not (isinstance(attack, Attack) and attack.minimal and str(attack.norm) == str(self.norm)):
                raise ValueError(f"attacks must look for nearest points in {self.norm}, but {name!r} is {attack!r}")
        self.parts = dict(attacks) if attacks else self._usual(loss_func)

    def _usual(self, loss_func: str | Loss | None) -> dict[str, Attack]:
        model, norm = self.forward_func, self.norm
        fmn = FMN(model, loss_func, norm=norm, steps=self.steps)
        if norm.unit:
            return {
                "vfga": VFGA(model, norm=norm),
                "sigma-zero": SigmaZero(model, norm=norm, steps=self.steps),
                "fmn": fmn,
            }
        few = max(1, self.steps // 4)
        fab = FAB(model, norm=norm, steps=few, targets=9)
        return {"superdeepfool": SuperDeepFool(model, norm=norm, steps=few), "fab-t": fab, "fmn": fmn}

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        best = Found.nothing(region.centre)
        for k, part in enumerate(self.parts.values()):
            found = polished(f, region, rows, part.search_within(f, region, rows, noise))
            best = best.smaller(replace(found, by=torch.full_like(rows, k)))
        return best


def minimal_distance(
    model: Callable[..., Any],
    x: Any,
    y: Tensor | int | None = None,
    norm: str | float | Norm = "Linf",
    *,
    bounds: tuple[float | Tensor, float | Tensor] = (-torch.inf, torch.inf),
    targeted: bool = False,
    goal: Goal | Callable[[Any], Tensor] | None = None,
    mask: Any = None,
    additional_forward_args: Any = None,
    additional_forward_kwargs: dict[str, Any] | None = None,
    history: bool = False,
    **options: Any,
) -> AttackResult:
    """How near the closest point of another class lies, as far as a :class:`Portfolio` of attacks finds it.

    ``distance`` is a verified upper bound for each example with ``success`` (where nothing was found it is 0, as of the
    input, and bounds nothing), ``adversarial`` the point, ``by`` the attack that found it, ``forwards`` and
    ``backwards`` what it cost. ``options`` are those of the class; the others as in :meth:`robustx.attacks.Attack.run`.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> minimal_distance(model, torch.tensor([[0.8, 0.4]]), torch.tensor([0]), "Linf", bounds=(0, 1)).distance
    tensor([0.2000])
    """
    attack = Portfolio(model, norm=norm, bounds=bounds, **options)
    return attack.run(
        x,
        y,
        targeted,
        goal=goal,
        mask=mask,
        additional_forward_args=additional_forward_args,
        additional_forward_kwargs=additional_forward_kwargs,
        history=history,
    )
