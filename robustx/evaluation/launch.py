"""Launchers: many processes, on one machine or on several, that work on one run.

All of them call one function, :func:`work_on`, on shares of the run, and talk to nobody: what they have in common is
the run folder. So a process that dies is simply started again, and what is done twice is the same. They open models
and data from the names in the specification; objects cannot be sent.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ..engine.checks import optional
from ..zoo import Data
from .callbacks import Bars, Callback, tell
from .plan import parts, plan
from .run import Run
from .sources import opened
from .spec import Spec
from .store import Store
from .work import Job, Tally, evaluate

_PROCESS = secrets.token_hex(4)
_ONE_AT_A_TIME = threading.Lock()  # some engines run tasks in threads, and a model is for one thread


def work_on(spec: str, folder: str | Path, shard: tuple[int, int], device: str = "cpu", threads: int = 1) -> None:
    """Works off a share of a run. May be called by any process, at any time, and twice.

    Args:
        spec: as JSON, see :meth:`robustx.evaluation.Spec.to_json`.
        folder: of the run, the same for all.
        shard: which share, from 0, and of how many.
        device: where to compute; ``"cuda"`` is the GPU whose number ``LOCAL_RANK`` says, if there is such.
        threads: of the CPU. The last bits may depend on them: take as many for every share.

    Raises:
        ValueError, TypeError, OSError, ImportError: models or data cannot be opened, or the folder holds another run.

    >>> import tempfile
    >>> spec = Spec(models=("digits",), data="digits", limit=4, block_size=2, eps=0.1, explain=0, soundness=False)
    >>> folder = tempfile.mkdtemp()
    >>> for share in (0, 1):
    ...     work_on(spec.to_json(), folder, (share, 2))
    >>> Run(folder).finished
    True
    """
    with _ONE_AT_A_TIME, _threads(threads):
        models, data = _opened(spec, own_device(device))
        writer = f"{_PROCESS}-{os.getpid()}"  # never that of a process that may still be alive
        evaluate(models, data, Spec.parse(spec), folder, shard=shard, writer=writer)


def begin(spec: str, folder: str | Path, device: str = "cpu") -> int:
    """Starts a run, or finds it again; returns the number of its samples.

    Raises:
        ValueError, TypeError, OSError, ImportError: as :func:`work_on` does.
    """
    with _ONE_AT_A_TIME:
        models, data = _opened(spec, own_device(device))
        job = Job.of(models, data, Spec.parse(spec))
        job.tried()
        Store.start(folder, job.identity, job.samples(), f"{_PROCESS}-{os.getpid()}").close()
        return len(job.data)


def environment() -> tuple[int, int] | None:
    """Which share this process has, and of how many, if it was started by torchrun or alike; else None.

    Reads ``RANK`` and ``WORLD_SIZE``. No process group is made: a process that dies takes nobody with it.
    """
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(world)) if rank.isdecimal() and world.isdecimal() and int(rank) < int(world) else None


def own_device(device: str) -> str:
    """The device of this process: of ``"cuda"``, its own among the machine's GPUs, by ``LOCAL_RANK``.

    >>> own_device("cpu"), own_device("cuda:1")
    ('cpu', 'cuda:1')
    """
    asked, rank = torch.device(device), os.environ.get("LOCAL_RANK", "")
    if asked.type != "cuda" or asked.index is not None or not rank.isdecimal():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def local(
    spec: Spec,
    folder: str | Path,
    workers: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    restarts: int = 3,
    show_progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """A run by several processes of this machine, which torchrun watches and starts again when one dies.

    What they and torchrun say stands in ``workers.log`` in the folder.

    Args:
        spec: of models and data that can be opened by name.
        folder: the run folder; new, empty, or of the same run.
        workers: how many processes.
        device: ``"cuda"``: the processes share out the GPUs.
        threads: of each process.
        restarts: how often, before this process goes on alone.
        show_progress, callbacks: as :func:`robustx.evaluation.evaluate` takes them.

    Raises:
        ValueError, TypeError, OSError, ImportError: as :func:`work_on` does.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    text = spec.to_json()
    begin(text, folder, device)
    _opened.cache_clear()  # the workers need the memory
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["--max-restarts", str(restarts), "-m", __name__, str(folder), device, str(threads)]
    with Watch(folder, spec, [*([Bars()] if show_progress else []), *callbacks]) as watch:
        log = Path(folder, "workers.log")
        with _process(command, log, OMP_NUM_THREADS=str(threads)) as agent:
            while agent.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(1)
                watch.look()
        if agent.returncode:
            warnings.warn(
                f"the processes ended with code {agent.returncode}, see {str(log)!r}; this one goes on alone",
                RuntimeWarning,
                2,
            )
        run = Run(folder)
        if run.finished:
            run.write()  # who finished it may have died before
        else:
            work_on(text, folder, (0, 1), device, threads)
            watch.look()
        return watch.ended()


