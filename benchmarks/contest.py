"""What the benchmarks share: contestants take turns in one process; passes and memory are counted from outside."""

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[], Any]


@dataclass
class Counter:
    """Counts the calls of a model, the rows that come out, and those that gradients enter, from outside."""

    model: nn.Module
    calls: int = 0
    forward: int = 0
    backward: int = 0
    largest: int = 0
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Counter":
        def seen(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.calls += 1
            self.forward += len(out)
            self.largest = max(self.largest, len(out))
            if out.requires_grad:
                out.register_hook(lambda g: setattr(self, "backward", self.backward + len(g)))

        self.handles = [self.model.register_forward_hook(seen)]
        return self

    def __exit__(self, *_: object) -> None:
        for h in self.handles:
            h.remove()


def count(model: nn.Module, run: Run) -> tuple[Counter, Any]:
    """Passes of one run, and its answer."""
    with Counter(model) as c:
        answer = run()
    return c, answer


def seconds(run: Run, times: int = 1) -> float:
    """Time of the processor that so many runs take."""
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start


def shares(first: Run, second: Run, rounds: int) -> list[float]:
    """The first contestant's time as a share of the second's, round by round.

    Time of the processor, which does not count what else the machine does; runs of less than 50 ms are repeated.
    """

    times = max(1, int(0.05 / max(seconds(second), 1e-4)))
    return [seconds(first, times) / seconds(second, times) for _ in range(rounds)]


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, mid, high = statistics.quantiles(values, n=4)
    return f"{mid:.2f} ({low:.2f} to {high:.2f})"


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that are still there; ``most`` at once. Exact anywhere."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {s._cdata for s in _storages((args, kwargs))}
        for s in _storages(out):
            if s._cdata not in given | self.sizes.keys():
                self.sizes[s._cdata] = s.nbytes()
                self.now += s.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(s, self._gone, s._cdata)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, Tensor)]


def peak(run: Run) -> float:
    """MiB of tensors that a run holds at most, beside the model and what it is given."""
    with Held() as held:
        run()
    return held.most / 2**20


def apart(one: Any, other: Any) -> float:
    """The largest difference, as a share of the largest number."""
    pairs = zip(*(v if isinstance(v, tuple | list) else (v,) for v in (one, other)), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)
