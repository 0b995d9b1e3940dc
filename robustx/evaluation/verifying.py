"""Verification: the numbers of a run, computed again from what it stored.

An adversarial example is its own proof: it lies in the box and in the ball or it does not, and the model is wrong about
it or it is not. So whoever has the run folder, the model and the data can check what the run says, in a small part of
the time that it took. What needs the attacks themselves, that they failed where they say so, and what it cost, is
checked where the attacks are made again.
"""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.packing import flat
from ..engine.progress import progress
from ..perturb.goals import margin
from ..perturb.norms import norm_of
from .block import Block, Finished, clean_block, logits_of, standing, trials
from .identity import differences, differing, short
from .merging import conflict
from .plan import attacks, closing, plan
from .run import Run
from .spec import BOUND, CLEAN, CORRUPTION, AttackSpec
from .store import Row, Store, Work
from .work import Job, close, do, fallen_before, fitting

BALL = 1e-6
"""The share of a budget by which an adversarial example may exceed it in float64."""


@dataclass(frozen=True)
class Difference:
    """Something that does not come out as it was stored.

    Attributes:
        kind: of the check.
        model, attack: of which it was made, if of one; the attack may be another part of the run.
        sample: its position in the run, if it was made of one.
        stored: what the run says.
        recomputed: what comes out.
    """

    kind: str
    model: str
    attack: str
    sample: int | None
    stored: str
    recomputed: str

    def __str__(self) -> str:
        of = [self.model, self.attack, "" if self.sample is None else f"sample {self.sample}"]
        where = ", ".join(w for w in of if w)
        return f"{self.kind}{f' ({where})' if where else ''}: stored {self.stored}, recomputed {self.recomputed}"


