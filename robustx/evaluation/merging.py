"""Merging: one run folder from several of the same run."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .identity import differences
from .run import Run
from .store import Row, Store, Work, read_about

APART = ("format", "surroundings")  # of run.json, what may differ between folders of one run


def merge(folders: Sequence[str | Path], out: str | Path) -> Run:
    """One run folder from several of the same run, such as shards from machines that share no disk.

    Each block is copied to the byte; where two folders hold the same block, it must be the same. What is in ``out``
    stays. Nothing is written twice, so an interrupted merge may be called again.

    Args:
        folders: that :func:`robustx.evaluation.evaluate` wrote; none is changed.
        out: the folder of the whole; new, empty, or of the same run, also one of ``folders``.

    Returns:
        The run. Where all blocks are there now, :func:`robustx.evaluation.evaluate` with ``out`` completes it: what is
        done last needs the models.

    Raises:
        FileNotFoundError, ValueError: a folder holds no run, or another one (the message says in what it differs); a
            block that is in two folders and differs (it says where), or whose file is damaged.

    >>> import tempfile, torch
    >>> from robustx.evaluation import Spec, evaluate
    >>> models, xy = {"linear": torch.nn.Linear(4, 3)}, (torch.rand(20, 4), torch.arange(20) % 3)
    >>> spec = Spec(models=("linear",), data="data", eps=0.1, block_size=10, explain=0, soundness=False)
    >>> parts = [evaluate(models, xy, spec, tempfile.mkdtemp(), shard=(k, 2)).folder for k in (0, 1)]
    >>> merge(parts, tempfile.mkdtemp()).finished
    True
    """
    if not folders:
        raise ValueError("folders must name at least one run folder, got none")
    about = [read_about(Path(folder)) for folder in folders]
    first, *others = ({k: v for k, v in told.items() if k not in APART} for told in about)
    for folder, other in zip(folders[1:], others, strict=True):
        found = differences(first, other)
        if found:
            raise ValueError(
                f"{str(folder)!r} and {str(folders[0])!r} hold two different runs, which differ in {'; '.join(found)}; "
                "merge folders of one run only"
            )
    with ExitStack() as opened:
        parts = [opened.enter_context(Store(folder)) for folder in folders]
        samples = next((s for s in map(Store.samples, parts) if s), [])  # one that was killed early may have none
        for part in parts:
            if part.samples() not in (samples, []):
                raise ValueError(
                    f"{str(part.folder)!r} has other samples than {str(folders[0])!r}; one of them is wrong"
                )
        whole = opened.enter_context(Store.start(out, first, samples, "merged"))
        for part in parts:
            for work in sorted(part.done()):
                if work not in whole.done():
                    whole.adopt(part, work)
                elif different := conflict(whole, part, work):
                    raise ValueError(
                        f"{str(out)!r} and {str(part.folder)!r} differ in {different}; one of them is wrong"
                    )
    run = Run(out)
    if run.finished:
        run.write()
    return run


def conflict(a: Store, b: Store, work: Work) -> str:
    """Where two copies of a finished block differ, in words; nothing if they do not."""
    key = f"block {work.block} of {work.attack!r} on {work.model!r}"
    rows = [{(r.position, r.eps): r for r in store.rows_of(work)} for store in (a, b)]
    for place in sorted(rows[0].keys() | rows[1].keys()):
        one, two = (found.get(place) for found in rows)
        if one != two:
            where = f"{key}, sample {place[0]} at {place[1]:g}"
            if one is None or two is None:
                return f"{where}: only the {'second' if one is None else 'first'} has a row"
            return f"{where}: {_told(one, two)} in the first, {_told(two, one)} in the second"
    for column in ("sha256", "notes"):
        told = [store.told(work, column) for store in (a, b)]
        if told[0] != told[1]:
            return f"{key}: {column} {told[0]} in the first, {told[1]} in the second"
    return ""


def _told(row: Row, other: Row) -> str:
    return ", ".join(f"{k} {v}" for k, v in row._asdict().items() if v != other._asdict()[k])
