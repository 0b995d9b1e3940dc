"""The run folder: one SQLite file for numbers, one safetensors file per block for tensors.

::

    run.json         what the run is: specification, fingerprints of models and data, versions; never changed
    results.sqlite   tables sample, result, block
    tensors/MODEL/ATTACK/block-000000.safetensors

A block's tensors are in place, under their own name and on the disk, before its rows are; its rows come in one
transaction. So whatever is in the table ``block`` is whole, and what is not there is done again.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor

from .identity import differences, surroundings

FORMAT = 1

TABLES = """
CREATE TABLE IF NOT EXISTS sample (
    position INTEGER PRIMARY KEY,  -- in the samples of this run, from 0
    idx INTEGER NOT NULL,          -- in the whole data set
    uid TEXT NOT NULL,             -- digest of the input
    label INTEGER NOT NULL
) {strict};
CREATE TABLE IF NOT EXISTS block (
    model TEXT NOT NULL,
    attack TEXT NOT NULL,          -- an attack's label, or clean, or explanation
    block INTEGER NOT NULL,
    file TEXT NOT NULL,            -- its tensors
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,          -- of the file
    notes TEXT NOT NULL,           -- JSON
    seconds REAL NOT NULL,
    PRIMARY KEY (model, attack, block)
) {strict};
CREATE TABLE IF NOT EXISTS result (
    model TEXT NOT NULL,
    attack TEXT NOT NULL,
    position INTEGER NOT NULL REFERENCES sample,
    eps REAL NOT NULL,             -- the budget: 0 for clean; for a minimal search the largest distance tried
    success INTEGER NOT NULL CHECK (success IN (0, 1)),   -- the model was wrong
    flagged INTEGER NOT NULL CHECK (flagged IN (0, 1)),   -- its output was NaN or infinite: no success, no resistance
    prediction INTEGER NOT NULL,   -- the class there; -1 if flagged
    margin REAL,                   -- best other logit minus the label's; NULL if flagged
    distance REAL NOT NULL,        -- from the sample, in the run's norm
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
    """A run folder, open for reading and writing. Use it in a ``with``.

    Args:
        folder: of an existing run; :meth:`start` makes or resumes one.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its ``run.json`` cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = read_about(self.folder)
        self._db = _open(self.folder / "results.sqlite")

    @classmethod
    def start(cls, folder: str | Path, identity: Mapping[str, Any], samples: Iterable[tuple[int, str, int]]) -> "Store":
        """A new run in an empty folder, or the same run again where it was left.

        Args:
            folder: is made if need be.
            identity: what the run is, see :func:`robustx.evaluation.identity.identity`.
            samples: index in the data set, digest and label of each.

        Raises:
            ValueError: the folder holds another run (the message names what differs) or something else.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.json").exists():
            found = differences({k: read_about(folder).get(k) for k in identity}, dict(identity))
            if found:
                found = [d for d in found if not d.startswith("spec_sha256")] or found
                raise ValueError(
                    f"{str(folder)!r} holds another run, which differs in {'; '.join(found)}; choose another folder, "
                    "or remove this one"
                )
        else:
            strange = sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp"))
            if strange:
                raise ValueError(
                    f"{str(folder)!r} holds no run but {strange[0]!r}; choose a new or an empty folder for the run"
                )
            about = {"format": FORMAT, **identity, "surroundings": surroundings()}
            write(
                folder / "run.json", json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            )
        store = cls(folder)
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
        self._db.close()

    def done(self) -> set[Work]:
        """The work that is finished and whose tensors are in place."""
        return {
            Work(*key)
            for *key, file, size in self._db.execute("SELECT model, attack, block, file, bytes FROM block")
            if _size(self.folder / file) == size
        }

    def finish(
        self,
        work: Work,
        rows: Iterable[Row],
        tensors: Mapping[str, Tensor],
        notes: Any = (),
        seconds: float = 0.0,
    ) -> None:
        """Keeps a finished block for good. Doing it twice is harmless."""
        from safetensors.torch import save

        file = self._file(work)
        content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
        write(self.folder / file, content)
        told = json.dumps(notes, ensure_ascii=False, allow_nan=False)
        about = (file, len(content), hashlib.sha256(content).hexdigest(), told, seconds)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*work, *about))
            db.executemany(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((work.model, work.attack, *row) for row in rows),
            )

    def samples(self) -> list[tuple[int, str, int]]:
        """Index in the data set, digest of the input and label, in order."""
        return list(self._db.execute("SELECT idx, uid, label FROM sample ORDER BY position"))

    def rows(self, model: str, attack: str, positions: range | None = None) -> list[Row]:
        """What one attack did to one model, in the order of samples and budgets."""
        among = positions or range(2**62)
        return [
            Row(p, e, bool(s), bool(f), *rest)
            for p, e, s, f, *rest in self._db.execute(
                "SELECT position, eps, success, flagged, prediction, margin, distance, forwards, backwards FROM result "
                "WHERE model = ? AND attack = ? AND position >= ? AND position < ? ORDER BY position, eps",
                (model, attack, among.start, among.stop),
            )
        ]

    def notes(self, model: str, attack: str) -> list[Any]:
        """What was noted of each finished block, in order."""
        query = "SELECT notes FROM block WHERE model = ? AND attack = ? ORDER BY block"
        return [json.loads(told) for (told,) in self._db.execute(query, (model, attack))]

    def seconds(self, model: str, attack: str) -> float:
        """How long the finished blocks took."""
        query = "SELECT total(seconds) FROM block WHERE model = ? AND attack = ?"
        return float(self._db.execute(query, (model, attack)).fetchone()[0])

    def tensors(self, work: Work) -> dict[str, Tensor]:
        """The tensors of a finished block.

        Raises:
            FileNotFoundError: it is not finished, or its file is gone.
            ValueError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / self._file(work)
        if not path.exists():
            raise FileNotFoundError(f"there is no {str(path)!r}; evaluate again in the same folder to make it")
        try:
            return load_file(path)
        except SafetensorError as e:
            raise ValueError(
                f"{str(path)!r} is damaged ({e}); remove it and evaluate again in the same folder"
            ) from None

    def fingerprint(self) -> str:
        """SHA-256 over all samples, rows, notes and tensors (by the digests of their files); not over times."""
        sha = hashlib.sha256()
        for query in (
            "SELECT * FROM sample ORDER BY position",
            "SELECT * FROM result ORDER BY model, attack, position, eps",
            "SELECT model, attack, block, file, sha256, notes FROM block ORDER BY model, attack, block",
        ):
            for row in self._db.execute(query):
                sha.update(repr(row).encode())
        return sha.hexdigest()

    def _file(self, work: Work) -> str:
        return f"tensors/{slug(work.model)}/{slug(work.attack)}/block-{work.block:06d}.safetensors"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


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


def write(path: Path, content: bytes) -> None:
    """The file, whole and on the disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def slug(name: str) -> str:
    """A name as a folder's name: what any file system takes, and different for different names."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:40]
    return plain if plain and plain == name else f"{plain or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    for table in TABLES.format(strict="STRICT" if sqlite3.sqlite_version_info >= (3, 37) else "").split(";\n"):
        db.execute(table)
    return db


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