@dataclass(frozen=True)
class Verification:
    """What came out when the numbers of a run were computed again.

    Attributes:
        folder: of the run.
        checks: how many were made, by kind.
        differences: what did not come out as it was stored.
        unfinished: units of work that the run has not done yet; nothing is said of them.
        elsewhere: in what device and versions differ from those of the run; where they do, so may last digits.
    """

    folder: Path
    checks: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unfinished: int = 0
    elsewhere: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything that was checked came out as it was stored."""
        return not self.differences

    def __repr__(self) -> str:
        found = len(self.differences)
        told = "no difference" if not found else f"{found} difference{'s' if found > 1 else ''}"
        lines = [f"Verification({str(self.folder)!r}: {sum(self.checks.values())} checks, {told})"]
        return "\n".join([*lines, *(f"  {d}" for d in self.differences[:20]), *(["  ..."] if found > 20 else [])])


def verify(
    folder: str | Path,
    models: Mapping[str, Callable[..., Any]],
    data: Any,
    *,
    again: bool = False,
    show_progress: bool = False,
) -> Verification:
    """Computes the numbers of a run again from what it stored, with the models and the data that it was a run of.

    ``model``, ``data``, ``specification``
        ``run.json`` against the models, the data and the specification itself.
    ``sample``
        Place in the data set, digest and label of each.
    ``file``
        The digest of each file of tensors, and that a run with a summary has all of them.
    ``row``
        That the rows of each part are those that there must be, given what earlier parts found, and agree with
        themselves.
    ``example``
        That each success has its adversarial example, and nothing else has one.
    ``box``, ``ball``, ``distance``
        Of each example, in float64: the bounds to the bit, the budget to a millionth, the distance to four roundings
        of the inputs' dtype.
    ``success``, ``prediction``, ``margin``
        By a fresh pass of the samples and of each example. An example must fool the model now. Otherwise outputs may
        differ by rounding, as other batches and machines round otherwise: by the square root of the precision of the
        inputs' dtype (3.5e-4 for float32), as a share of the largest logit of the row.
    ``copy``
        Of several processes that finished the same block, that they wrote the same.
    ``bound``, ``corruption``
        These are made again as a whole.
    ``attack``, ``soundness``, ``explanation``
        With ``again`` so are the attacks, the checks of the evaluation itself and the explanations: it takes as long
        as the run took, and is the only check that attacks failed where they say so. On another machine they may end
        elsewhere.
    ``summary``, ``table``
        ``summary.json`` and ``samples.csv`` against the rows.

    Args:
        folder: of the run.
        models: name to model, those of the run.
        data: the samples of the run, as :func:`robustx.evaluation.evaluate` took them.
        again: make attacks, the checks of soundness and explanations again too.
        show_progress: draw a bar on standard error.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError, TypeError: models or data of other names than the run's, samples outside their bounds, a model in
            train mode or one that does not take these inputs.

    >>> import tempfile, torch
    >>> from robustx.evaluation import Spec, evaluate
    >>> net, xy = torch.nn.Linear(4, 3), (torch.rand(20, 4), torch.arange(20) % 3)
    >>> spec = Spec(models=("linear",), data="data", eps=0.1, explain=0, soundness=False)
    >>> run = evaluate({"linear": net}, xy, spec, tempfile.mkdtemp())
    >>> verify(run.folder, {"linear": net}, xy).ok
    True
    >>> other = verify(run.folder, {"linear": torch.nn.Linear(4, 3)}, xy)
    >>> other.ok, other.differences[0].kind
    (False, 'model')
    """
    run = Run(folder)
    job = Job.of(models, data, run.spec)
    audit, now = _Audit(), job.identity
    with Store(folder) as store:
        works = [*plan(run.spec, run.data["count"]), *closing(run.spec)]
        done = store.done()
        if _identity(audit, run, now) and _samples(audit, store, job):
            for work in works if (run.folder / "summary.json").exists() else ():
                audit.of("file", work, None, work in done, "finished", "not there, or not as long as it was")
            for work in sorted(done.difference(works)):
                audit.of("row", work, None, False, f"block {work.block}", "no part of the run")
            here = [w for w in works if w in done]
            with progress(len(here), "verify", show_progress, unit="part") as tell:
                for work in here:
                    _part(audit, store, job, work, again)
                    tell(1)
            _copies(audit, store)
            _statistics(audit, run)
    left = sum(w not in done for w in works)
    where = ({k: told[k] for k in ("device", "versions")} for told in (run.about, now))
    return Verification(run.folder, dict(audit.checks), audit.differences, left, tuple(differences(*where)))


class _Audit:
    """Counts checks and collects differences."""

    def __init__(self) -> None:
        self.checks: Counter[str] = Counter()
        self.differences: list[Difference] = []

    def of(self, kind: str, work: Work | None, sample: int | None, same: bool, stored: Any, recomputed: Any) -> None:
        """One check of a unit of work, or of the run as a whole."""
        self.checks[kind] += 1
        if not same:
            self._found(kind, work, sample, stored, recomputed)

    def json(
        self, kind: str, work: Work | None, sample: int | None, stored: Any, recomputed: Any, give: float = 1e-9
    ) -> None:
        """One check for each place of two pieces of JSON; numbers with a fraction to within a share of them."""
        self.checks[kind] += _leaves(recomputed)
        for at, a, b in differing(stored, recomputed):
            if not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=give)):
                self._found(kind, work, sample, f"{at} = {a}", f"{at} = {b}")

    def _found(self, kind: str, work: Work | None, sample: int | None, stored: Any, recomputed: Any) -> None:
        model, attack = ("", "") if work is None else (work.model, work.attack)
        self.differences.append(Difference(kind, model, attack, sample, short(stored), short(recomputed)))


def _identity(audit: _Audit, run: Run, now: Mapping[str, Any]) -> bool:
    """Whether the data have the form of the run's, so that it makes sense to go on."""
    about = run.about
    audit.of("specification", None, None, about["spec_sha256"] == now["spec_sha256"], about["spec_sha256"], now["spec"])
    for name in run.spec.names:
        audit.json("model", Work(name, "", 0), None, about["models"].get(name), now["models"][name])
    audit.json("data", None, None, about["data"], now["data"])
    form = ("count", "shape")
    return [about["data"][k] for k in form] == [now["data"][k] for k in form]


def _samples(audit: _Audit, store: Store, job: Job) -> bool:
    """Whether there is a stored sample for each of the data."""
    stored, now = store.samples(), list(job.samples())
    if len(stored) != len(now):
        audit.of("sample", None, None, False, f"{len(stored)} samples", f"{len(now)} samples")
        return False
    for p, (a, b) in enumerate(zip(stored, now, strict=True)):
        audit.of("sample", None, p, a == b, a, b)
    return True


