"""Memory: how many rows go through the model at once."""

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from .checks import ArgumentError
from .guard import Shared

T = TypeVar("T")

PILOT = 4, 128  # rows of the first pass, which is weighed: fewest and most
PILOT_BYTES = 3 << 17  # and what its inputs weigh at most in between; networks make some hundred times as much of them
PASSING = 4  # times as much may come of a pass that keeps nothing for a way back, as little of it is there at once
MOST = 16_384  # rows that go at once however light they are
CPU_BUDGET = 1 << 27  # bytes; fixed, so that a run does not depend on what else the machine does, and near the caches


@dataclass
class Pace:
    """Splits queries into batches that fit the memory budget; halves them when memory runs out.

    The first batch of each kind of work has 4 rows, or up to 128 of small inputs, and is weighed: the bytes of
    everything that is made in it, from the query to the gradient, bound what is held at once. Later batches fill
    the budget, all of them as evenly as can be; where two batches do, the first is one half. What is decided depends
    on the model, the shapes and the device's size alone, never on what is free just now.

    Args:
        limit: most rows in one pass (``internal_batch_size`` and ``perturbations_per_eval`` arrive here).
        budget: bytes for the activations of one pass; None: 128 MiB on a CPU, a quarter of a GPU's memory.
    """

    limit: int | None = None
    budget: int | None = None
    _rows: dict[Hashable, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and (not isinstance(self.limit, int) or self.limit < 1):
            raise ArgumentError(
                f"a batch size must be a whole number of at least 1, got {self.limit!r}; None chooses it"
            )

    def batches(
        self, n: int, device: torch.device, work: Callable[[slice], T], kind: Hashable = None, size: int = PILOT_BYTES
    ) -> Iterator[tuple[slice, T]]:
        """``work`` done on consecutive slices of ``range(n)``, in order. Work of one ``kind`` is equally heavy.

        Args:
            size: bytes of an example's inputs.

        Raises:
            MemoryError: a single row does not fit.
        """
        start, pilot = 0, self._first(n, size)
        while start < n:
            most, left = min(self._rows.get(kind, pilot), self.limit or n), n - start
            rows = -(-left // -(-left // most)) if kind in self._rows else min(most, left)  # no small one is left over
            part = slice(start, start + rows)
            weigh = kind not in self._rows and rows < n
            result, short = self._attempt(work, part, device, kind, weigh)
            if short is None:
                start += rows
                yield part, result
                del result  # what came of a batch is gone before the next one, here and wherever it is handed on
            elif rows == 1:
                raise MemoryError(f"one row through the model does not fit into memory on {device}: {short}")
            else:
                self._rows[kind] = rows // 2
                _SHORT.get([]).append(rows // 2)

    def parts(self, n: int, size: int) -> list[slice]:
        """Slices of ``range(n)`` for work that is done elsewhere, where nobody can weigh it: all like first batches."""
        rows = min(self._first(n, size), self.limit or n)
        return [slice(i, min(i + rows, n)) for i in range(0, n, max(rows, 1))]

    def room(self, device: torch.device) -> int:
        """The budget in bytes."""
        return self.budget or _budget(device)

    def most(self, device: torch.device, size: int) -> int:
        """How many times so many bytes fit the budget, once at least."""
        return max(1, self.room(device) // max(size, 1))

    @staticmethod
    def _first(n: int, size: int) -> int:
        most = min(max(PILOT[0], PILOT_BYTES // max(size, 1)), PILOT[1])
        return -(-n // 2) if most < n < 2 * most else most

    def _attempt(
        self, work: Callable[[slice], T], part: slice, device: torch.device, kind: Hashable, weigh: bool
    ) -> tuple[Any, str | None]:
        try:
            if not weigh:
                return work(part), None
            with eagerly(), _Scales() as scales:
                result = work(part)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            return None, str(e).split("\n")[0]  # the exception, and the graph it holds, end here
        self._rows[kind] = min(MOST, self.most(device, scales.bytes // (part.stop - part.start)))
        return result, None


def out_of_memory(e: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    told = ("out of memory", "can't allocate memory")
    return isinstance(e, MemoryError | torch.OutOfMemoryError) or any(t in str(e) for t in told)


_SHORT: ContextVar[list[int]] = ContextVar("short")


@contextmanager
def shortages() -> Iterator[list[int]]:
    """Collects to how many rows batches were cut meanwhile because memory ran out."""
    token = _SHORT.set([])
    try:
        yield _SHORT.get()
    finally:
        _SHORT.reset(token)


def _budget(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else CPU_BUDGET


_EAGER = Shared(lambda: torch.compiler.set_stance("force_eager"))


def eagerly() -> AbstractContextManager[None]:
    """Compiled models run uncompiled meanwhile, if there can be any: what is fused is neither weighed nor watched."""
    return _EAGER.on() if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def unweighed() -> Iterator[None]:
    """What is made meanwhile counts for nothing: work that minds its memory by itself."""
    scales = [m for m in _get_current_dispatch_mode_stack() if isinstance(m, _Scales)]
    before = [s.bytes for s in scales]
    try:
        yield
    finally:
        for s, weight in zip(scales, before, strict=True):
            s.bytes = weight


class _Scales(TorchDispatchMode):
    """Weighs every tensor that operations make while it is on."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use loads the compiler, which takes longer than most work

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor) and all(t is not a for a in args):  # else it was written in place
                    t = getattr(t, "part", t)  # of maps that are held in part
                    self.bytes += t.numel() * t.element_size()
        return out
