"""What each change of a counterfactual does, whoever found it."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from ..attribution.base import Attribution, PerturbationAttribution
from ..attribution.path import mean_grad_within
from ..attribution.shapley import EXACT, shares_of_change
from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.guard import untouched
from ..engine.packing import finest
from ..engine.probe import ModelError
from ..perturb.gates import gated
from .pairs import Pairs

Method = Literal["auto", "shapley", "ig"] | Attribution


@dataclass(frozen=True, eq=False, repr=False)
class ChangeExplanation:
    """What each feature's change does to the margin by which the goal is reached.

    Attributes:
        values: in float64, 0 where a feature does not change [B, F].
        delta: how much the margin rises from the input to the counterfactual [B].
        convergence_delta: by how much the values of an example miss that [B].
        methods: of each example ``"shapley"`` (exact, from all sets of changes), ``"shapley-sampled"`` (from random
            orders), ``"ig"``, or the name of the attribution.
        changed: which features change [B, F].
        names: what the features are called, F of them.
    """

    values: Tensor
    delta: Tensor
    convergence_delta: Tensor
    methods: tuple[str, ...]
    changed: Tensor
    names: tuple[str, ...]

    @property
    def order(self) -> Tensor:
        """The features, the most helpful change first; those that do not change come last [B, F]."""
        return self.values.masked_fill(~self.changed, -torch.inf).argsort(dim=1, descending=True, stable=True)

    def why(self, example: int) -> list[tuple[str, float]]:
        """The changed features of one example and what each did, the most helpful first."""
        first = self.order[example, : int(self.changed[example].sum())].tolist()
        return [(self.names[i], float(self.values[example, i])) for i in first]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        worst = float(self.convergence_delta.abs().max()) if len(self) else 0.0
        return (
            f"ChangeExplanation({len(self)} examples by {', '.join(dict.fromkeys(self.methods))}; off by {worst:.1g})"
        )


def explain_change(
    forward_func: Callable[..., Any],
    x: Any,
    x_cf: Any,
    method: Method = "auto",
    *,
    tol: float = 1e-5,
    walks: int = 16,
    **told: Any,
) -> ChangeExplanation:
    """What each changed feature of counterfactuals of any origin does to the margin of the goal.

    Args:
        forward_func, x, x_cf: the model, the inputs and their counterfactuals.
        method: ``"shapley"``: Shapley values of the changes, exact from all sets of up to twelve, else over random
            orders; ``"ig"``: integrated gradients on the straight way from ``x`` to ``x_cf``, looked at ever more
            closely until they add up; ``"auto"``: Shapley values where they are exact, else integrated gradients, else
            (where there are none) Shapley values again; or an attribution of this library, which is asked about
            ``x_cf`` with ``x`` for its baselines.
        tol: by how much integrated gradients may miss the rise of the margin, as a share of it where it is more than 1.
        walks: random orders, by which Shapley values of more changes are measured.
        told: the goal, the features and the rest, as for :class:`Pairs`.

    Raises:
        ArgumentError: there is no such method.
        ModelError: ``"ig"`` of what has no gradient.

    >>> model = lambda x: torch.stack([torch.full((len(x),), 1.5), x[:, 0] * x[:, 1] + x[:, 1]], 1)
    >>> explain_change(model, torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 0.0]])).why(0)
    [('feature 1', 3.0), ('feature 0', 1.0)]
    """
    if method not in ("auto", "shapley", "ig") and not isinstance(method, Attribution):
        raise ArgumentError(f"method must be 'auto', 'shapley', 'ig' or an attribution, got {method!r}")
    pairs = Pairs(forward_func, x, x_cf, **told)
    if isinstance(method, Attribution):
        values, names = _attributed(pairs, method), [type(method).__name__] * len(pairs)
    else:
        with untouched(forward_func):
            values, names = _shared_out(pairs, method, tol, walks)
    delta = finest(pairs.margin) - finest(pairs.before)
    values = torch.where(pairs.changed, values.to(delta), 0)
    return ChangeExplanation(values, delta, values.sum(1) - delta, tuple(names), pairs.changed, pairs.names)


def _shared_out(pairs: Pairs, method: str, tol: float, walks: int) -> tuple[Tensor, list[str]]:
    many = pairs.n_changed > EXACT
    along = many if method == "auto" else torch.full_like(many, method == "ig")
    values = torch.zeros(pairs.changed.shape, dtype=torch.float64, device=pairs.changed.device)
    if along.any():
        try:
            values = _integrated(pairs, along, tol).to(values)
        except ModelError:
            if method == "ig":
                raise
            along = torch.zeros_like(along)  # tokens, or a black box
    shares = shares_of_change(pairs.f, pairs.features, pairs.after, pairs.changed & ~along[:, None], walks)
    told = {(True, True): "ig", (True, False): "ig", (False, True): "shapley-sampled", (False, False): "shapley"}
    names = [told[a, m] for a, m in zip(along.tolist(), many.tolist(), strict=True)]
    return values + shares.to(values.device), names


def _integrated(pairs: Pairs, rows: Tensor, tol: float) -> Tensor:
    """Integrated gradients of the gates of the changes of some examples (flags [B]): [B, F]."""
    gates = gated(pairs.f, pairs.features, lambda _: pairs.after)
    way = (pairs.changed & rows[:, None]).to(gates.point)
    error = tol * (finest(pairs.margin) - finest(pairs.before)).abs().clamp(min=1)
    return finest(way) * mean_grad_within(gates, torch.zeros_like(way), way, error)[0]


def _attributed(pairs: Pairs, method: Attribution) -> Tensor:
    """What an attribution says of the counterfactual seen from the input, added up for each feature [B, F].

    Raises:
        ArgumentTypeError: it compares with nothing.
    """
    takes, f = signature(method.attribute).parameters, pairs.f
    if "baselines" not in takes:
        raise ArgumentTypeError(
            f"{type(method).__name__} explains a point, and no change: take one that compares with baselines"
        )
    options: dict[str, Any] = {"additional_forward_args": f.args or None, "additional_forward_kwargs": dict(f.kwargs)}
    if "feature_mask" in takes:
        options["feature_mask"] = pairs.features
    found = method.attribute(pairs.counterfactual, baselines=pairs.inputs, target=f.of, **options)
    parts = found.values() if isinstance(found, dict) else (found,) if isinstance(found, Tensor) else found
    flat = torch.cat([finest(t).reshape(len(t), -1) for t in parts], 1)
    values = pairs.features.gather(flat, f.everyone)
    if isinstance(method, PerturbationAttribution):  # which tells each element what the whole feature does
        values = values / pairs.features.gather(torch.ones_like(flat), f.everyone).clamp(min=1)
    return values