def _part(audit: _Audit, store: Store, job: Job, work: Work, again: bool) -> None:
    """The checks of one unit of work."""
    try:
        tensors = store.tensors(work)
    except ValueError:
        content = (store.folder / store.told(work, "file")).read_bytes()
        audit.of("file", work, None, False, store.told(work, "sha256"), hashlib.sha256(content).hexdigest())
        return
    audit.of("file", work, None, True, "", "")
    if work in closing(job.spec):
        if again:
            _redone(audit, store, job, work, tensors, [], close(store, job, work))
        return
    block = job.block(work)
    rows = store.rows(work.model, work.attack, block.positions)
    if work.attack == CLEAN:
        _clean(audit, job, work, block, rows, tensors)
    elif work.attack in attacks(job.spec):
        _attack(audit, store, job, work, block, rows, tensors)
    if work.attack.startswith((BOUND, CORRUPTION)) or (again and work.attack != CLEAN):
        _redone(audit, store, job, work, tensors, rows, fitting(block, partial(do, store, job, work)))


def _clean(audit: _Audit, job: Job, work: Work, block: Block, rows: list[Row], tensors: Mapping[str, Tensor]) -> None:
    fresh = clean_block(job.models[work.model], block)
    logits = fresh.tensors["logits"].cpu()
    if not _kept(audit, work, {(p, 0.0) for p in block.positions}, rows):
        return
    for row in rows:
        plain = (row.distance, row.forwards, row.backwards)
        audit.of("row", work, row.position, plain == (0, 1, 0), plain, (0.0, 1, 0))
    _answers(audit, work, rows, logits, block.y.cpu(), block.x.dtype)
    _tensor(audit, work, "logits", tensors.get("logits"), logits, _slack(logits, block.x.dtype)[:, None])


def _attack(
    audit: _Audit, store: Store, job: Job, work: Work, block: Block, rows: list[Row], tensors: Mapping[str, Tensor]
) -> None:
    spec = job.spec
    k = attacks(spec).index(work.attack) - 1
    fallen = fallen_before(store, job, work.model, block, k)
    _kept(audit, work, _due(spec.attacks[k], job, block, fallen, rows), rows)
    for r in rows:
        label = int(block.y[r.position - block.positions.start])
        unknown = {r.flagged, r.prediction == -1, r.margin is None}
        own = (r.prediction == label) != (r.success or r.flagged) and not (r.success and r.flagged)
        inside = 0 <= r.distance <= r.eps * (1 + BALL) and r.forwards >= 0 and r.backwards >= 0
        audit.of("row", work, r.position, len(unknown) == 1 and own and inside, tuple(r), "it contradicts itself")
    lacking = {"adversarial", "position", "eps"} - tensors.keys()
    if lacking:
        return audit.of("example", work, None, False, f"no tensor {min(lacking)}", "one")
    found, keys = tensors["adversarial"], list(zip(tensors["position"].tolist(), tensors["eps"].tolist(), strict=True))
    if found.dtype != block.x.dtype or found.shape != (len(keys), *block.x.shape[1:]):
        wanted = f"{block.x.dtype} {[len(keys), *block.x.shape[1:]]}"
        return audit.of("example", work, None, False, f"{found.dtype} {list(found.shape)}", wanted)
    won = {(r.position, r.eps): r for r in rows if r.success}
    for key, n in Counter({**dict.fromkeys(won, 0), **Counter(keys)}).items():
        told = f"{n} at {key[1]:g}", "1" if key in won else "0: the row tells no success"
        audit.of("example", work, key[0], n == (key in won), *told)
    proved = [(i, won[key]) for i, key in enumerate(keys) if key in won]
    if proved:
        index = torch.tensor([i for i, _ in proved])
        _examples(audit, job, work, block, [r for _, r in proved], found[index])


