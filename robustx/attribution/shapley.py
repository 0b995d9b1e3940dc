"""Shapley values and their kin: what each feature, or each pair of them, adds to what all of them bring together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import comb, prod
from typing import Any, Literal, Self, get_args
from warnings import warn

import torch
from torch import Tensor
from torch.futures import Future

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.packing import Tensors, finest
from ..engine.probe import Door, Probe
from ..perturb.features import Features, Partition, features_of
from ..perturb.hierarchy import Hierarchy, halves, leaves, nodes
from ..perturb.references import through
from .base import PerturbationAttribution, uneven
from .coalitions import Coalitions
from .noise import drawing
from .partition import partition_values
from .sums import MOST, Estimate, Units, by_sets, by_subsets, everyone, sampled, uniforms

EXACT = 12  # features up to whom the shares of a change are exact
HEAVY = 16  # ... beyond whom asking all their sets is warned about: 65,536 of them
STRATA = 4  # parts of a walk through which stratified sampling takes every feature

Sampling = Literal["permutation", "antithetic", "stratified"]
WALKS = {"permutation": 1, "antithetic": 2, "stratified": 2 * STRATA}  # in a unit


# --- what the score of a set counts -----------------------------------------------------------------------


def shapley_weights(gone: Tensor) -> Tensor:
    """What the score of a set counts in each feature's Shapley value [n, F]; Shapley (1953)."""
    n = gone.shape[1]
    each = _numbers([1 / (n * comb(n - 1, s)) for s in range(n)], gone)
    size = n - gone.sum(1, keepdim=True)
    there, away = (each[(size - s).clamp(0, len(each) - 1)] for s in (1, 0))
    return torch.where(gone > 0, -away, there)


def banzhaf_weights(gone: Tensor) -> Tensor:
    """... in each feature's Banzhaf value [n, F]: every set of the others counts alike; Banzhaf (1965)."""
    return finest(1 - 2 * gone) * 0.5 ** (gone.shape[1] - 1)


def interaction_weights(gone: Tensor) -> Tensor:
    """... in each entry of :func:`interactions` [n, F * F]."""
    n = gone.shape[1]
    pair = _numbers([1 / ((n - 1) * comb(n - 2, s)) for s in range(n - 1)], gone)
    size = n - gone.sum(1)
    of_two, of_one, of_none = (pair[(size - s).clamp(0, len(pair) - 1)][:, None, None] for s in (2, 1, 0))
    neither, either = gone[:, :, None] * gone[:, None], gone[:, :, None] + gone[:, None]
    joint = torch.where(neither > 0, of_none, torch.where(either > 0, -of_one, of_two))
    joint.diagonal(dim1=1, dim2=2).zero_()
    return (joint + torch.diag_embed(shapley_weights(gone) - joint.sum(2) / 2)).flatten(1)


def _numbers(values: list[float], like: Tensor) -> Tensor:
    """In the finest dtype there, and at least one."""
    return torch.tensor(values or [0.0], dtype=finest(like).dtype, device=like.device)


# --- sets that are drawn ----------------------------------------------------------------------------------


