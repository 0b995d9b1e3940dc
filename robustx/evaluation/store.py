"""The run folder: a SQLite file of each writer for numbers, one safetensors file per block for tensors.

::

    run.json                  what the run is: specification, fingerprints of models and data, versions; never changed
    results-WRITER.sqlite     tables sample, result, block; one file for each process that works on the run
    tensors/MODEL/ATTACK/block-000000.safetensors

A block's tensors are in place, under their own name and on the disk, before its rows are; its rows come in one
transaction. So whatever is in the table ``block`` is whole, and what is not there is done again. Nobody writes to the
file of another; done twice, a block is the same.
"""

import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from ..engine.files import put
from .identity import differences, surroundings

FORMAT = 2

TABLES = """
CREATE TABLE IF NOT EXISTS sample (
    position INTEGER PRIMARY KEY,  -- in the samples of this run, from 0
    idx INTEGER NOT NULL,          -- in the whole data set
    uid TEXT NOT NULL,             -- digest of the input
    label INTEGER NOT NULL
) {strict};
CREATE TABLE IF NOT EXISTS block (
    model TEXT NOT NULL,
    attack TEXT NOT NULL,          -- an attack's label, clean, bound-..., corruption-..., soundness or explanation
    block INTEGER NOT NULL,
    file TEXT NOT NULL,            -- its tensors
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,          -- of the file
    notes TEXT NOT NULL,           -- JSON
    seconds REAL NOT NULL,
    micro_batch INTEGER,           -- samples that went at once where memory ran out; NULL: it did not
    PRIMARY KEY (model, attack, block)
) {strict};
CREATE TABLE IF NOT EXISTS result (
    model TEXT NOT NULL,
    attack TEXT NOT NULL,
    position INTEGER NOT NULL REFERENCES sample,
    eps REAL NOT NULL,             -- the budget: 0 for clean and bounds; for a minimal search the largest distance
                                   -- tried; the severity of a corruption
    success INTEGER NOT NULL CHECK (success IN (0, 1)),   -- the model was wrong
    flagged INTEGER NOT NULL CHECK (flagged IN (0, 1)),   -- its output was NaN or infinite: no success, no resistance
    prediction INTEGER NOT NULL,   -- the class there; -1 if flagged
    margin REAL,                   -- best other logit minus the label's; NULL if flagged
    distance REAL NOT NULL,        -- from the sample, in the run's norm; the certified radius of a bound
    forwards INTEGER NOT NULL,     -- rows that went through the model
    backwards INTEGER NOT NULL,
    PRIMARY KEY (model, attack, position, eps)
) {strict};
"""


class Row(NamedTuple):
    """One row of the table ``result``, without the columns that its block knows."""

    position: int
    eps: float
    success: bool
    flagged: bool
    prediction: int
    margin: float | None
    distance: float
    forwards: int
    backwards: int


class Work(NamedTuple):
    """A unit of work: what a block of samples goes through at once."""

    model: str
    attack: str
    block: int


