"""What suffices: small sets of features that keep a score, or a decision, whatever becomes of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, whole
from ..engine.guard import guarded
from ..engine.packing import Tensors, finest, flat
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise
from ..engine.scores import Everything, Output
from ..perturb.features import Features, features_of
from ..perturb.references import Giver, distribution, through
from .coalitions import Coalitions

# --- sufficient input subsets -----------------------------------------------------------------------------


def back_selection(players: Coalitions, alive: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Features in the order in which they are given up, always the one without which the score is highest.

    Carter, Mueller, Jain, Gifford (AISTATS 2019), algorithm 2; all candidates of all examples in one batch.

    Args:
        players: who gives way to what; the score is one number for each example.
        alive: [n, F] the features to begin with, the same number at least one in each row.
        rows: the examples [n].

    Returns:
        the order [n, R], where R is the largest number alive, and the scores after each of them was given up; rows
        with fewer are filled up in front, with -1 and NaN.
    """
    alive, most = alive.clone(), int(alive.sum(1).max())
    order = torch.full((len(rows), most), -1, device=rows.device)
    scores = torch.full((len(rows), most), torch.nan, dtype=torch.float64, device=rows.device)
    place = torch.full((players.examples,), -1, device=rows.device).scatter(0, rows, torch.arange(len(rows)).to(rows))
    for step in range(most):
        left = most - step
        some = (alive.sum(1) == left).nonzero().flatten()  # the others join when as few are left of the first
        members = alive[some].nonzero()[:, 1].reshape(len(some), left)
        within = torch.full_like(place, -1).scatter(0, rows[some], torch.arange(len(some)).to(rows))

        def absent(k: Tensor, of: Tensor, members: Tensor = members, within: Tensor = within) -> Tensor:
            gone = (~alive[place[of]]).float()
            return gone.scatter(1, members[within[of], k][:, None], 1)

        found = torch.empty(len(some), left, dtype=torch.float64, device=rows.device)
        for a in players.ask(left, absent, rows=rows[some]):
            found[within[a.rows], a.sets] = a.values.to(found)
        best = found.max(1)
        chosen = members.gather(1, best.indices[:, None]).squeeze(1)
        order[some, step], scores[some, step] = chosen, best.values
        alive[some, chosen] = False
    return order, scores


def sufficient_subsets(players: Coalitions, threshold: Tensor, most: int) -> list[list[list[int]]]:
    """For each example disjoint sets of features, each of which alone keeps the score at ``threshold`` [B] or above.

    Carter et al., algorithms 1 and 3. No single feature of a set can be left out: without it the score is below the
    threshold. Stops when what is left does not suffice, or at ``most`` sets.
    """
    b, f = players.examples, players.features.count
    found: list[list[list[int]]] = [[] for _ in range(b)]
    alive = torch.ones(b, f, dtype=torch.bool, device=threshold.device)
    for _ in range(most):
        scores = torch.cat([a.values for a in players.ask(1, lambda k, rows: (~alive[rows]).float())] or [threshold])
        rows = ((scores.to(threshold) >= threshold) & alive.any(1)).nonzero().flatten()
        if not len(rows):
            break
        order, left = back_selection(players, alive[rows], rows)
        for i, row in enumerate(rows.tolist()):
            enough = (left[i] >= threshold[row]).nonzero().flatten()  # NaN, of no set, is never enough
            first = int(enough[-1]) + 1 if len(enough) else int((order[i] < 0).sum())
            subset = order[i, first:].tolist()
            found[row].append(sorted(subset))
            alive[row, subset] = False
            if not subset:  # nothing at all suffices
                alive[row] = False
    return found


@dataclass(frozen=True)
class Subsets:
    """For each example its sufficient subsets, best first, as numbers of features in the order of ascending id.

    ``maps`` has the form of the inputs: the number of the subset that an element is in, from 1; 0 for none.
    """

    features: list[list[list[int]]]
    maps: Any


