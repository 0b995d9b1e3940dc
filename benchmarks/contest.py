"""What the benchmarks share: contestants take turns in one process; passes and memory are counted from outside."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], Any]


@dataclass
class Counter:
    """Counts the rows that come out of a model, and those that gradients enter, from outside."""

    model: nn.Module
    forward: int = 0
    backward: int = 0
    largest: int = 0
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "Counter":
        def seen(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
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


def shares(first: Run, second: Run, rounds: int) -> list[float]:
    """The first contestant's time as a share of the second's, round by round.

    Time of the processor, which does not count what else the machine does; runs of less than 50 ms are repeated.
    """

    def seconds(run: Run, times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            run()
        return time.process_time() - start

    times = max(1, int(0.05 / max(seconds(second, 1), 1e-4)))
    return [seconds(first, times) / seconds(second, times) for _ in range(rounds)]


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, mid, high = statistics.quantiles(values, n=4)
    return f"{mid:.2f} ({low:.2f} to {high:.2f})"


def peak(run: Run) -> float:
    """MiB that a run adds at most to its process, measured in a child of its own (Linux)."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_weigh, args=(run, there))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return float("nan")
    finally:
        child.join()


def _weigh(run: Run, out: Connection) -> None:
    torch.zeros(1)
    before = _status("VmRSS")
    run()
    out.send((_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def apart(one: Any, other: Any) -> float:
    """The largest difference, as a share of the largest number."""
    pairs = zip(*(v if isinstance(v, tuple | list) else (v,) for v in (one, other)), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)
