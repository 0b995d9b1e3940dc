"""Runs: a specification, worked off block by block into a folder, and read back from there."""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.guard import modules_of
from ..engine.progress import progress
from ..zoo import Data, as_data, class_name
from .block import Block, Finished, attack_block, clean_block
from .explanations import centre, explain, instructive
from .identity import content, identity
from .spec import Spec
from .statistics import Cumulative, Outcome, compare, cumulative, curve, distances, plain
from .store import Store, Work, read_about, write

CLEAN, EXPLANATION = "clean", "explanation"


def evaluate(
    models: Mapping[str, Callable[..., Any]],
    data: Any,
    spec: Spec | None = None,
    out: str | Path = "runs/run",
    show_progress: bool = False,
) -> "Run":
    """Measures how robust models are, and keeps everything in a run folder.

    Samples are worked on in blocks, and each finished block is kept at once. When a run is interrupted or killed, the
    same call goes on where it was left, and ends in the same bytes as one that was not.

    Args:
        models: name to model; any callables that return class scores [B, K]. They are left as they are.
        data: labelled samples: a :class:`robustx.zoo.Data`, or what :func:`robustx.zoo.as_data` takes, such as a pair
            (x, y) with x in [0, 1].
        spec: what to do; default: that of :class:`Spec` for these models and data.
        out: the run folder; new, empty, or of the same run.
        show_progress: draw a bar on standard error.

    Returns:
        The run. Its folder holds ``summary.json`` and ``samples.csv`` then; :func:`robustx.report.write` adds a page.

    Raises:
        ValueError: models that the specification does not name (or the other way round), no samples, NaN or infinite
            samples or samples outside their bounds, labels that are no classes, a model in train mode, a folder that
            holds something else or another run (the message says in what it differs).

    >>> import tempfile, torch
    >>> x, y = torch.rand(20, 4), torch.arange(20) % 3
    >>> spec = Spec(models=("linear",), data="data", eps=(0.1, 0.2), explain=0)
    >>> run = evaluate({"linear": torch.nn.Linear(4, 3)}, (x, y), spec, tempfile.mkdtemp())
    >>> run.summary()["models"][0]["clean"]["total"]
    20
    """
    data = as_data(data)
    if spec is None:
        spec = Spec(models=tuple(models), data=data.name)
    data = _checked(models, data, spec)
    device = _device(models)
    here = _on(data, device)
    samples = zip(data.index.tolist(), map(_uid, data.x), data.y.tolist(), strict=True)
    with Store.start(out, identity(spec, models, data, device), samples) as store:
        plan = list(_plan(spec, len(data)))
        done = store.done()
        more = [(w, partial(_work, store, models[w.model], here, spec, w)) for w in plan if w not in done]
        with progress(len(plan) + len(spec.models), f"Evaluating {spec.data}", show_progress, unit="block") as tell:
            tell(len(plan) - len(more))
            for work, do in more:
                _timed(store, work, do)
                tell(1)
            outcomes = _Stored.read(store, spec, len(data)).outcomes
            chosen = instructive(outcomes, spec.explain)
            for outcome in outcomes:
                work = Work(outcome.model, EXPLANATION, 0)
                if spec.explain and work not in done:
                    _timed(store, work, partial(_explain, store, models[work.model], here, spec, outcome, chosen))
                tell(1)
    run = Run(out)
    write(run.folder / "summary.json", (json.dumps(run.summary(), indent=2, ensure_ascii=False) + "\n").encode())
    write(run.folder / "samples.csv", run.to_csv().encode())
    return run