class Walks(Units):
    """Features come one by one, in orders [R, G, W, F]: what the score gains then is theirs.

    Castro, Gómez, Tejada (Computers & Operations Research 2009). All walks share their ends.
    """

    def __init__(self, orders: Tensor) -> None:
        self.orders = orders
        self.walks, self.n = orders.shape[2:]
        self.asked = self.walks * (self.n - 1)

    @cached_property
    def place(self) -> Tensor:
        """When each feature comes."""
        return self.orders.argsort(-1)

    def absent(self, i: Tensor, g: Tensor, j: Tensor) -> Tensor:
        w, step = self._where(j)
        return self.place[i, g, w] >= step[:, None]

    def shares(self, i: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        w, step = self._where(j)
        return self._gains(self.orders[i, g, w], step)

    def ends(self, i: Tensor, g: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        orders = self.orders[i, g].flatten(0, 1)
        at = (self._gains(orders, torch.full_like(orders[:, 0], step)) for step in (self.n, 0))
        return tuple((s.reshape(len(i), -1), w.reshape(len(i), -1)) for s, w in at)

    def _where(self, j: Tensor) -> tuple[Tensor, Tensor]:
        """The walk, and how many have come."""
        return j // (self.n - 1), j % (self.n - 1) + 1

    def _gains(self, order: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The score after ``step`` [n] features of ``order`` [n, F] is the last one's gain, less that of the next."""
        around = torch.stack([step - 1, step], 1)
        weights = finest(torch.stack([step > 0, step < self.n], 1)) / self.walks
        return order.gather(1, around.clamp(0, self.n - 1)), weights * weights.new_tensor([1, -1])


class Paths(Walks):
    """Walks on which every pair of features is neighbours once, and the sets where the second of two comes first.

    ``orders`` [R, G, F] are laid along the zigzags of Walecki (in Lucas, Récréations mathématiques II, 1883), which
    cover the complete graph. An odd number of features is joined by one that does nothing. Slots are those of
    :func:`interactions` with that one, N * N.
    """

    def __init__(self, orders: Tensor) -> None:
        self.features = orders.shape[-1]
        n = self.features + self.features % 2
        mute = orders.new_full((*orders.shape[:-1], n - self.features), self.features)
        step = torch.arange(n, device=orders.device)
        zigzag = torch.where(step % 2 > 0, (step + 1) // 2, -(step // 2))
        paths = (torch.arange(n // 2, device=orders.device)[:, None] + zigzag) % n
        super().__init__(torch.cat([orders, mute], -1)[..., paths])
        self.asked *= 2

    def absent(self, i: Tensor, g: Tensor, j: Tensor) -> Tensor:
        swapped, j = j >= self.asked // 2, j % (self.asked // 2)
        w, step = self._where(j)
        place = self.place[i, g, w]
        kept, extra = place < (step - swapped.long())[:, None], place == step[:, None]
        return (~(kept | (extra & swapped[:, None])))[:, : self.features]

    def shares(self, i: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        swapped = j >= self.asked // 2
        slots, weights = super().shares(i, g, j % (self.asked // 2))
        others = torch.arange(weights.shape[1], device=j.device) // 4 != 1  # a swapped set counts for its pair alone
        return slots, weights.masked_fill(swapped[:, None] & others, 0)

    def _gains(self, order: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        own, weights = super()._gains(order, step)
        first = step[:, None] + torch.tensor([-2, -1, 0], device=step.device)
        signs = finest((first >= 0) & (first < self.n - 1)) * weights.new_tensor([1, -1, 1])
        slots, of_pairs = self._pairs(order, first, signs)
        return torch.cat([slots, own * (self.n + 1)], 1), torch.cat([of_pairs, weights], 1)

    def _pairs(self, order: Tensor, first: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        """Shares in the pairs at ``first`` [n, P] and behind it; half of an interaction is not each member's own."""
        first = first.clamp(0, self.n - 2)
        a, b = order.gather(1, first), order.gather(1, first + 1)
        slots = torch.stack([a * self.n + b, b * self.n + a, a * (self.n + 1), b * (self.n + 1)], 2)
        return slots.flatten(1), (signs[..., None] * signs.new_tensor([1, 1, -0.5, -0.5])).flatten(1)


class Halves(Units):
    """Sets in which each feature is there or gone with equal chances, and what they leave; ``gone`` [R, G, F].

    A score counts for every feature at once: the maximum sample reuse of Wang, Jia (AISTATS 2023), section 4.2. A set
    and its complement together have each feature there once and gone once.
    """

    asked = 2

    def __init__(self, gone: Tensor) -> None:
        self.gone = gone

    def absent(self, i: Tensor, g: Tensor, j: Tensor) -> Tensor:
        return self.gone[i, g] ^ j[:, None]

    def shares(self, i: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        gone = self.absent(i, g, j)
        return torch.arange(gone.shape[1], device=gone.device).expand_as(gone), finest(1 - 2 * gone)


Orders = Callable[[range, Tensor], Tensor]
"""(numbers of units, examples [R]) -> an order of the features for each [R, G, F]."""


def random_orders(players: Coalitions, seed: int | None) -> Orders:
    """Orders drawn by key, others for each example; without a seed from torch's generator, the same for all."""
    n = players.features.count
    if seed is None:

        def drawn(units: range, rows: Tensor) -> Tensor:
            return torch.stack([torch.randperm(n) for _ in units]).to(rows.device).expand(len(rows), -1, -1)

        return drawn
    numbers = uniforms(players, seed, "shapley")
    return lambda units, rows: numbers(units, rows, n).argsort(-1)


def nested_orders(players: Coalitions, hierarchy: Hierarchy, seed: int) -> Orders:
    """... by key, such that what stands together in the hierarchy comes together."""
    n, numbers = players.features.count, uniforms(players, seed, "owen")

    def drawn(units: range, rows: Tensor) -> Tensor:
        inner = [node for node in nodes(hierarchy) if not isinstance(node, int)]
        u = numbers(units, rows, sum(map(len, inner))).split([len(node) for node in inner], -1)
        place = torch.full((len(rows), len(units), n), n, device=rows.device)  # what is in no part comes last
        place[..., leaves(hierarchy)] = 0
        for node, mine in zip(inner, u, strict=True):
            sizes = torch.tensor([len(leaves(child)) for child in node], device=rows.device)
            before = ((mine[..., None, :] < mine[..., :, None]) * sizes).sum(-1)  # of those that come earlier
            for child, offset in zip(node, before.unbind(-1), strict=True):
                place[..., leaves(child)] += offset[..., None]
        return place.argsort(-1)

    return drawn


def stratified_orders(players: Coalitions, seed: int | None) -> Orders:
    """Several orders [R, G, W, F] that are random each, but take every feature through all W parts of a walk.

    Each feature comes at a random moment in each walk, and its moments are a Latin hypercube: McKay, Beckman, Conover
    (Technometrics 1979).
    """
    n = players.features.count
    numbers = None if seed is None else uniforms(players, seed, "shapley")

    def drawn(units: range, rows: Tensor) -> Tensor:
        shape = len(rows), len(units), 2, n, STRATA
        u = torch.rand(shape[1:]).to(rows.device) if numbers is None else numbers(units, rows, prod(shape[2:]))
        strata, within = (u if numbers is None else u.reshape(shape)).expand(shape).unbind(2)
        return (strata.argsort(-1) + within).argsort(-2).mT

    return drawn


def mirrored(orders: Tensor) -> Walks:
    """Walks in orders [R, G, W, F] and back: what pairs of features do together is then shared out evenly.

    Castro et al. (2009) with the antithetic variates of Hammersley, Morton (1956).
    """
    return Walks(torch.cat([orders, orders.flip(-1)], 2))


# --- values -----------------------------------------------------------------------------------------------


def shapley_values(players: Coalitions, what: str = "", show: bool = False, rows: Tensor | None = None) -> Tensor:
    """Each feature's mean gain over all orders in which they may come [R, F, ...]; they add up to the rise.

    Shapley (1953), by the 2^F sets and not the F! orders.
    """
    return by_subsets(players, shapley_weights, what, show, rows)


def sampled_shapley(
    players: Coalitions, count: int, sampling: Sampling = "permutation", seed: int | None = None, **options: Any
) -> Estimate:
    """Mean gains over some ``count`` walks, at least a unit of them; they add up to the rise, however few there are.

    Args:
        sampling: plain walks; walks and back; or these, spread as :func:`stratified_orders` says.
        seed: see :func:`random_orders`.
        options: of :func:`sampled`.
    """
    orders = (stratified_orders if sampling == "stratified" else random_orders)(players, seed)

    def draw(units: range, rows: Tensor) -> Units:
        drawn = orders(units, rows)
        drawn = drawn if sampling == "stratified" else drawn[:, :, None]
        return Walks(drawn) if sampling == "permutation" else mirrored(drawn)

    return sampled(players, draw, players.features.count, max(1, count // WALKS[sampling]), **options)


def owen_values(
    players: Coalitions, hierarchy: Hierarchy, what: str = "", show: bool = False, rows: Tensor | None = None
) -> Tensor:
    """Mean gains over all orders in which what stands together comes together [R, F, ...]; they add up to the rise.

    Owen (1977), for unions within unions Winter (International Journal of Game Theory 1989): each feature meets all
    sets of its union's other parts, of that union's neighbours... With pairs it is what PartitionSHAP approaches.

    Raises:
        ValueError: these are more than 65,536 sets.
    """
    n, everything = players.features.count, (1 << players.features.count) - 1
    count = _sets(hierarchy)
    if count > 1 << HEAVY:
        raise ArgumentError(
            f"there are {count} sets in this hierarchy, too many to ask them all; ask for some of them, max_evals=, or "
            "draw orders, n_samples="
        )
    found: dict[int, dict[int, float]] = {everything: {}}  # sets as bits: what each counts for which features

    def split(node: Hierarchy, mine: int, others: dict[int, float]) -> None:
        """``mine`` are the features of the node; ``others`` are the sets that it may meet, and their weights."""
        if isinstance(node, int):
            for there, weight in others.items():
                for side, sign in ((there | mine, weight), (there, -weight)):
                    of = found.setdefault(side, {})
                    of[node] = of.get(node, 0.0) + sign
            return
        parts = [sum(1 << i for i in leaves(part)) for part in node]
        for i, part in enumerate(node):
            met: dict[int, float] = {}
            rest = parts[:i] + parts[i + 1 :]
            for chosen in range(1 << len(rest)):
                more = [p for j, p in enumerate(rest) if chosen >> j & 1]
                weight = 1 / (len(node) * comb(len(rest), len(more)))
                met |= {there | sum(more): weight * w for there, w in others.items()}
            split(part, parts[i], met)

    if n:
        split(hierarchy, everything, {0: 1.0})
    device = players.f.device
    gone = torch.tensor([[~side >> i & 1 for i in range(n)] for side in found], device=device).reshape(-1, n)
    weights = finest(torch.zeros(gone.shape, device=device))
    at = [(k, i) for k, of in enumerate(found.values()) for i in of]
    if at:
        weights[tuple(torch.tensor(at, device=device).T)] = _numbers(
            [w for of in found.values() for w in of.values()], gone
        )
    return by_sets(players, len(found), lambda k: gone[k], lambda k: weights[k], what, show, rows)


def sampled_owen(players: Coalitions, hierarchy: Hierarchy, count: int, seed: int, **options: Any) -> Estimate:
    """... over some ``count`` walks, there and back."""
    orders = nested_orders(players, hierarchy, seed)

    def draw(units: range, rows: Tensor) -> Units:
        return mirrored(orders(units, rows)[:, :, None])

    return sampled(players, draw, players.features.count, max(1, count // 2), **options)


def _sets(hierarchy: Hierarchy) -> int:
    """How many sets of features a hierarchy asks for."""

    def under(node: Hierarchy, met: int) -> int:
        if isinstance(node, int):
            return 0
        return met * ((1 << len(node)) - 2) + sum(under(part, met << (len(node) - 1)) for part in node)

    return 2 + under(hierarchy, 1)


def banzhaf_values(players: Coalitions, what: str = "", show: bool = False, rows: Tensor | None = None) -> Tensor:
    """Each feature's mean gain over all sets of the others [R, F, ...]; they need not add up.

    Banzhaf (1965). Their ranking is the one that noise in the scores disturbs least: Wang, Jia (AISTATS 2023).
    """
    return by_subsets(players, banzhaf_weights, what, show, rows)


def sampled_banzhaf(players: Coalitions, count: int, seed: int, **options: Any) -> Estimate:
    """... over ``count`` sets, drawn by key together with their complements."""
    n, numbers = players.features.count, uniforms(players, seed, "banzhaf")

    def draw(units: range, rows: Tensor) -> Units:
        return Halves((numbers(units, rows, n) < 0.5).long())

    return sampled(players, draw, n, max(1, count // 2), **options)


def interactions(players: Coalitions, what: str = "", show: bool = False, rows: Tensor | None = None) -> Tensor:
    """How much more each pair of features brings together than one by one [R, F * F, ...], symmetric.

    The Shapley interaction index of Grabisch, Roubens (International Journal of Game Theory 1999), eq. 6. The
    diagonal holds what a feature brings by itself: its Shapley value without its half of each interaction, so that it
    and the pairs above it add up to the rise (Lundberg, Erion, Lee, arXiv 1802.03888, section 4).
    """
    return by_subsets(players, interaction_weights, what, show, rows)


def sampled_interactions(players: Coalitions, count: int, seed: int, **options: Any) -> Estimate:
    """... from ``count`` sets of walks on which each pair is neighbours once: F * F sets of features each."""
    n, orders = players.features.count, random_orders(players, seed)
    even = n + n % 2
    found = sampled(players, lambda units, rows: Paths(orders(units, rows)), even * even, count, **options)

    def cut(t: Tensor) -> Tensor:
        return t.reshape(len(t), even, even, *t.shape[2:])[:, :n, :n].flatten(1, 2)

    return Estimate(cut(found.values), cut(found.squares), found.units)


@dataclass(frozen=True, eq=False)
class Chosen(Features):
    """Some features of each example, equally many; the others stay as they are.

    Args:
        of: all features.
        who: which of them, in each example [B, k].
    """

    of: Features
    who: Tensor

    @classmethod
    def alike(cls, of: Features, members: Tensor) -> Iterator[tuple[Tensor, Self]]:
        """Examples that have equally many ``members`` [B, F], and these of each of them; few ones first."""
        counts = members.sum(1)
        for k in counts.unique().tolist():
            rows = (counts == k).nonzero().squeeze(1)
            who = torch.zeros(len(members), k, dtype=torch.long, device=members.device)
            who[rows] = members[rows].nonzero()[:, 1].reshape(len(rows), k)
            yield rows, cls(of, who)

    @property
    def count(self) -> int:
        return self.who.shape[1]

    @property
    def size(self) -> int:
        return self.of.size

    @property
    def shared(self) -> bool:
        return False

    def spread(self, gates: Tensor, rows: Tensor | None = None) -> Tensor:
        who = self.who if rows is None else self.who[rows]
        return self.of.spread(gates.new_zeros(len(gates), self.of.count).scatter(1, who, gates), rows)

    def gather(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.of.gather(values, rows).gather(1, self.who if rows is None else self.who[rows])


def shares_of_change(f: Probe, features: Features, after: Tensors, members: Tensor, walks: int = 16) -> Tensor:
    """What each of some features does when they change to ``after`` [B, F], in float64: it adds up; others do nothing.

    Shapley values, exact for up to twelve ``members`` [B, F] of an example, else from pairs of walks drawn by key.
    """
    shares = torch.zeros(members.shape, dtype=torch.float64)
    for rows, chosen in Chosen.alike(features, members):
        players = Coalitions(f, chosen, lambda _: after)
        if chosen.count <= EXACT:
            found = shapley_values(players, rows=rows)
        else:
            found = sampled_shapley(players, walks, "antithetic", 0, rows=rows).values
        shares[rows.cpu()[:, None], chosen.who[rows].cpu()] = -found.cpu().double()
    return shares


# --- faces ------------------------------------------------------------------------------------------------


class _Shares(PerturbationAttribution):
    """Methods that ask for sets of features; the arguments that they share are explained in ShapleyValueSampling."""

    def _given(self, door: Door, players: Coalitions, values: Tensor, widths: Tensor | None = None) -> Any:
        """Values [B, F, ...] in the form in which they go out, and the half widths of their intervals if there are."""
        return (
            self._form(door, players, values)
            if widths is None
            else tuple(self._form(door, players, v) for v in (values, widths))
        )

    def _form(self, door: Door, players: Coalitions, values: Tensor) -> Any:
        """As the inputs show them: [B, ..., *shape], without the first axis for a whole batch."""
        values = _typed(players, values)
        maps = [m.unflatten(0, values.shape[:-1]) for m in players.shown(values.flatten(0, -2))]
        return door.out([m.squeeze(0) if players.whole and values.ndim > 2 else m for m in maps])


def _typed(players: Coalitions, values: Tensor) -> Tensor:
    """[B, F, ...] as [B, ..., F], in the dtype of the output."""
    like = players.all_there
    return values.movedim(1, -1).to(like.dtype if like.is_floating_point() else torch.get_default_dtype())


def _samples(n_samples: int | None, precision: float | None, confidence: float) -> int | None:
    """``n_samples``, once all three have been checked."""
    if precision is not None and not precision > 0:
        raise ArgumentError(f"precision must be above 0, in units of the score, got {precision!r}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence must lie between 0 and 1, got {confidence!r}")
    if n_samples is None and precision is not None:
        raise ArgumentError("precision is reached by samples; say with how many to begin: n_samples=100")
    return None if n_samples is None else whole("n_samples", n_samples, 1)


class ShapleyValueSampling(_Shares):
    """Each feature's mean gain when features come one by one, in random orders, in the place of their baselines.

    Castro, Gómez, Tejada (Computers & Operations Research 2009); Štrumbelj, Kononenko (JMLR 2010). The values add up to
    score(inputs) - score(baselines), however few the orders. See :func:`sampled_shapley`.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> x, mask = torch.rand(3, 4), torch.tensor([[0, 0, 7, 7]])
    >>> a, half = ShapleyValueSampling(model).attribute(
    ...     x, target=0, feature_mask=mask, precision=0.01, return_intervals=True
    ... )
    >>> torch.allclose(a[:, 0], x[:, :2] @ model.weight[0, :2], atol=1e-6), bool((half <= 0.01).all())
    (True, True)
    """

    @drawing
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        sampling: Sampling = "permutation",
        precision: float | None = None,
        confidence: float = 0.95,
        return_intervals: bool = False,
    ) -> Any:
        """Attributions in the dtype of the output, shaped like the inputs; [B, *outputs, ...] of several outputs.

        A model that answers for the whole batch at once gets [*outputs, ...], and at least one of them.

        Args:
            inputs, baselines, target, additional_forward_args: see :class:`Attribution`; inputs may hold integers. If
                they have different numbers of rows, features give way in all rows at once: [*outputs, ...].
            feature_mask: integers that broadcast to the inputs (a tuple for a tuple); elements with the same id, also
                in different tensors, are one feature. Default: each element is one.
            n_samples: orders; each costs as many rows as there are features, less one.
            perturbations_per_eval: most perturbed copies of the batch in one pass; None fills the memory budget.
            show_progress: draw a bar on standard error.
            seed: draw by key, other orders for each example, which do not depend on its batch. Without it torch's
                global generator draws the orders, for all examples the same.
            sampling: ``"antithetic"``: every second order is the one before, reversed, which shares out evenly what
                pairs of features do together. ``"stratified"``: four orders that take every feature through early and
                late parts of the walk, and their reverses. Of ``n_samples`` as many are drawn as make whole groups.
            precision: go on, example by example, until each value is as sure: half the width of its interval.
                ``n_samples`` orders come first, then half as many again, and so on.
            confidence: of the intervals, each for itself, by Student's distribution of the means of groups.
            return_intervals: return half their widths, too: (attributions, half widths), infinite after one group.
        """
        count = _samples(n_samples, precision, confidence)
        if sampling not in get_args(Sampling):
            raise ArgumentError(f"sampling must be one of {', '.join(map(repr, get_args(Sampling)))}, got {sampling!r}")
        assert count is not None
        if uneven(inputs):
            if return_intervals:
                raise ArgumentError("return_intervals is for inputs with as many rows each; leave it out")
            further: dict[str, Any] = {"n_samples": count, "seed": seed, "sampling": sampling, "precision": precision}
            further |= {"confidence": confidence, "show_progress": show_progress}
            further["additional_forward_kwargs"] = additional_forward_kwargs
            return self._as_one(inputs, baselines, target, additional_forward_args, feature_mask, **further)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f, features_of(feature_mask, f.inputs, door.names), through(baselines))
        options = {"precision": precision, "confidence": confidence, "what": self._title, "show": show_progress}
        found = sampled_shapley(players, count, sampling, seed, **options)
        return self._given(door, players, found.values, found.half(confidence) if return_intervals else None)

    def attribute_future(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """The same for a model that returns a ``torch.futures.Future``: a future of the attributions.

        Raises:
            TypeError: the model returns something else.
        """
        return self._later(*args, **kwargs)


class ShapleyValues(_Shares):
    """Each feature's mean gain over all orders in which features may come: its Shapley value, exactly.

    By the 2^F sets of features; see :func:`shapley_values`. More than 16 features are warned about, more than 30
    refused.

    >>> import torch
    >>> a = ShapleyValues(lambda x: x[:, 0] * x[:, 1]).attribute(torch.tensor([[2.0, 3.0, 5.0]]))
    >>> a.tolist()
    [[3.0, 3.0, 0.0]]
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Attributions as of :class:`ShapleyValueSampling`, with its arguments."""
        if uneven(inputs):
            further = {"show_progress": show_progress, "additional_forward_kwargs": additional_forward_kwargs}
            return self._as_one(inputs, baselines, target, additional_forward_args, feature_mask, **further)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f, features_of(feature_mask, f.inputs, door.names), through(baselines))
        _warn_of(players)
        return self._given(door, players, shapley_values(players, self._title, show_progress))


def _warn_of(players: Coalitions) -> None:
    n = players.features.count
    if HEAVY < n <= MOST:
        warn(
            f"{n} features have {2**n} sets, and each example is asked about all of them; join features by "
            "feature_mask, or draw: ShapleyValueSampling, n_samples=",
            stacklevel=4,
        )


class OwenValues(_Shares):
    """Shapley values where features form unions, and unions larger ones: what stands together comes together.

    Owen (1977); Winter (1989). Over superpixels that are merged by likeness the sets that are asked look like pictures,
    and there are few: F * F or so instead of 2^F. See :func:`owen_values`.

    >>> import torch
    >>> f = lambda x: x[:, 0] * x[:, 1] * x[:, 2]
    >>> OwenValues(f).attribute(torch.ones(1, 3), hierarchy=((0, 1), 2)).tolist()
    [[0.25, 0.25, 0.5]]
    """

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        hierarchy: Hierarchy | list[Hierarchy] | None = None,
        n_samples: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        precision: float | None = None,
        confidence: float = 0.95,
        return_intervals: bool = False,
        max_evals: int | None = None,
    ) -> Any:
        """Attributions as of :class:`ShapleyValueSampling`, with its arguments.

        Args:
            hierarchy: nested tuples of the ids of ``feature_mask`` (or the numbers of elements), such as
                ((0, 1), (2, 3)), as of :func:`robustx.perturb.superpixel_hierarchy`; a list has one for each example.
                Default: neighbours in the order of ids, cut in halves again and again.
            n_samples: orders that are drawn by key, pairs of an order and its reverse. Default: all, exactly.
            max_evals: sets of each example to ask for at most, at least 2: unions are taken apart where most is at
                stake, and what is left of them is shared out equally; see :func:`partition_values`.
        """
        count = _samples(n_samples, precision, confidence)
        if max_evals is not None and (whole("max_evals", max_evals, 2), count, return_intervals)[1:] != (None, False):
            raise ArgumentError("max_evals draws nothing; leave n_samples and return_intervals out, or max_evals")
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f, features_of(feature_mask, f.inputs, door.names), through(baselines))
        options = {"precision": precision, "confidence": confidence, "what": self._title, "show": show_progress}
        shape = players.examples, players.features.count, *players.all_there.shape[1:]
        values, widths = (finest(players.all_there.new_zeros(shape)) for _ in range(2))
        for tree, rows in _trees(players, hierarchy):
            if count is None:
                values[rows] = (
                    owen_values(players, tree, self._title, show_progress, rows)
                    if max_evals is None
                    else partition_values(players, tree, max_evals, self._title, show_progress, rows)
                )
                continue
            found = sampled_owen(players, tree, count, seed, rows=rows, **options)
            values[rows], widths[rows] = found.values, found.half(confidence)
        return self._given(door, players, values, widths if return_intervals else None)


def _trees(players: Coalitions, hierarchy: Any) -> Iterator[tuple[Hierarchy, Tensor]]:
    """Hierarchies of the places of features, 0 to F - 1, and the examples that each is of.

    Raises:
        ValueError: they do not name each feature of these once.
    """
    features, rows = players.features, everyone(players)
    ids = features.known.tolist() if isinstance(features, Partition) else list(range(features.count))
    place = {name: i for i, name in enumerate(ids)}

    def placed(node: Hierarchy) -> Hierarchy:
        return place[node] if isinstance(node, int) else tuple(map(placed, node))

    trees = hierarchy if isinstance(hierarchy, list) else [halves(ids) if hierarchy is None else hierarchy]
    if isinstance(hierarchy, list) and len(trees) != len(rows):
        raise ArgumentError(f"hierarchy must have one entry for each of the {len(rows)} examples, got {len(trees)}")
    for tree, of in zip(trees, rows.split(1) if isinstance(hierarchy, list) else [rows], strict=True):
        named = leaves(tree)
        there = features.gather(torch.ones(len(of), features.size, device=of.device), of).any(0).tolist()
        missing = {name for name, held in zip(ids, there, strict=True) if held} - set(named)
        if missing or set(named) - set(ids) or len(set(named)) < len(named):
            raise ArgumentError(
                f"hierarchy must name each of the {len(ids)} features once; it lacks {_some(missing)}, and "
                f"{_some(set(named) - set(ids))} of what it names are none"
            )
        yield placed(tree), of


def _some(names: set[int]) -> str:
    return ", ".join(map(str, sorted(names)[:6])) + (", ..." if len(names) > 6 else "") or "nothing"


class _AllOrSome(_Shares):
    """Methods that ask all sets of features, or draw some by key."""

    @guarded
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        precision: float | None = None,
        confidence: float = 0.95,
        return_intervals: bool = False,
    ) -> Any:
        """In the dtype of the output; arguments are those of :class:`ShapleyValueSampling`.

        Args:
            n_samples: how many are drawn, see the class. Default: all 2^F sets are asked, and the values are exact.
        """
        count = _samples(n_samples, precision, confidence)
        door, f = self._bind(inputs, target, additional_forward_args, additional_forward_kwargs, perturbations_per_eval)
        players = Coalitions(f, features_of(feature_mask, f.inputs, door.names), through(baselines))
        if count is None:
            _warn_of(players)
            values = self._exactly(players, self._title, show_progress)
            return self._given(door, players, values, torch.zeros_like(values) if return_intervals else None)
        options = {"precision": precision, "confidence": confidence, "what": self._title, "show": show_progress}
        found = self._drawn(players, count, seed, **options)
        return self._given(door, players, found.values, found.half(confidence) if return_intervals else None)

    _exactly: Callable[..., Tensor]
    _drawn: Callable[..., Estimate]


class BanzhafValues(_AllOrSome):
    """Each feature's mean gain over all sets of the others, each as likely; shaped like the inputs, need not add up.

    Banzhaf (1965); Wang, Jia (AISTATS 2023). ``n_samples`` sets are drawn together with their complements, and each
    says something of every feature. See :func:`banzhaf_values`.

    >>> import torch
    >>> f = lambda x: x[:, 0] * x[:, 1] * x[:, 2]
    >>> BanzhafValues(f).attribute(torch.ones(1, 3)).tolist()
    [[0.25, 0.25, 0.25]]
    """

    _exactly, _drawn = staticmethod(banzhaf_values), staticmethod(sampled_banzhaf)


class ShapleyInteractions(_AllOrSome):
    """How much more two features bring together than one by one: for each example (and output) a matrix [F, F].

    Grabisch, Roubens (1999). Features stand in the order of their ids. The diagonal holds what each brings by itself;
    with the pairs above it, it adds up to score(inputs) - score(baselines). ``n_samples`` is how often each pair is
    looked at, at the price of F * F sets. See :func:`interactions`.

    >>> import torch
    >>> f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]
    >>> ShapleyInteractions(f).attribute(torch.ones(1, 3))[0, 0].tolist()
    [0.0, 1.0, 0.0]
    """

    _exactly, _drawn = staticmethod(interactions), staticmethod(sampled_interactions)

    def _form(self, door: Door, players: Coalitions, values: Tensor) -> Tensor:
        n = players.features.count
        values = _typed(players, values)
        matrices = values.reshape(*values.shape[:-1], n, n)
        return matrices.squeeze(0) if players.whole and matrices.ndim > 3 else matrices
