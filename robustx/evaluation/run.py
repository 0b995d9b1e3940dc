"""Runs, read back from their folders."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from ..zoo import class_name
from .plan import attacks, closing, plan
from .spec import CLEAN, EXPLANATION, Spec
from .statistics import Cumulative, Outcome, compare, cumulative, curve, distances, plain
from .store import Store, Work, read_about, write


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
        write(self.folder / "summary.json", f"{told}\n".encode())
        write(self.folder / "samples.csv", self.to_csv().encode())

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
        needed = attacks(spec)
        missing = {w.block for w in plan(spec, count) if w.attack in needed and w not in done}
        finished = all(w in done for w in [*plan(spec, count), *closing(spec)])
        y, names = [label for _, _, label in samples], [a.label for a in spec.attacks]
        outcomes, told, warnings, seconds = [], {}, {}, {}
        for m in spec.names:
            clean, *rows = (
                [r for r in store.rows(m, label) if r.position // spec.block_size not in missing]
                for label in (CLEAN, *names)
            )
            upto = [Outcome.of(m, y, clean, rows[: k + 1]) for k in range(len(rows))]
            outcomes.append(upto[-1])
            told[m] = cumulative(upto, rows, names, spec.eps)
            warnings[m] = sorted({n for label in names for block in store.notes(m, label) for n in block})
            seconds[m] = {label: store.seconds(m, label) for label in (CLEAN, *names, EXPLANATION)}
        return cls(outcomes, told, warnings, seconds, samples, store.fingerprint(), finished)