def ray_run(
    spec: Spec,
    folder: str | Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    tasks: int | None = None,
    show_progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Run:
    """A run on a Ray cluster: the one that is connected, else all of this machine.

    Ray starts a task again whose process died (three times, unless ``max_retries`` says otherwise).

    Args:
        spec: of models and data that can be opened by name.
        folder: the run folder, at the same place for all machines.
        device: ``"cuda"``: a GPU for each task.
        threads: CPUs of each task.
        tasks: into how many the run is shared out; default: as many as blocks, at most four for each CPU.
        show_progress, callbacks: as :func:`robustx.evaluation.evaluate` takes them.
        options: of each task, as ``ray.remote`` takes them.

    Raises:
        ValueError, TypeError, OSError, ImportError: as :func:`work_on` does, or Ray is not installed.
    """
    ray = optional("ray", "ray")
    gpus = {"num_gpus": 1} if torch.device(device).type == "cuda" else {}
    remote = partial(ray.remote, **({"num_cpus": threads, **gpus} | options))

    def results(calls: Iterable[partial[Any]]) -> Iterator[Any]:
        left = [remote()(call.func).remote(*call.args) for call in calls]
        try:
            while left:
                (first, *_), left = ray.wait(left)
                yield ray.get(first)
        finally:
            for task in left:
                ray.cancel(task)

    mine = not ray.is_initialized()
    if mine:
        ray.init(include_dashboard=False)
    try:
        tasks = tasks or 4 * int(ray.cluster_resources().get("CPU", 1))
        return _spread(results, spec, folder, device, threads, tasks, show_progress, callbacks)
    finally:
        if mine:
            ray.shutdown()


def dask_run(
    spec: Spec,
    folder: str | Path,
    client: Any = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    tasks: int | None = None,
    show_progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """A run on a Dask cluster, which starts a task again whose worker died.

    Args:
        spec: of models and data that can be opened by name.
        folder: the run folder, at the same place for all machines.
        client: a ``distributed.Client``; default: one of a new cluster of processes on this machine.
        device, threads, tasks, show_progress, callbacks: as :func:`ray_run` takes them.

    Raises:
        ValueError, TypeError, OSError, ImportError: as :func:`work_on` does, or Dask is not installed.
    """
    dask = optional("distributed", "dask")

    def results(calls: Iterable[partial[Any]]) -> Iterator[Any]:
        left = [client.submit(call.func, *call.args, pure=False) for call in calls]
        try:
            for task in dask.as_completed(left):
                yield task.result()
        finally:
            client.cancel(left)

    with contextlib.ExitStack() as stack:
        if client is None:
            client = stack.enter_context(dask.Client(threads_per_worker=1, dashboard_address=None))
        tasks = tasks or 4 * sum(client.nthreads().values())
        return _spread(results, spec, folder, device, threads, tasks, show_progress, callbacks)


def _spread(
    results: Callable[[Iterable[partial[Any]]], Iterator[Any]],
    spec: Spec,
    folder: str | Path,
    device: str,
    threads: int,
    tasks: int,
    show_progress: bool,
    callbacks: Sequence[Callback],
) -> Run:
    """A run by an engine that makes ``results`` of calls, as they come. Nothing is computed in this process."""
    text, folder = spec.to_json(), Path(folder).absolute()
    (count,) = results([partial(begin, text, folder, device)])
    tasks = max(1, min(tasks, -(-count // spec.block_size)))
    with Watch(folder, spec, [*([Bars()] if show_progress else []), *callbacks]) as watch:
        for _ in results(partial(work_on, text, folder, (k, tasks), device, threads) for k in range(tasks)):
            watch.look()
        for _ in results([partial(work_on, text, folder, (0, 1), device, threads)]):
            watch.look()  # whatever is left, such as what comes after the last block
        return watch.ended()


class Watch:
    """Tells callbacks what other processes do, from the run folder. Use it in a ``with``.

    Args:
        folder: of a run that has begun.
        spec: of it.
        callbacks: are told of each unit of work once.
    """

    def __init__(self, folder: str | Path, spec: Spec, callbacks: Sequence[Callback]) -> None:
        self.folder, self.spec, self.callbacks = Path(folder), spec, callbacks

    def __enter__(self) -> Self:
        self.store = Store(self.folder)
        y = [label for _, _, label in self.store.samples()]
        self.tally, self.left = Tally(self.store, self.spec, y), plan(self.spec, len(y))
        totals = Counter(w.attack for w in self.left)
        tell(self.callbacks, "started", self.spec, {label: totals[label] for label in parts(self.spec)})
        return self

    def look(self) -> None:
        """Tells what has been finished since."""
        if not self.callbacks:
            return
        self.store.refresh()
        done = self.store.done()
        for work in (w for w in self.left if w in done):
            tell(self.callbacks, "step", self.tally.step(work, self.store.told(work, "seconds")))
        self.left = [w for w in self.left if w not in done]

    def ended(self) -> Run:
        """Tells that it is over; returns the run."""
        run = Run(self.folder)
        tell(self.callbacks, "ended", run)
        return run

    def __exit__(self, *_: object) -> None:
        self.store.close()
        tell(self.callbacks, "closed")


@lru_cache(maxsize=1)
def _opened(spec: str, device: str) -> tuple[dict[str, nn.Module], Data]:
    return opened(Spec.parse(spec), device)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end, with all that it started, when it is no longer wanted."""
    with open(log, "ab") as file:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    work_on(Run(sys.argv[1]).spec.to_json(), sys.argv[1], environment() or (0, 1), sys.argv[2], int(sys.argv[3]))