def _due(attack: AttackSpec, job: Job, block: Block, fallen: Tensor, rows: Iterable[Row]) -> set[tuple[int, float]]:
    """The samples and budgets of which there must be a row, given what fell: all that an attack had to see."""
    found, due = {(r.position, r.eps): r for r in rows}, set()
    fallen = fallen.clone()
    for budgets in trials(attack, job.spec, fallen):
        for i in standing(attack, fallen, budgets).tolist():
            key = (block.positions[i], float(budgets[i]))
            due.add(key)
            row = found.get(key)
            if row is not None and row.success:
                fallen[i] = min(float(fallen[i]), row.distance, row.eps)
    return due


def _kept(audit: _Audit, work: Work, due: set[tuple[int, float]], rows: Iterable[Row]) -> bool:
    """Whether the rows are those that there must be."""
    there = {(r.position, r.eps) for r in rows}
    for p, e in sorted(due | there):
        told, wanted = (f"{'a' if (p, e) in keys else 'no'} row at {e:g}" for keys in (there, due))
        audit.of("row", work, p, told == wanted, told, wanted)
    return due == there


def _examples(audit: _Audit, job: Job, work: Work, block: Block, rows: list[Row], found: Tensor) -> None:
    """Adversarial examples [n, ...] against the rows that tell of them."""
    numbers = torch.tensor([r.position - block.positions.start for r in rows])
    x, y, dtype = block.x.cpu()[numbers], block.y.cpu()[numbers], block.x.dtype
    low, high = (torch.as_tensor(b, dtype=dtype).cpu() for b in block.bounds)
    inside = ((found >= low) & (found <= high)).flatten(1).all(1)
    size = norm_of(job.spec.norm).size(flat(found).double() - flat(x).double())
    slack = 4 * torch.finfo(dtype).eps
    for r, within, d in zip(rows, inside.tolist(), size.tolist(), strict=True):
        audit.of("box", work, r.position, within, "an example inside the bounds", "one outside")
        audit.of("ball", work, r.position, d <= r.eps * (1 + BALL), f"at most {r.eps:.9g}", f"{d:.9g}")
        audit.of("distance", work, r.position, abs(d - r.distance) <= slack * d, f"{r.distance:.9g}", f"{d:.9g}")
    whole = torch.isfinite(flat(found)).all(1).nonzero().squeeze(1)  # the others are outside, and cannot be asked of
    if len(whole):
        here = block.x.device
        positions = [rows[i].position for i in whole.tolist()]
        logits = logits_of(job.models[work.model], found[whole].to(here), y[whole].to(here), positions).cpu()
        _answers(audit, work, [rows[i] for i in whole.tolist()], logits, y[whole], dtype, sure=True)


def _answers(
    audit: _Audit, work: Work, rows: Sequence[Row], logits: Tensor, y: Tensor, dtype: torch.dtype, sure: bool = False
) -> None:
    """Fresh outputs [n, K] against rows; ``sure``: the model must be wrong, not only by rounding."""
    slack, finite = _slack(logits, dtype), torch.isfinite(logits).all(1)
    lead, top = margin(logits, y).double(), logits.double().amax(1)
    columns = (c.tolist() for c in (logits.double(), y, slack, finite, lead, top))
    for r, (scores, label, give, known, m, most) in zip(rows, zip(*columns, strict=True), strict=True):
        answer = scores.index(most) if known else -1
        if r.flagged or not known:
            audit.of("prediction", work, r.position, r.flagged and not known, _said(r), "finite" if known else "NaN")
            continue
        wrong = m > 0
        audit.of("success", work, r.position, r.success == wrong or (abs(m) <= give and not sure), r.success, wrong)
        likely = 0 <= r.prediction < len(scores) and scores[r.prediction] >= most - give
        fits = likely and (r.prediction != label) == r.success
        audit.of("prediction", work, r.position, fits, r.prediction, answer)
        near = r.margin is not None and abs(r.margin - m) <= give
        audit.of("margin", work, r.position, near, _said(r), f"{m:.6g}")


def _said(r: Row) -> str:
    return "flagged" if r.flagged else "nothing" if r.margin is None else f"{r.margin:.6g}"