class Run:
    """A run, read from its folder. An unfinished one shows the samples that went through everything.

    Args:
        folder: that :func:`evaluate` wrote.

    Attributes:
        folder: where it is.
        about: what ``run.json`` says: specification, models, data, versions.
        spec: the specification.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = read_about(self.folder)
        self.spec = Spec.parse(json.dumps(self.about["spec"]))

    @property
    def data(self) -> dict[str, Any]:
        """What the samples are: name, classes, bounds, columns..."""
        told: dict[str, Any] = self.about["data"]
        return told

    @cached_property
    def _stored(self) -> "_Stored":
        with Store(self.folder) as store:
            return _Stored.read(store, self.spec, self.data["count"])

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of every sample, model by model."""
        return self._stored.outcomes

    @property
    def finished(self) -> bool:
        """Whether all samples went through all attacks."""
        return self._stored.finished

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all stored rows and tensors: the same for two runs of the same specification."""
        return self._stored.fingerprint

    def seconds(self, model: str) -> dict[str, float]:
        """How long the clean pass, each attack and the explanations of a model took."""
        return self._stored.seconds[model]

    @property
    def cap(self) -> float | None:
        """The largest distance at which adversarial examples were looked for; None if none was searched for."""
        caps = [float(a.options.get("eps", self.spec.cap)) for a in self.spec.attacks if a.minimal]
        return max(caps, default=None)

    def summary(self) -> dict[str, Any]:
        """All statistics, as JSON can hold them: null stands for what is infinite or undefined."""
        eps, stored = self.spec.eps, self._stored
        models = []
        for o in stored.outcomes:
            clean, *robust = curve(o, eps)
            models.append(
                {
                    "name": o.model,
                    "clean": clean,
                    "robust": [{"eps": e, **asdict(s)} for e, s in zip(eps, robust, strict=True)],
                    "flagged": int(o.flagged.sum()),
                    "distances": {**asdict(distances(o)), "largest_tried": self.cap},
                    "attacks": stored.attacks[o.model],
                    "warnings": stored.warnings[o.model],
                }
            )
        pairs = [
            {"first": a.model, "second": b.model, "eps": e, **asdict(compare(*seen))}
            for a, b in combinations(stored.outcomes, 2)
            for e, seen in [(0.0, (a.correct, b.correct)), *((e, (a.robust(e), b.robust(e))) for e in eps)]
        ]
        told: dict[str, Any] = plain(
            {
                "run": {k: self.about[k] for k in ("spec_sha256", "versions", "device")},
                "fingerprint": stored.fingerprint,
                "data": {k: self.data[k] for k in ("name", "split", "sha256")},
                "norm": self.spec.norm,
                "finished": stored.finished,
                "samples": len(stored.outcomes[0]),
                "models": models,
                "comparisons": pairs,
            }
        )
        return told

    def samples(self) -> list[dict[str, Any]]:
        """What became of each sample, one dict per model and sample; None stands for what there is not."""
        classes, known = self.data["classes"], self._stored.samples
        told = []
        for o in self.outcomes:
            for n, p in enumerate(o.position.tolist()):
                by, into, answer = int(o.by[n]), int(o.into[n]), int(o.prediction[n])
                told.append(
                    {
                        "model": o.model,
                        "position": p,
                        "index": known[p][0],
                        "uid": known[p][1],
                        "label": int(o.label[n]),
                        "class": class_name(classes, int(o.label[n])),
                        "prediction": None if answer < 0 else answer,
                        "predicted_class": None if answer < 0 else class_name(classes, answer),
                        "lead": plain(float(o.lead[n])),
                        "correct": bool(o.correct[n]),
                        "flagged": bool(o.flagged[n]),
                        "distance": plain(float(o.fallen[n])) if by >= 0 else None,
                        "falls_at": next((e for e in self.spec.eps if by >= 0 and o.fallen[n] <= e), None),
                        "by": None if by < 0 else self.spec.attacks[by].label,
                        "into": None if by < 0 else into,
                        "into_class": None if by < 0 else class_name(classes, into),
                    }
                )
        return told

    def to_csv(self) -> str:
        """:meth:`samples` as a table; what there is not is an empty field."""
        rows = self.samples()
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["model"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()

    def explanation(self, model: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
        """Why samples were chosen and what was noted of each, and the tensors of :func:`explain`; None if not made."""
        work = Work(model, EXPLANATION, 0)
        with Store(self.folder) as store:
            if work not in store.done():
                return None
            return store.notes(model, EXPLANATION)[0], store.tensors(work)

    def __repr__(self) -> str:
        s = self.summary()
        lines = [
            f"Run({str(self.folder)!r}: {s['samples']} samples of {self.data['name']}, {s['norm']}"
            f"{'' if s['finished'] else ', unfinished'})"
        ]
        wide = max(len(m["name"]) for m in s["models"])
        for m in s["models"] if s["samples"] else []:
            robust = ", ".join(f"{r['value']:.1%} at {r['eps']:g}" for r in m["robust"])
            doubt = "; attacks gave warnings, see summary()" if m["warnings"] else ""
            lines.append(f"  {m['name']:{wide}}  clean {m['clean']['value']:.1%}; robust {robust}{doubt}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Stored:
    """What a run folder holds of the blocks that went through everything; lists by model."""

    outcomes: list[Outcome]
    attacks: dict[str, list[Cumulative]]
    warnings: dict[str, list[str]]
    seconds: dict[str, dict[str, float]]
    samples: list[tuple[int, str, int]]
    fingerprint: str
    finished: bool

    @classmethod
    def read(cls, store: Store, spec: Spec, count: int) -> "_Stored":
        done, samples = store.done(), store.samples()
        missing = {w.block for w in _plan(spec, count) if w not in done}
        y, names = [label for _, _, label in samples], [a.label for a in spec.attacks]
        outcomes, attacks, warnings, seconds = [], {}, {}, {}
        for m in spec.models:
            clean, *rows = (
                [r for r in store.rows(m, label) if r.position // spec.block_size not in missing]
                for label in (CLEAN, *names)
            )
            upto = [Outcome.of(m, y, clean, rows[: k + 1]) for k in range(len(rows))]
            outcomes.append(upto[-1])
            attacks[m] = cumulative(upto, rows, names, spec.eps)
            warnings[m] = sorted({n for label in names for block in store.notes(m, label) for n in block})
            seconds[m] = {label: store.seconds(m, label) for label in (CLEAN, *names, EXPLANATION)}
        return cls(outcomes, attacks, warnings, seconds, samples, store.fingerprint(), not missing)


def _checked(models: Mapping[str, Callable[..., Any]], data: Data, spec: Spec) -> Data:
    for name in [*spec.models, *models]:
        if name not in models or name not in spec.models:
            where, other = ("spec.models", "models") if name not in models else ("models", "spec.models")
            raise ValueError(f"{where} names {name!r}, but {other} does not; both must name the same models")
        if not callable(models[name]):
            raise TypeError(f"model {name!r} must be callable, got {type(models[name]).__name__}")
    if spec.data != data.name:
        raise ValueError(f"the specification is for data {spec.data!r}, got {data.name!r}")
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


def _device(models: Mapping[str, Callable[..., Any]]) -> torch.device:
    devices = {p.device for model in models.values() for m in modules_of(model) for p in m.parameters()}
    if len(devices) > 1:
        raise ValueError(f"all models must be on one device, got {', '.join(sorted(map(str, devices)))}")
    return devices.pop() if devices else torch.device("cpu")


def _on(data: Data, device: torch.device) -> Data:
    return replace(data, x=data.x.to(device), y=data.y.to(device))


def _uid(x: Tensor) -> str:
    return hashlib.sha256(content(x)).hexdigest()[:32]


def _plan(spec: Spec, count: int) -> Iterator[Work]:
    """All work but the explanations, in an order in which each finds what it needs."""
    for block in range(-(-count // spec.block_size)):
        for model in spec.models:
            for label in (CLEAN, *(a.label for a in spec.attacks)):
                yield Work(model, label, block)


def _work(store: Store, model: Callable[..., Any], data: Data, spec: Spec, work: Work) -> Finished:
    """One attack (or the clean pass) on one block, given what is stored of it."""
    positions = range(work.block * spec.block_size, min((work.block + 1) * spec.block_size, len(data)))
    part = data[positions.start : positions.stop]
    block = Block(part.x, part.y, positions, data.bounds)
    if work.attack == CLEAN:
        return clean_block(model, block)
    labels = [a.label for a in spec.attacks]
    k = labels.index(work.attack)
    clean = store.rows(work.model, CLEAN, positions)
    before = [store.rows(work.model, label, positions) for label in labels[:k]]
    known = Outcome.of(work.model, dict(zip(positions, part.y.tolist(), strict=True)), clean, before)
    fallen = torch.from_numpy(known.fallen)
    fallen[torch.from_numpy(known.flagged)] = 0
    return attack_block(model, block, spec.attacks[k], spec, fallen)


def _explain(
    store: Store,
    model: Callable[..., Any],
    data: Data,
    spec: Spec,
    outcome: Outcome,
    chosen: list[tuple[int, str]],
) -> Finished:
    positions = [p for p, _ in chosen]
    if not positions:
        return Finished()
    place = {p: n for n, p in enumerate(outcome.position.tolist()) if outcome.by[n] >= 0}
    fallen = {
        p: (_nearest(store, spec, outcome, place[p]), int(outcome.into[place[p]])) for p in positions if p in place
    }
    made = explain(model, data, positions, fallen, spec, centre(data))
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


def _timed(store: Store, work: Work, do: Callable[[], Finished]) -> None:
    start = time.perf_counter()
    made = do()
    store.finish(work, made.rows, made.tensors, made.notes, time.perf_counter() - start)
