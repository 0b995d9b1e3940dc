"""Coalitions: what the score is when some features are there and the others have given way."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import torch
from torch import Tensor

from ..engine.packing import Packing, Tensors
from ..engine.patches import Patches
from ..engine.probe import Probe
from ..engine.progress import progress
from ..engine.randomness import identities
from ..engine.scores import Each, Everything, OutputError
from ..perturb.features import Features
from ..perturb.gates import gated
from ..perturb.references import Giver, Reference

Absent = Callable[[Tensor, Tensor], Tensor]
"""(numbers of sets [n], examples [n]) -> how far each feature has given way, 1 wholly and 0 not at all [n, F].

Answers for the whole batch are those of example 0.
"""


@dataclass(frozen=True)
class Answers:
    """Scores of some sets: their numbers [n], the examples [n], what was absent [n, F] and the scores [n, ...]."""

    sets: Tensor
    rows: Tensor
    absent: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Coalitions:
    """Asks for any sets of features, batch by batch; what the methods of this kind share.

    A model that answers for the whole batch at once, with a number or several, is asked set by set; its answers then
    count as those of one example.

    Args:
        f: the probe; for several numbers of each example, or of the whole batch, its score is ``Everything()``.
        features: the players.
        reference: what they give way to.
    """

    f: Probe
    features: Features
    reference: Reference | Callable[[Probe], Giver]

    @cached_property
    def gates(self) -> Probe:
        """The probe at the gates of the features."""
        return gated(self.f, self.features, self.reference)

    @cached_property
    def _begin(self) -> tuple[Tensor, bool]:
        try:
            return self.f.score, False
        except OutputError as e:
            out = self.f.outputs() if isinstance(self.f.of, Everything) and self.features.shared else None
            if not isinstance(out, Tensor | int | float):
                raise e from None
            return _tensor(out)[None], True

    @property
    def whole(self) -> bool:
        """Whether the model answers for the whole batch at once; never where one number of each example was named."""
        return isinstance(self.f.of, Everything) and self._begin[1]

    @property
    def all_there(self) -> Tensor:
        """Scores with all features there [B, ...]; [1, ...] if the model answers for the whole batch."""
        return self._begin[0]

    @property
    def examples(self) -> int:
        """B; 1 if the model answers for the whole batch."""
        return 1 if self.whole else self.f.examples

    @property
    def groups(self) -> Sequence[Tensor | None]:
        """Examples that are best asked about together, one group after the other; None are all."""
        return self.f.model.groups if isinstance(self.f.model, Patches) else [None]

    def ask(
        self, count: int | None, absent: Absent, what: str = "", show: bool = False, rows: Tensor | None = None
    ) -> Iterable[Answers]:
        """The scores of ``count`` sets for each example (of ``rows`` alone, if given), set after set, as they come.

        None is a single set for each of the rows, where examples may come again: the k-th set for the k-th row.

        The first batch is asked at once. It begins with :attr:`all_there` if nobody has asked for that: in a pass of
        its own, a row takes as long as several.
        """
        answers = (self._one_by_one if self.whole else self._together)(count, absent, what, show, rows)
        return chain(list(islice(answers, 1)), answers)

    def _one_by_one(
        self, count: int | None, absent: Absent, what: str, show: bool, rows: Tensor | None
    ) -> Iterator[Answers]:
        g = self.gates
        asked = 1 if rows is None else len(rows)
        count = asked if count is None else count if asked else 0
        first = torch.zeros(1, dtype=torch.long, device=g.device)
        queries = (
            (self._dtyped(absent(k, first)).expand(g.examples, -1), g.everyone)
            for k in (first + i for i in range(count))
        )
        with progress(count, what, show) as more:
            for number, (gates, out) in enumerate(g.passes(queries)):
                yield Answers(first + number, first, gates[:1], _tensor(out)[None])
                more(1)

    def _together(
        self, count: int | None, absent: Absent, what: str, show: bool, rows: Tensor | None
    ) -> Iterator[Answers]:
        g = self.gates
        asked = g.everyone if rows is None else rows
        n = len(asked) if count is None else count * len(asked)
        if isinstance(self.f.model, Patches):  # which looks at the examples before anything else
            _ = self._begin
        first = 0 if not n or isinstance(self.f.of, Everything) or "_begin" in self.__dict__ else g.examples
        begin: list[Tensor] = []  # the first queries are the examples as they are
        out: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}  # of the batches that are under way

        def query(part: slice) -> tuple[Tensor, Tensor]:
            ahead = g.everyone[:first][part]
            k = torch.arange(max(part.start - first, 0), max(part.stop - first, 0), device=g.device)
            sets, of = k if count is None else k // max(len(asked), 1), asked[k % max(len(asked), 1)]
            there = torch.zeros(len(ahead), self.features.count, dtype=g.packing.dtype, device=g.device)
            gates = self._dtyped(absent(sets, of)) if len(of) else there[:0]
            out[part.start, part.stop] = sets, of, gates
            return torch.cat([there, gates]), torch.cat([ahead, of])

        with progress(n, what, show) as more:
            try:
                for part, values in g.values(first + n, query):
                    sets, of, gates = out.pop((part.start, part.stop))
                    ahead = part.stop - part.start - len(of)
                    if ahead:
                        begin.append(values[:ahead])
                    if ahead and part.stop >= first:
                        self.__dict__["_begin"] = torch.cat(begin), False
                    if len(of):
                        yield Answers(sets, of, gates, values[ahead:])
                    more(len(of))
            except OutputError as e:
                if "_begin" not in self.__dict__:
                    raise
                # as many numbers for the whole batch as there are examples looked like theirs
                raise OutputError(f"{e}; if it answers for the whole batch, set perturbations_per_eval=1") from None

    def shown(self, values: Tensor) -> Tensors:
        """Values of features [N, F] as their elements show them [N, *shape] each; equally many rows of each example."""
        each = len(values) // max(self.examples, 1)
        rows = torch.arange(self.examples, device=values.device).repeat_interleave(each)
        return Packing.of(self.f.here).split(self.features.shown(values, rows))

    def maps(self, values: Tensor) -> Tensors:
        """Values [B, ..., F] as elements show them: one map a number [B * M, ...]; for several scores [B, T, ...]."""
        maps = self.shown(values.flatten(0, -2))
        return tuple(m.unflatten(0, values.shape[:-1]) for m in maps) if isinstance(self.f.of, Each) else maps

    @cached_property
    def names(self) -> list[str]:
        """A name for each example, made of all that it holds: for draws by key. One for a whole batch."""
        return identities(*(t.reshape(1, -1) if self.whole else t for t in self.f.inputs))

    def _dtyped(self, gates: Tensor) -> Tensor:
        return gates.to(self.gates.packing.dtype)


def alone(count: int) -> Absent:
    """Sets of one feature each, of ``count``: number k is feature k."""
    return lambda k, rows: torch.zeros(len(k), count, device=k.device).scatter(1, k[:, None], 1)


def _tensor(out: Tensor | int | float) -> Tensor:
    return torch.as_tensor(out, dtype=None if isinstance(out, Tensor) else torch.float64)
