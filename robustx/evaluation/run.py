"""Runs, read back from their folders."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..engine.corrections import holm
from ..engine.files import put
from ..zoo import class_name
from .corruptions import Baseline, summarise_corruptions
from .optimality import global_optimality
from .plan import closing, parts, plan
from .spec import BOUND, CLEAN, CORRUPTION, EXPLANATION, SOUNDNESS, Spec
from .statistics import (
    Cumulative,
    Outcome,
    certified,
    certified_steps,
    compare,
    cost,
    cumulative,
    curve,
    distances,
    per_class,
    plain,
    share,
    steps,
)
from .store import Row, Store, Work, read_about

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run, read from its folder. An unfinished one shows the samples that went through everything.

    Args:
        folder: that :func:`robustx.evaluation.evaluate` wrote.

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
        """Whether nothing is left to do."""
        return self._stored.finished

    @property
    def progress(self) -> dict[str, int]:
        """How many units of work there are (``steps``), and how many of them are ``done``."""
        with Store(self.folder) as store:
            works = [*plan(self.spec, self.data["count"]), *closing(self.spec)]
            return {"steps": len(works), "done": len(store.done().intersection(works))}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all stored rows and tensors: the same for two runs of the same specification."""
        return self._stored.fingerprint

    def write(self) -> None:
        """Writes ``summary.json`` and ``samples.csv`` into the folder."""
        told = json.dumps(self.summary(), indent=2, ensure_ascii=False)
        put(self.folder / "summary.json", f"{told}\n".encode())
        put(self.folder / "samples.csv", self.to_csv().encode())

    def seconds(self, model: str) -> dict[str, float]:
        """How long the clean pass, each attack and the explanations of a model took."""
        return self._stored.seconds[model]

    @property
    def cap(self) -> float | None:
        """The largest distance at which adversarial examples were looked for; None if none was searched for."""
        return max((self.spec.cap_of(a) for a in self.spec.attacks if a.minimal), default=None)

    def summary(self) -> dict[str, Any]:
        """All statistics, as JSON can hold them: null stands for what is infinite or undefined."""
        eps, stored = self.spec.eps, self._stored
        models = []
        for o in stored.outcomes:
            clean, *robust = curve(o, eps)
            rows = stored.rows[o.model]
            models.append(
                {
                    "name": o.model,
                    "clean": clean,
                    "robust": [{"eps": e, **asdict(s)} for e, s in zip(eps, robust, strict=True)],
                    "flagged": int(o.flagged.sum()),
                    "distances": {**asdict(distances(o)), "largest_tried": self.cap},
                    "curve": steps(o),
                    "per_class": per_class(o, eps, self.data["classes"]),
                    "attacks": stored.attacks[o.model],
                    "cost": cost(rows),
                    "warnings": stored.warnings[o.model],
                    "divided": stored.divided[o.model],
                    **self._bounds(o, rows),
                    **self._corruptions(rows),
                    **({"soundness": stored.soundness[o.model]} if o.model in stored.soundness else {}),
                }
            )
        told: dict[str, Any] = plain(
            {
                "run": {k: self.about[k] for k in ("spec_sha256", "versions", "device")},
                "fingerprint": stored.fingerprint,
                "data": {k: self.data[k] for k in ("name", "split", "sha256")},
                "norm": self.spec.norm,
                "finished": stored.finished,
                "samples": len(stored.outcomes[0]),
                "models": models,
                "comparisons": self._comparisons(),
                "optimality": self._optimality(),
            }
        )
        return told

    def _comparisons(self) -> list[dict[str, Any]]:
        """Every two models at every budget; p-values are corrected for the number of pairs."""
        told = []
        for e in (0.0, *self.spec.eps):
            pairs = list(combinations(self.outcomes, 2))
            found = [compare(a.robust(e), b.robust(e)) if e else compare(a.correct, b.correct) for a, b in pairs]
            corrected = holm([c.p_value for c in found])
            told += [
                {"first": a.model, "second": b.model, "eps": e, **asdict(c), "corrected": p}
                for (a, b), c, p in zip(pairs, found, corrected, strict=True)
            ]
        return told

    def _optimality(self) -> dict[str, float]:
        """AttackBench's global optimality of each attack; NaN where its local one is not known of all models."""
        told = zip(*self._stored.attacks.values(), strict=True)
        return {
            a[0].attack: global_optimality([math.nan if c.optimality is None else c.optimality for c in a])
            for a in told
        }

    def _bounds(self, outcome: Outcome, rows: Mapping[str, list[Row]]) -> dict[str, Any]:
        """Of each lower bound, the share of samples that are proved to keep their label, the median radius, and notes.

        These say why nothing could be proved, if so.
        """
        told = []
        for bound in self.spec.bounds:
            radius = certified(outcome, rows[BOUND + bound.label])
            shares = [share(int((radius > e).sum()), len(radius)) for e in (0.0, *self.spec.eps)]
            told.append(
                {
                    "label": bound.label,
                    "method": bound.name,
                    "accuracy": [{"eps": e, **asdict(s)} for e, s in zip((0.0, *self.spec.eps), shares, strict=True)],
                    "median": float(np.median(radius)) if len(radius) else math.nan,
                    "curve": certified_steps(radius),
                    "notes": self._stored.notes[outcome.model][bound.label],
                }
            )
        return {"certified": told} if told else {}

    def _corruptions(self, rows: Mapping[str, list[Row]]) -> dict[str, Any]:
        """What corruptions do, compared with the first model of the run where there are several."""
        names = self.spec.corruptions
        if not names:
            return {}
        first = self._stored.rows[self.spec.names[0]]
        baseline = Baseline.of(self.spec.names[0], first[CLEAN], {n: first[CORRUPTION + n] for n in names})
        several = len(self.spec.names) > 1
        tried = {n: rows[CORRUPTION + n] for n in names}
        return {"corruptions": summarise_corruptions(rows[CLEAN], tried, baseline if several else None)}

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

    def to_pandas(self, table: str = "result") -> "pd.DataFrame":
        """A table of the run as a pandas frame: ``result``, ``sample`` or ``block`` of the store, or ``samples``.

        Raises:
            ValueError: no such table.
            ImportError: pandas is not installed.
        """
        from .export import frame  # which reads runs

        return frame(self.folder, table)

    def explanation(self, model: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
        """Why samples were chosen and what was noted of each, and tensors; None if not made.

        The tensors are those of :func:`robustx.evaluation.explain`.
        """
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
            if "soundness" in m:
                doubt = f"; the evaluation is {m['soundness']['verdict']}"
            lines.append(f"  {m['name']:{wide}}  clean {m['clean']['value']:.1%}; robust {robust}{doubt}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Stored:
    """What a run folder holds of the blocks that went through everything; lists by model."""

    outcomes: list[Outcome]
    rows: dict[str, dict[str, list[Row]]]
    attacks: dict[str, list[Cumulative]]
    warnings: dict[str, list[str]]
    divided: dict[str, int]  # blocks that memory did not hold whole: the same to rounding only
    notes: dict[str, dict[str, list[str]]]  # of lower bounds
    soundness: dict[str, Any]
    seconds: dict[str, dict[str, float]]
    samples: list[tuple[int, str, int]]
    fingerprint: str
    finished: bool

    @classmethod
    def read(cls, store: Store, spec: Spec, count: int) -> "_Stored":
        done, samples = store.done(), store.samples()
        missing = {w.block for w in plan(spec, count) if w not in done}
        finished = all(w in done for w in [*plan(spec, count), *closing(spec)])
        y, names = [label for _, _, label in samples], [a.label for a in spec.attacks]
        tried = [(spec.cap_of(a),) if a.minimal else a.eps or spec.eps for a in spec.attacks]
        outcomes: list[Outcome] = []
        every, told, warnings, divided, seconds = {}, {}, {}, {}, {}
        notes: dict[str, dict[str, list[str]]] = {}
        soundness: dict[str, Any] = {}
        for m in spec.names:
            every[m] = {
                label: [r for r in store.rows(m, label) if r.position // spec.block_size not in missing]
                for label in parts(spec)
            }
            clean, rows = every[m][CLEAN], [every[m][label] for label in names]
            upto = [Outcome.of(m, y, clean, rows[: k + 1]) for k in range(len(rows))]
            outcomes.append(upto[-1])
            told[m] = cumulative(upto, rows, names, spec.eps, tried)
            warnings[m] = sorted({n for label in names for block in store.notes(m, label) for n in block})
            notes[m] = {
                b.label: sorted({n for block in store.notes(m, BOUND + b.label) for n in block}) for b in spec.bounds
            }
            divided[m] = sum(n is not None for label in parts(spec) for n in store.blocks(m, label, "micro_batch"))
            for (note,) in store.notes(m, SOUNDNESS):
                soundness[m] = note
            last = dict.fromkeys(w.attack for w in closing(spec))
            seconds[m] = {label: store.seconds(m, label) for label in (*parts(spec), *last)}
        sha = store.fingerprint()
        return cls(outcomes, every, told, warnings, divided, notes, soundness, seconds, samples, sha, finished)