class Store:
    """A run folder, open for reading, and for writing to the file of one writer. Use it in a ``with``.

    What it tells is what stood in the folder when it was opened, or at the last :meth:`refresh`, and what it wrote.

    Args:
        folder: of an existing run; :meth:`start` makes or resumes one.
        writer: whose file it may write to; None: none.
        files: which of the writers' files are read.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its ``run.json`` cannot be read.
    """

    def __init__(self, folder: str | Path, writer: str | None = None, files: str = "results-*.sqlite") -> None:
        self.folder, self._pattern = Path(folder), files
        self.about = read_about(self.folder)
        self._block = int(self.about["spec"]["block_size"])
        self._name = None if writer is None else f"results-{slug(writer)}.sqlite"
        self._files: dict[str, sqlite3.Connection] = {}
        self._owner: dict[Work, str] = {}  # who finished what
        if self._name is not None:
            self._files[self._name] = _open(self.folder / self._name)
        self.refresh()

    @classmethod
    def start(
        cls,
        folder: str | Path,
        identity: Mapping[str, Any],
        samples: Iterable[tuple[int, str, int]],
        writer: str = "main",
    ) -> "Store":
        """A new run in an empty folder, or the same run again where it was left.

        Args:
            folder: is made if need be.
            identity: what the run is, see :func:`robustx.evaluation.identity.identity`.
            samples: index in the data set, digest and label of each.
            writer: the name of whoever writes; no two at a time may bear the same.

        Raises:
            ValueError: the folder holds another run (the message names what differs) or something else.
            NotADirectoryError: it is a file.
        """
        folder = Path(folder)
        if folder.is_file():
            raise NotADirectoryError(f"{str(folder)!r} is a file; name a new or an empty folder for the run")
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp"))
        if names and not (folder / "run.json").exists():
            raise ValueError(
                f"{str(folder)!r} holds no run but {names[0]!r}; choose a new or an empty folder for the run"
            )
        about = {"format": FORMAT, **identity, "surroundings": surroundings()}
        told = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if not names:
            with contextlib.suppress(FileExistsError):  # another writer of the run came first
                put(folder / "run.json", told, new=True)
        found = differences({k: read_about(folder).get(k) for k in identity}, dict(identity))
        if found:
            found = [d for d in found if not d.startswith("spec_sha256")] or found
            raise ValueError(
                f"{str(folder)!r} holds another run, which differs in {'; '.join(found)}; choose another folder, or "
                "remove this one"
            )
        store = cls(folder, writer)
        with store._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO sample VALUES (?, ?, ?, ?)", ((i, *sample) for i, sample in enumerate(samples))
            )
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        for db in self._files.values():
            db.close()
        self._files = {}

    def refresh(self) -> None:
        """Looks at what all writers have finished by now."""
        for path in sorted(self.folder.glob(self._pattern)):
            if path.name not in self._files:
                self._files[path.name] = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._owner = {}
        for name in sorted(self._files):
            for model, attack, block, file, size in self._all(
                name, "SELECT model, attack, block, file, bytes FROM block"
            ):
                if _size(self.folder / file) == size:
                    self._owner.setdefault(Work(model, attack, block), name)

    def done(self) -> set[Work]:
        """The work that is finished and whose tensors are in place."""
        return set(self._owner)

    def finish(
        self,
        work: Work,
        rows: Iterable[Row],
        tensors: Mapping[str, Tensor],
        notes: Any = (),
        seconds: float = 0.0,
        micro_batch: int | None = None,
    ) -> None:
        """Keeps a finished block for good. Doing it twice is harmless.

        Args:
            micro_batch: samples that went at once, where memory ran out.

        Raises:
            OSError: it cannot be written; nothing of it is kept then.
        """
        from safetensors.torch import save

        content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
        self._keep(work, rows, content, json.dumps(notes, ensure_ascii=False, allow_nan=False), seconds, micro_batch)

    def adopt(self, other: "Store", work: Work) -> None:
        """Keeps a block as it stands, to the byte, in another folder of the same run.

        Raises:
            FileNotFoundError, ValueError: it is not whole there.
            OSError: it cannot be written.
        """
        rows = other.rows_of(work)
        about = (other.told(work, column) for column in ("notes", "seconds", "micro_batch"))
        self._keep(work, rows, other._content(work), *about)

    def _keep(
        self, work: Work, rows: Iterable[Row], content: bytes, notes: str, seconds: float, micro_batch: int | None
    ) -> None:
        assert self._name is not None, "opened for reading"
        file = self._file(work)
        put(self.folder / file, content)
        about = (file, len(content), hashlib.sha256(content).hexdigest(), notes, seconds, micro_batch)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*work, *about))
            db.executemany(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((work.model, work.attack, *row) for row in rows),
            )
        self._owner[work] = self._name

    def samples(self) -> list[tuple[int, str, int]]:
        """Index in the data set, digest of the input and label, in order."""
        each = (self._all(name, "SELECT idx, uid, label FROM sample ORDER BY position") for name in self._files)
        return max(each, key=len, default=[])  # a writer that was killed early may have written none

    def rows(self, model: str, attack: str, positions: range | None = None) -> list[Row]:
        """What one attack did to one model, in the order of samples and budgets."""
        among = positions or range(2**62)
        found = []
        for name in {n for w, n in self._owner.items() if (w.model, w.attack) == (model, attack)}:
            query = (
                "SELECT position, eps, success, flagged, prediction, margin, distance, forwards, backwards FROM result "
                "WHERE model = ? AND attack = ? AND position >= ? AND position < ?"
            )
            for p, e, s, f, *rest in self._files[name].execute(query, (model, attack, among.start, among.stop)):
                if self._owner.get(Work(model, attack, p // self._block)) == name:
                    found.append(Row(p, e, bool(s), bool(f), *rest))
        return sorted(found, key=lambda r: (r.position, r.eps))

    def rows_of(self, work: Work) -> list[Row]:
        """The rows of one finished block."""
        first = work.block * self._block
        return self.rows(work.model, work.attack, range(first, first + self._block))

    def blocks(self, model: str, attack: str, column: str) -> list[Any]:
        """A column of the table ``block``, in the order of the blocks."""
        return [self.told(w, column) for w in sorted(self._owner) if (w.model, w.attack) == (model, attack)]

    def told(self, work: Work, column: str) -> Any:
        """What a column of the table ``block`` says of a finished one."""
        query = f"SELECT {column} FROM block WHERE model = ? AND attack = ? AND block = ?"
        return self._files[self._owner[work]].execute(query, work).fetchone()[0]

    def notes(self, model: str, attack: str) -> list[Any]:
        """What was noted of each finished block, in order."""
        return [json.loads(told) for told in self.blocks(model, attack, "notes")]

    def seconds(self, model: str, attack: str) -> float:
        """How long the finished blocks took."""
        return float(sum(self.blocks(model, attack, "seconds")))

    def tensors(self, work: Work) -> dict[str, Tensor]:
        """The tensors of a finished block.

        Raises:
            FileNotFoundError: it is not finished, or its file is gone.
            ValueError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self._content(work))
        except SafetensorError as e:
            raise self._damaged(work, e) from None

    def _content(self, work: Work) -> bytes:
        """The bytes of a block's tensors, as they were written."""
        path = self.folder / self._file(work)
        if not path.exists():
            raise FileNotFoundError(f"there is no {str(path)!r}; evaluate again in the same folder to make it")
        content = path.read_bytes()
        if work in self._owner and self.told(work, "sha256") != hashlib.sha256(content).hexdigest():
            raise self._damaged(work, "its content is not what was written")
        return content

    def _damaged(self, work: Work, why: object) -> ValueError:
        path = str(self.folder / self._file(work))
        return ValueError(f"{path!r} is damaged ({why}); remove it and evaluate again in the same folder")

    def fingerprint(self) -> str:
        """SHA-256 over all samples, rows, notes and tensors (by the digests of their files).

        Not over times, nor over who did what, and how many samples at once.
        """
        sha = hashlib.sha256()
        for sample in self.samples():
            sha.update(repr(sample).encode())
        for model, attack in sorted({(w.model, w.attack) for w in self._owner}):
            for row in self.rows(model, attack):
                sha.update(repr((model, attack, *row)).encode())
            told = zip(*(self.blocks(model, attack, c) for c in ("block", "sha256", "notes")), strict=True)
            for block in told:
                sha.update(repr((model, attack, *block)).encode())
        return sha.hexdigest()

    def _file(self, work: Work) -> str:
        return f"tensors/{slug(work.model)}/{slug(work.attack)}/block-{work.block:06d}.safetensors"

    def _all(self, name: str, query: str) -> list[Any]:
        """The answer of one file; nothing of one whose writer is just beginning."""
        try:
            return self._files[name].execute(query).fetchall()
        except sqlite3.OperationalError as e:
            if "no such table" not in str(e):
                raise
            return []

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; a full disk is told as any other file tells it."""
        assert self._name is not None
        db = self._files[self._name]
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk has rolled it back already
                    db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as e:
            raise OSError(f"{str(self.folder / self._name)!r} cannot be written: {e}") from e


def read_about(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says."""
    path = folder / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run in {str(folder)!r}: no run.json; name a folder that evaluate wrote")
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form = about["format"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(e).__name__}: {e}); evaluate again in a new folder"
        ) from None
    if form != FORMAT:
        raise ValueError(f"{str(path)!r} has format {form}, and this version of robustx reads format {FORMAT}")
    return about


def slug(name: str) -> str:
    """A name as a folder's name: what any file system takes, and different for different names."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:40]
    return plain if plain and plain == name else f"{plain or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        for table in TABLES.format(strict="STRICT" if sqlite3.sqlite_version_info >= (3, 37) else "").split(";\n"):
            db.execute(table)
    except sqlite3.OperationalError as e:
        db.close()
        raise OSError(f"{str(path)!r} cannot be written: {e}") from e
    return db


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