class SufficientInputSubsets:
    """Small sets of features that suffice for a score, whatever the others give way to; black boxes are welcome.

    Carter, Mueller, Jain, Gifford (AISTATS 2019).

    Args:
        forward_func: the model, any callable.

    >>> import torch
    >>> found = SufficientInputSubsets(lambda x: x.amax(1)).find(torch.tensor([[0.0, 9.0, 1.0, 8.0]]), threshold=5.0)
    >>> found.features, found.maps
    ([[[1], [3]]], tensor([[0, 1, 0, 2]]))
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    @guarded
    def find(
        self,
        inputs: Any,
        threshold: float | Tensor,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        most: int = 10,
        perturbations_per_eval: int | None = None,
        *,
        additional_forward_kwargs: dict[str, Any] | None = None,
    ) -> Subsets:
        """The sufficient subsets of each example; none where its own score is below the threshold.

        About F^2 / 2 scores are asked for each example and subset.

        Args:
            inputs, baselines, target, additional_forward_args, feature_mask, perturbations_per_eval: see
                :class:`FeatureAblation`; the target picks one number for each example.
            threshold: what the score must reach, one number or one for each example [B].
            most: subsets of an example.
        """
        door = Door.open(inputs)
        f = door.probe(self.forward_func, Output(target), additional_forward_args, additional_forward_kwargs)
        _cap(f, perturbations_per_eval)
        features = features_of(feature_mask, f.inputs, door.names)
        reach = torch.as_tensor(threshold, dtype=torch.float64, device=f.device)
        if reach.shape not in ((), (f.examples,)):
            raise ArgumentError(
                f"threshold must be one number or one for each example [{f.examples}], got shape {tuple(reach.shape)}"
            )
        players = Coalitions(f, features, through(baselines))
        found = sufficient_subsets(players, reach.expand(f.examples), whole("most", most, 1))
        numbers = torch.zeros(f.examples, features.count, dtype=torch.long, device=f.device)
        for row, subsets in enumerate(found):
            for i, subset in enumerate(subsets):
                numbers[row, subset] = i + 1
        return Subsets(found, door.out(players.shown(numbers)))


def _cap(f: Probe, copies: int | None) -> None:
    if copies is not None:
        f.pace.limit = whole("perturbations_per_eval", copies, 1) * max(f.examples, 1)


# --- anchors ----------------------------------------------------------------------------------------------

MOST_SAMPLES = 20_000  # of one rule whose precision is too near the threshold to be told from it


@dataclass
class Rule:
    """Features that stay, and how often the decision stayed with them."""

    features: tuple[int, ...]
    asked: int = 0
    kept: int = 0

    @property
    def mean(self) -> float:
        return self.kept / max(self.asked, 1)

    def bound(self, level: float, upper: bool) -> float:
        """The farthest mean whose Kullback-Leibler divergence from what was seen, times the samples, is ``level``."""
        near, far = self.mean, float(upper)
        for _ in range(40):
            middle = (near + far) / 2
            if self.asked * _divergence(self.mean, middle) > level:
                far = middle
            else:
                near = middle
        return near


def _divergence(p: float, q: float) -> float:
    """Of two Bernoulli distributions."""
    q = min(max(q, 1e-15), 1 - 1e-15)
    return sum(a * log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


Sampling = Callable[[Sequence[Rule]], None]
"""Asks for some more samples of each rule, and counts them."""


def best_rules(rules: Sequence[Rule], top: int, sample: Sampling, tolerance: float, delta: float) -> list[Rule]:
    """The ``top`` rules of the highest precision, to within ``tolerance``, with probability 1 - ``delta``.

    KL-LUCB (Kaufmann, Kalyanakrishnan, COLT 2013), algorithm 1.
    """
    sample(rules)
    turn = 1
    while True:
        ranked = sorted(rules, key=lambda r: -r.mean)
        level = log(405.5 * len(rules) * turn**1.1 / delta)
        if len(ranked) <= top:
            return ranked
        weakest = min(ranked[:top], key=lambda r: r.bound(level, upper=False))
        rival = max(ranked[top:], key=lambda r: r.bound(level, upper=True))
        if rival.bound(level, upper=True) - weakest.bound(level, upper=False) <= tolerance:
            return ranked[:top]
        sample((weakest, rival))
        turn += 1


def anchor(
    count: int,
    sample: Sampling,
    coverage: Callable[[Rule], float],
    threshold: float,
    delta: float,
    tolerance: float,
    beam: int,
) -> Rule:
    """The rule of the fewest of ``count`` features whose precision is at least ``threshold``, and of these the one of
    the largest coverage.

    Ribeiro, Singh, Guestrin (AAAI 2018), algorithm 2: a beam search; precisions are held above the threshold by a
    lower bound that fails with probability ``delta`` at most. All features together always are such a rule.
    """
    kept = [Rule(())]
    sample(kept)
    level = log((1 + max(beam - 1, 0) * count) / delta)
    while True:
        valid = [r for r in kept if _proven(r, sample, threshold, level)]
        if valid or len(kept[0].features) == count:
            return max(valid or kept, key=coverage)
        longer = {tuple(sorted((*r.features, i))) for r in kept for i in range(count) if i not in r.features}
        kept = best_rules([Rule(r) for r in sorted(longer)], beam, sample, tolerance, delta)


def _proven(rule: Rule, sample: Sampling, threshold: float, level: float) -> bool:
    while rule.bound(level, upper=True) >= threshold and rule.asked < MOST_SAMPLES:
        if rule.bound(level, upper=False) >= threshold:
            return True
        sample((rule,))
    return False


@dataclass(frozen=True)
class Anchor:
    """Features that hold a decision: numbers of features in the order of ascending id.

    ``precision`` is the share of samples with the same decision, ``at_least`` its lower bound, ``coverage`` the share
    of all samples that the rule speaks of.
    """

    features: list[int]
    precision: float
    at_least: float
    coverage: float
    decision: int


class Anchors:
    """Rules that hold a decision: if these features stay, it is the same with high probability, whatever the others do.

    Ribeiro, Singh, Guestrin (AAAI 2018). Black boxes are welcome.

    Args:
        forward_func: the model, any callable.

    >>> import torch
    >>> model = lambda x: torch.stack([-(x[:, 0] * x[:, 2]), x[:, 0] * x[:, 2] - 0.5], 1)
    >>> [rule] = Anchors(model).find(torch.ones(1, 4))
    >>> rule.features, rule.precision
    ([0, 2], 1.0)
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    @guarded
    def find(
        self,
        inputs: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        threshold: float = 0.95,
        delta: float = 0.05,
        tolerance: float = 0.1,
        beam: int = 2,
        data: Any = None,
        perturbations_per_eval: int | None = None,
        *,
        decide: Callable[[Tensor], Tensor] | None = None,
        additional_forward_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> list[Anchor]:
        """A rule for each example.

        Args:
            inputs, baselines, additional_forward_args, feature_mask: see :class:`FeatureAblation`.
            threshold: the precision that a rule must have.
            delta: the probability with which its bound may fail.
            tolerance: by how much the best rules of a length may be missed.
            beam: how many of them are made longer.
            data: rows [M, ...] for each input, of which one is drawn for each sample: features that do not stay take
                their values there. Without, each of these gives way to the baseline with probability one half. A rule
                covers the rows that agree with the example: equal integers, floats in the same quarter of the data.
            perturbations_per_eval: most samples in one pass.
            decide: the decision, from the output [N, ...] to integers [N]. Default: the class of the highest score.
            seed: of the draws, which depend on an example's content and not on its batch.

        Raises:
            ArgumentError: an argument is out of its range.
        """
        for name, value in (("threshold", threshold), ("delta", delta), ("tolerance", tolerance)):
            if not 0 < value < 1:
                raise ArgumentError(f"{name} must be above 0 and below 1, got {value!r}")
        door = Door.open(inputs)
        f = door.probe(self.forward_func, Everything(), additional_forward_args, additional_forward_kwargs)
        _cap(f, perturbations_per_eval)
        features = features_of(feature_mask, f.inputs, door.names)
        rows = None if data is None else distribution(data, f)
        samples = _Samples(f, features, through(baselines), rows, decide or _highest, seed)
        found = []
        for row in range(f.examples):
            rule = anchor(
                features.count,
                lambda rules, row=row: samples.count(rules, row),  # type: ignore[misc]  # of a default no type is inferred
                lambda rule, row=row: samples.coverage(rule, row),  # type: ignore[misc]  # likewise
                threshold,
                delta,
                tolerance,
                whole("beam", beam, 1),
            )
            low = rule.bound(log((1 + (beam - 1) * features.count) / delta), upper=False)
            decision = int(samples.decisions[row])
            found.append(Anchor(list(rule.features), rule.mean, low, samples.coverage(rule, row), decision))
        return found


def _highest(out: Tensor) -> Tensor:
    if out.ndim != 2 or out.shape[1] < 2:
        raise ArgumentError(
            f"an output of shape {tuple(out.shape)} has no classes [N, K] to decide between; say by decide= what is "
            "decided, such as lambda out: out > 0"
        )
    return out.argmax(1)


class _Samples:
    """Draws samples of rules by key, asks for them together, and counts which keep an example's decision."""

    def __init__(
        self,
        f: Probe,
        features: Features,
        reference: Any,
        data: Tensors | None,
        decide: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.features, self.data, self.decide, self.seed = features, data, decide, seed
        self.players = Coalitions(f, features, reference if data is None else self._background)
        self.decisions = decide(self.players.all_there).long() if f.examples else f.everyone
        self.drawn = f.everyone  # rows of the data, for the batch that is out
        self.agree = None if data is None else _agreeing(f, features, data)

    def _background(self, f: Probe) -> Giver:
        assert self.data is not None
        data = self.data
        return lambda gates, rows: tuple(t[self.drawn] for t in data)

    def count(self, rules: Sequence[Rule], row: int, each: int = 100) -> None:
        """Asks for ``each`` more samples of the rules for an example."""
        players, n = self.players, self.features.count
        like = finest(torch.zeros(0, device=players.f.device))
        stays = torch.zeros(len(rules), n, dtype=torch.bool, device=like.device)
        for i, r in enumerate(rules):
            stays[i, list(r.features)] = True

        def absent(k: Tensor, rows: Tensor) -> Tensor:
            names = [
                f"{players.names[row]}/{rules[i // each].features}/{rules[i // each].asked + i % each}"
                for i in k.tolist()
            ]
            noise = Noise(self.seed, "anchors", names)
            if self.data is None:
                return ((noise.uniform(n, like) < 0.5) & ~stays[k // each]).to(like)
            self.drawn = (noise.uniform(1, like).squeeze(1) * len(self.data[0])).long()
            return (~stays[k // each]).to(like)

        kept = torch.zeros(len(rules), dtype=torch.long, device=like.device)
        for a in players.ask(len(rules) * each, absent, rows=torch.tensor([row], device=like.device)):
            kept.index_add_(0, a.sets // each, (self.decide(a.values).long() == self.decisions[row]).long())
        for r, more in zip(rules, kept.tolist(), strict=True):
            r.asked, r.kept = r.asked + each, r.kept + more

    def coverage(self, rule: Rule, row: int) -> float:
        """The share of samples in which the features of the rule would have stayed by themselves."""
        if self.agree is None:
            return float(0.5 ** len(rule.features))
        return float(self.agree[row][:, list(rule.features)].all(1).double().mean())


def _agreeing(f: Probe, features: Features, data: Tensors) -> list[Tensor]:
    """For each example, in which features each row of the data agrees with it [M, F]."""
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=f.device)

    def binned(t: Tensor, rows: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return flat(t)
        edges = torch.quantile(flat(rows).double(), quarters, dim=0)  # [3, D]
        return (flat(t).double()[:, None] > edges).sum(1)

    theirs = torch.cat([binned(t, t) for t in data], 1)
    ours = torch.cat([binned(x, t) for x, t in zip(f.inputs, data, strict=True)], 1)
    found = []
    for row in range(f.examples):
        differs = (theirs != ours[row]).double()
        found.append(features.gather(differs, torch.full((len(theirs),), row, device=f.device)) == 0)
    return found