def _slack(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """How much rounding may move each row of outputs [n]."""
    return math.sqrt(torch.finfo(dtype).eps) * logits.double().abs().nan_to_num(0, 0, 0).amax(1)


def _redone(
    audit: _Audit, store: Store, job: Job, work: Work, tensors: Mapping[str, Tensor], rows: list[Row], fresh: Finished
) -> None:
    """What was made again as a whole, against what is stored."""
    kind = next((p[:-1] for p in (BOUND, CORRUPTION) if work.attack.startswith(p)), "attack")
    kind = work.attack if work in closing(job.spec) else kind
    give = math.sqrt(torch.finfo(job.data.x.dtype).eps)
    scale = max([1.0, *(abs(r.margin) for r in fresh.rows if r.margin is not None)])
    now = {(r.position, r.eps): r for r in fresh.rows}
    then = {(r.position, r.eps): r for r in rows}
    for key in sorted(now.keys() | then.keys()):
        a, b = then.get(key), now.get(key)
        same = a is not None and b is not None and _alike(a, b, give, scale)
        audit.of(kind, work, key[0], same, a and tuple(a), b and tuple(b))
    for name in sorted(tensors.keys() | fresh.tensors.keys()):
        t = fresh.tensors.get(name)
        room = (
            None if t is None else give * t.detach().double().cpu().abs().nan_to_num(0, 0, 0).amax() if t.numel() else 0
        )
        _tensor(audit, work, name, tensors.get(name), t, room, kind)
    notes = json.loads(store.told(work, "notes"))
    audit.json(kind, work, None, {"notes": notes}, {"notes": json.loads(json.dumps(fresh.notes))}, give)


def _alike(a: Row, b: Row, give: float, scale: float) -> bool:
    """Whether two rows are the same to rounding."""
    if a._replace(margin=b.margin, distance=b.distance) != b or (a.margin is None) != (b.margin is None):
        return False
    near = a.margin is None or b.margin is None or abs(a.margin - b.margin) <= give * scale
    return near and (a.distance == b.distance or math.isclose(a.distance, b.distance, rel_tol=give))


def _tensor(
    audit: _Audit, work: Work, name: str, stored: Tensor | None, now: Tensor | None, give: Any, kind: str = "margin"
) -> None:
    """A stored tensor against one that was made again, to within ``give`` where it holds numbers with a fraction."""
    if stored is None or now is None or stored.shape != now.shape or stored.dtype != now.dtype:
        forms = ("nothing" if t is None else f"{t.dtype} {list(t.shape)}" for t in (stored, now))
        return audit.of(kind, work, None, False, *(f"{name}: {form}" for form in forms))
    a, b = (t.detach().cpu().double() for t in (stored, now))
    off = ((a - b).abs() > give) if now.is_floating_point() else a != b
    off = off & ~((a == b) | (a.isnan() & b.isnan())) | (a.isnan() != b.isnan())
    told = "the same" if not off.any() else f"{int(off.sum())} of {off.numel()} elements differ"
    return audit.of(kind, work, None, not off.any(), f"a tensor {name}", told)


def _copies(audit: _Audit, store: Store) -> None:
    """What several processes finished, file by file."""
    files = sorted(path.name for path in store.folder.glob("results-*.sqlite"))
    for name in files if len(files) > 1 else ():
        with Store(store.folder, files=name) as one:
            for work in sorted(one.done()):
                different = conflict(store, one, work)
                audit.of("copy", work, None, not different, name, different)


def _statistics(audit: _Audit, run: Run) -> None:
    """The files for people, against what the rows say."""
    path, now = run.folder / "summary.json", run.summary()
    if path.exists():
        audit.json("summary", None, None, _loaded(path), now)
    path = run.folder / "samples.csv"
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            stored = list(csv.DictReader(file))
        fresh = list(csv.DictReader(io.StringIO(run.to_csv())))
        audit.of("table", None, None, len(stored) == len(fresh), f"{len(stored)} rows", f"{len(fresh)} rows")
        for a, b in zip(stored, fresh, strict=False):
            audit.json("table", Work(b["model"], "", 0), int(b["position"]), a, b)


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        return f"no JSON: {e}"


def _leaves(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_leaves, value.values() if isinstance(value, dict) else value))
    return 1
