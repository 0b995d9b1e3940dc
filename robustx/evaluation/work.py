"""Work: what a run consists of, unit by unit, and how it is worked off.

A unit is one part of a run (the clean pass, an attack, a bound, a corruption) on one block of samples of one model.
What comes out depends on nothing but the specification, the model, the samples of the block, and what earlier attacks
found on it: so units may be done by any number of processes in any order, and twice.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.files import content
from ..engine.guard import modules_of
from ..engine.memory import out_of_memory, shortages
from ..engine.probe import ModelError
from ..zoo import Data, as_data
from .block import Block, Finished, attack_block, clean_block, logits_of
from .callbacks import Bars, Callback, Step, tell
from .certified import bound_block
from .corruptions import corrupted, corruption_block
from .explanations import centre, explain, instructive
from .identity import identity
from .plan import closing, parts, plan, positions
from .run import Run
from .soundness import soundness_of
from .spec import BOUND, CLEAN, CORRUPTION, SOUNDNESS, Spec
from .statistics import Outcome
from .store import Store, Work

LOOKED_AT = 128  # samples of which some are taken to check the evaluation on: the first that the model is right about


@dataclass(frozen=True)
class Job:
    """A run, with the objects that its specification speaks of.

    Args:
        spec: the specification.
        models: by name, all on one device.
        data: the samples, as they are identified.
        here: the samples, on the models' device.
    """

    spec: Spec
    models: Mapping[str, Callable[..., Any]]
    data: Data
    here: Data

    @classmethod
    def of(cls, models: Mapping[str, Callable[..., Any]], data: Any, spec: Spec | None) -> "Job":
        """What was asked for, looked at before anything is done.

        Raises:
            ValueError, TypeError: see :func:`evaluate`.
        """
        if not isinstance(models, Mapping):
            raise TypeError(f"models must map names to models, such as {{'mine': model}}, got {type(models).__name__}")
        if spec is not None and not isinstance(spec, Spec):
            raise TypeError(f"spec must be a Spec, such as Spec.read('spec.toml'), got {type(spec).__name__}")
        data = as_data(data)
        if spec is None:
            spec = Spec(models=tuple(models), data=data.name)
        data = _checked(models, data, spec)
        device = _device(models)
        return cls(spec, models, data, replace(data, x=data.x.to(device), y=data.y.to(device)))

    @property
    def identity(self) -> dict[str, Any]:
        """What the run is a run of."""
        return identity(self.spec, self.models, self.data, self.here.x.device)

    def samples(self) -> Iterator[tuple[int, str, int]]:
        """Index in the data set, digest and label of each."""
        uids = (hashlib.sha256(content(x)).hexdigest()[:32] for x in self.data.x)
        return zip(self.data.index.tolist(), uids, self.data.y.tolist(), strict=True)

    def block(self, work: Work) -> Block:
        """The samples of a unit of work."""
        return self.part(positions(self.spec, len(self.here), work.block))

    def part(self, where: range) -> Block:
        """Consecutive samples."""
        part = self.here[where.start : where.stop]
        return Block(part.x, part.y, where, part.bounds)

    def tried(self) -> None:
        """Raises at once what would be raised on some later block: labels that are no classes, what is no picture."""
        last = int(self.here.y.argmax())
        one = self.part(range(last, last + 1))
        for name, model in self.models.items():
            with _at(f"model {name!r}, sample {last}"):
                logits_of(model, one.x, one.y, one.positions)
        if self.spec.corruptions:
            with _at("corruptions are for pictures"):
                corrupted(one.x, one.bounds, self.spec.corruptions[0], self.spec.severities[0], self.spec.seed)

    @cached_property
    def labels(self) -> list[int]:
        """Of all samples."""
        return self.data.y.tolist()


def evaluate(
    models: Mapping[str, Callable[..., Any]],
    data: Any,
    spec: Spec | None = None,
    out: str | Path = "runs/run",
    show_progress: bool = False,
    *,
    shard: tuple[int, int] = (0, 1),
    callbacks: Sequence[Callback] = (),
    writer: str | None = None,
) -> Run:
    """Measures how robust models are, and keeps everything in a run folder.

    Samples are worked on in blocks, and each finished block is kept at once. When a run is interrupted or killed, the
    same call goes on where it was left, and ends in the same bytes as one that was not. Several processes may work on
    one folder, each on its own ``shard``; the last one to finish its blocks completes the run.

    Args:
        models: name to model; any callables that return class scores [B, K]. They are left as they are.
        data: labelled samples: a :class:`robustx.zoo.Data`, or what :func:`robustx.zoo.as_data` takes, such as a pair
            (x, y) with x in [0, 1].
        spec: what to do; default: that of :class:`Spec` for these models and data.
        out: the run folder; new, empty, or of the same run.
        show_progress: draw a bar for each attack on standard error.
        shard: this process's number, from 0, and how many there are.
        callbacks: are told what happens, see :class:`robustx.evaluation.Callback`.
        writer: names this process's file of results; no two at a time may bear the same. Default: after its shard.

    Returns:
        The run. Once it is finished its folder holds ``summary.json`` and ``samples.csv``;
        :func:`robustx.report.write` adds a page.

    Raises:
        ValueError: models that the specification does not name (or the other way round), no samples, NaN or infinite
            samples or samples outside their bounds, labels that are no classes, corruptions of what is no picture, a
            model in train mode, a folder that holds something else or another run (the message says in what it
            differs).
        ModelError: a model fails, or has no gradient where an attack needs one. The message tells which, and where;
            what was finished is kept.

    >>> import tempfile, torch
    >>> x, y = torch.rand(20, 4), torch.arange(20) % 3
    >>> spec = Spec(models=("linear",), data="data", eps=(0.1, 0.2), explain=0, soundness=False)
    >>> run = evaluate({"linear": torch.nn.Linear(4, 3)}, (x, y), spec, tempfile.mkdtemp())
    >>> run.summary()["models"][0]["clean"]["total"]
    20
    """
    rank, world = shard
    if not (0 <= rank < world):
        raise ValueError(f"shard must be a number from 0 and how many there are, such as (0, 2), got {shard}")
    job = Job.of(models, data, spec)
    job.tried()
    writer = writer or ("main" if world == 1 else f"{rank}-of-{world}")
    told = [*([Bars()] if show_progress else []), *callbacks]
    with Store.start(out, job.identity, job.samples(), writer) as store:
        try:
            _work_off(store, job, shard, told)
            store.refresh()
            complete = all(w in store.done() for w in plan(job.spec, len(job.data)))
            for work in closing(job.spec) if complete else ():
                if work not in store.done():
                    _keep(store, work, partial(close, store, job, work))
            run = Run(out)
            if complete:
                run.write()
            tell(told, "ended", run)
        finally:
            tell(told, "closed")
    return run


def _work_off(store: Store, job: Job, shard: tuple[int, int], callbacks: Sequence[Callback]) -> None:
    """The blocks of one shard that are not finished yet."""
    mine, done = plan(job.spec, len(job.data), shard), store.done()
    if all(work in done for work in mine):
        mine = []
    totals = Counter(w.attack for w in mine)
    tell(callbacks, "started", job.spec, {label: totals[label] for label in parts(job.spec) if totals[label]})
    so_far = Tally(store, job.spec, job.labels)
    for work in mine:
        made = partial(fitting, job.block(work), partial(do, store, job, work))
        seconds = 0.0 if work in done else _keep(store, work, made)
        if callbacks:
            tell(callbacks, "step", so_far.step(work, seconds))


def do(store: Store, job: Job, work: Work, block: Block) -> Finished:
    """One unit of work on (a part of) its block, given what is stored of it."""
    spec, model = job.spec, job.models[work.model]
    if work.attack == CLEAN:
        return clean_block(model, block)
    if work.attack.startswith(BOUND):
        bound = next(b for b in spec.bounds if BOUND + b.label == work.attack)
        return bound_block(model, block, bound.name, bound.options, spec)
    if work.attack.startswith(CORRUPTION):
        return corruption_block(model, block, work.attack.removeprefix(CORRUPTION), spec.severities, spec)
    k = parts(spec).index(work.attack) - 1
    return attack_block(model, block, spec.attacks[k], spec, fallen_before(store, job, work.model, block, k))


def fallen_before(store: Store, job: Job, model: str, block: Block, k: int) -> Tensor:
    """The smallest budgets at which the samples of a block are known to fall before attack k; 0: leave it alone [B]."""
    known = _known(store, job.spec, job.labels, model, block.positions, 0 if job.spec.independent else k)
    fallen = torch.from_numpy(known.fallen)
    fallen[torch.from_numpy(known.flagged)] = 0
    return fallen


def _known(store: Store, spec: Spec, y: Sequence[int], model: str, where: range, k: int) -> Outcome:
    """What is known of some samples after the clean pass and the first k attacks; y: the labels of all samples."""
    labels = {p: y[p] for p in where}
    clean = store.rows(model, CLEAN, where)
    return Outcome.of(model, labels, clean, [store.rows(model, a.label, where) for a in spec.attacks[:k]])


def fitting(block: Block, work: Callable[[Block], Finished]) -> Finished:
    """``work`` done on a block: on halves of it, and halves of these, where memory runs out.

    ``micro_batch`` tells then how many samples went at once. What comes out is the same to rounding.

    Raises:
        MemoryError: a single sample does not fit.
    """
    with shortages() as short:
        try:
            return replace(work(block), micro_batch=min(short, default=None))
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e) or len(block) == 1:
                raise
    halves = block.halves()  # the exception, and what it held, is gone
    first, second = (fitting(half, work) for half in halves)
    least = [n for n in (len(halves[0]), first.micro_batch, second.micro_batch) if n is not None]
    return replace(first + second, micro_batch=min(least))


def _keep(store: Store, work: Work, made: Callable[[], Finished]) -> float:
    """Does a unit of work and keeps it; returns the seconds that it took."""
    start = time.perf_counter()
    with _at(f"{work.attack} of model {work.model!r}, block {work.block}"):
        done = made()
    seconds = time.perf_counter() - start
    store.finish(work, done.rows, done.tensors, done.notes, seconds, done.micro_batch)
    return seconds


class Tally:
    """How much of each model is left standing so far, part by part.

    Args:
        store: that holds what is finished.
        spec: of the run.
        y: the labels of all samples.
    """

    def __init__(self, store: Store, spec: Spec, y: Sequence[int]) -> None:
        self.store, self.spec, self.y = store, spec, y
        self.count: dict[tuple[str, str], int] = {}
        self.right: dict[tuple[str, str], float] = {}

    def step(self, work: Work, seconds: float) -> Step:
        """What a finished unit of work adds."""
        key, where, eps = (work.model, work.attack), positions(self.spec, len(self.y), work.block), self.spec.quoted
        rows = self.store.rows(work.model, work.attack, where)
        if work.attack.startswith(BOUND):
            share = sum(r.distance >= eps for r in rows) / len(where)
        elif work.attack.startswith(CORRUPTION):
            eps, share = 0.0, sum(not (r.success or r.flagged) for r in rows) / max(len(rows), 1)
        else:
            k = parts(self.spec).index(work.attack)
            eps = eps if k else 0.0
            share = float(_known(self.store, self.spec, self.y, work.model, where, k).robust(eps).mean())
        self.count[key] = self.count.get(key, 0) + len(where)
        self.right[key] = self.right.get(key, 0.0) + share * len(where)
        return Step(work, eps, self.count[key], self.right[key] / self.count[key], seconds)


def close(store: Store, job: Job, work: Work) -> Finished:
    """What is done once, when all blocks are there."""
    if work.attack == SOUNDNESS:
        return soundness_of(job.models[work.model], job.part(range(min(LOOKED_AT, len(job.here)))), job.spec)
    run = Run(store.folder)
    outcome = next(o for o in run.outcomes if o.model == work.model)
    return _explain(store, job, outcome, instructive(run.outcomes, job.spec.explain))


def _explain(store: Store, job: Job, outcome: Outcome, chosen: list[tuple[int, str]]) -> Finished:
    positions = [p for p, _ in chosen]
    if not positions:
        return Finished()
    place = {p: n for n, p in enumerate(outcome.position.tolist()) if outcome.by[n] >= 0}
    fallen = {
        p: (_nearest(store, job.spec, outcome, place[p]), int(outcome.into[place[p]])) for p in positions if p in place
    }
    made = explain(job.models[outcome.model], job.here, positions, fallen, job.spec, centre(job.here))
    notes = [{"position": p, "why": why, **note} for (p, why), note in zip(chosen, made.notes, strict=True)]
    return Finished([], made.tensors, notes)


def _nearest(store: Store, spec: Spec, outcome: Outcome, n: int) -> Tensor:
    """The adversarial example of sample n that ``outcome.fallen`` speaks of."""
    p, label = int(outcome.position[n]), spec.attacks[outcome.by[n]].label
    won = [r for r in store.rows(outcome.model, label, range(p, p + 1)) if r.success]
    best = min(won, key=lambda r: min(r.distance, r.eps))
    t = store.tensors(Work(outcome.model, label, p // spec.block_size))
    row = ((t["position"] == p) & (t["eps"] == best.eps)).nonzero()[0, 0]
    return t["adversarial"][row]


def _checked(models: Mapping[str, Callable[..., Any]], data: Data, spec: Spec) -> Data:
    for name in [*spec.names, *models]:
        if name not in models or name not in spec.names:
            where, other = ("spec.models", "models") if name not in models else ("models", "spec.models")
            raise ValueError(f"{where} names {name!r}, but {other} does not; both must name the same models")
        if not callable(models[name]):
            raise TypeError(f"model {name!r} must be callable, got {type(models[name]).__name__}")
    if spec.samples.name != data.name:
        raise ValueError(f"the specification is for data {spec.samples.name!r}, got {data.name!r}")
    data = data if spec.limit is None else data[: spec.limit]
    if not len(data):
        raise ValueError("data must hold at least one sample, got none")
    low, high = (torch.as_tensor(b, dtype=data.x.dtype) for b in data.bounds)
    bad = ~((data.x >= low) & (data.x <= high) & torch.isfinite(data.x)).flatten(1).all(1)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"sample {i} of {data.name!r} is not finite or leaves the bounds {data.bounds}; mend it, leave it out, or "
            "give the bounds of your data"
        )
    return data


@contextmanager
def _at(where: str) -> Iterator[None]:
    """An error inside also tells where it was."""
    try:
        yield
    except (ModelError, ValueError, TypeError) as e:
        e.args = (f"{where}: {e}",)
        raise


def _device(models: Mapping[str, Callable[..., Any]]) -> torch.device:
    devices = {p.device for model in models.values() for m in modules_of(model) for p in m.parameters()}
    if len(devices) > 1:
        raise ValueError(f"all models must be on one device, got {', '.join(sorted(map(str, devices)))}")
    return devices.pop() if devices else torch.device("cpu")
