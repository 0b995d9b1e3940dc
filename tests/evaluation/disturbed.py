"""Runs that are disturbed. Workers are forked from one process, so that each costs milliseconds and can be killed.

``python disturbed.py FOLDER SEED kills signals small_files full_disk`` says in JSON what was done, or what went wrong.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustx import zoo
from robustx.cli import main
from robustx.evaluation import AttackSpec, Callback, Run, Spec, Step, Store, Work, evaluate, opened

VICTIM = "ROBUSTX_TEST_VICTIM"


def spec(model: str = "digits", data: str = "digits") -> Spec:
    """A run of 24 units of work and an explanation."""
    attacks = (
        AttackSpec("fgsm"),
        AttackSpec("pgd", {"steps": 3, "restarts": 2}),
        AttackSpec("bisection", {"steps": 2, "rounds": 2}),
    )
    return Spec(
        models=(model,),
        data=data,
        limit=24,
        block_size=4,
        eps=(0.1, 0.3),
        attacks=attacks,
        seed=3,
        explain=1,
        counterfactual=False,
        soundness=False,
    )


class Mortal(nn.Module):
    """Kills its own process, once: the first to remove the file that ``ROBUSTX_TEST_VICTIM`` names dies."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.passes = zoo.model("digits"), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self.passes == 25 and VICTIM in os.environ:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.environ[VICTIM])
                os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)


def mortal() -> nn.Module:
    return Mortal().eval()


def noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples that cost nothing to open."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, zoo.model("digits")(x).argmax(1)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that must not depend on how a run went."""
    files = [*folder.rglob("*.safetensors"), folder / "summary.json", folder / "samples.csv"]
    told = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return told | {"": Run(folder).fingerprint}


class Acknowledging(Callback):
    """Says of each unit of work that it is kept, at once and to another process."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def step(self, step: Step) -> None:
        os.write(self.pipe, f"{json.dumps(step.work)}\n".encode())


def forked(task: Callable[[], int]) -> int:
    """A child that does a task and ends with its code: 28 where there was no space, 99 after any other error."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = task()
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EFBIG) or "cannot be written" in str(e)
        code = errno.ENOSPC if full else 99
        if not full:
            sys.excepthook(*sys.exc_info())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Driver:
    """Disturbs runs in folders under one place, and compares them with one that nobody disturbed."""

    def __init__(self, place: Path, seed: int) -> None:
        import_module("robustx.cli.resume")  # once, before there are children
        self.place, self.draw = place, random.Random(seed)
        self.spec = spec(data="disturbed:noise")
        self.models, self.data = opened(self.spec)
        self.folder = place / "run"
        assert ended(forked(partial(self.work, place / "whole"))) == 0
        self.whole = digests(place / "whole")

    def work(self, folder: Path, writer: str = "main", pipe: int | None = None) -> int:
        told = () if pipe is None else (Acknowledging(pipe),)
        evaluate(self.models, self.data, self.spec, folder, callbacks=told, writer=writer)
        return 0

    def finished(self) -> None:
        """The run of the moment ended by itself: it must be as if nothing had been; go on with another."""
        assert digests(self.folder) == self.whole, "not the bytes of the run that was not disturbed"
        shutil.rmtree(self.folder)

    def kills(self, count: int = 60) -> dict[str, int]:
        """SIGKILL at any moment: what was acknowledged is there afterwards, the same, whoever wrote it."""
        killed, runs, before = 0, 0, {}
        while killed < count:
            ours, theirs = os.pipe()
            child = forked(partial(self.work, self.folder, self.draw.choice("ab"), theirs))
            os.close(theirs)
            time.sleep(self.draw.uniform(0.005, 0.2))
            os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (0, -signal.SIGKILL), code
            with os.fdopen(ours) as pipe:
                said = {Work(*json.loads(line)) for line in pipe}
            after = self.kept()
            assert said <= set(after) and before.items() <= after.items(), (said, before, after)
            killed, before = killed + (code != 0), after
            if code == 0:
                self.finished()
                runs, before = runs + 1, {}
        assert ended(forked(partial(self.work, self.folder))) == 0
        self.finished()
        return {"killed": killed, "runs": runs + 1}

    def signals(self, count: int = 5) -> list[int]:
        """Ctrl-C and SIGTERM in turns, to the command line, in the midst of one run."""
        codes = []
        (self.place / "spec.json").write_text(self.spec.to_json())
        argv = ["evaluate", str(self.place / "spec.json"), "--out", str(self.folder)]
        while len(codes) < count:
            before = len(list(self.folder.rglob("*.safetensors")))
            child = forked(partial(self.command, argv))
            deadline = time.monotonic() + 60
            while len(list(self.folder.rglob("*.safetensors"))) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(self.draw.uniform(0, 0.03))
            os.kill(child, (signal.SIGINT, signal.SIGTERM)[len(codes) % 2])
            codes.append(ended(child))
            argv = ["resume", str(self.folder)]
        assert not Run(self.folder).finished
        assert ended(forked(partial(self.command, argv))) == 0
        self.finished()
        return codes

    def command(self, argv: list[str]) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may have it ignored
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        return main([*argv, "--quiet", "--threads", "1"])

    def small_files(self) -> int:
        """No file may grow beyond a limit that rises: results, tensors and summaries cannot be written at some."""
        limits = (100, 600, 3_000, 9_000, 17_000, 25_000, 33_000, 41_000)
        failed = sum(self.without_space(partial(self.limited, limit)) for limit in limits)
        assert not self.without_space(partial(self.work, self.folder))
        self.finished()
        return failed

    def limited(self, size: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return self.work(self.folder)

    def full_disk(self) -> int:
        """The file system of the place is full, at one moment after another."""
        failed, ballast = 0, self.place / "ballast"
        while True:
            ballast.unlink(missing_ok=True)
            left = 4096 * (failed + 1)
            ballast.write_bytes(bytes(max(0, shutil.disk_usage(self.place).free - left)))
            if not self.without_space(partial(self.work, self.folder)):
                break
            failed += 1
        ballast.unlink()
        self.finished()
        return failed

    def without_space(self, task: Callable[[], int]) -> bool:
        """Whether a task failed for want of space; what was finished before is there as it was."""
        before = self.kept()
        code = ended(forked(task))
        assert code in (0, errno.ENOSPC), code
        assert before.items() <= self.kept().items()
        return code != 0

    def kept(self) -> dict[Work, dict[str, list[Any]]]:
        """All finished work of the run of the moment, with its tensors; these are as they were written."""
        if not (self.folder / "run.json").exists():
            return {}
        with Store(self.folder) as store:
            return {w: {k: t.tolist() for k, t in store.tensors(w).items()} for w in store.done()}


def disturb(place: Path, seed: int, *torments: str) -> dict[str, Any]:
    """What became of each torment; the words of an error where anything was lost or came out otherwise."""
    told, driver = {}, Driver(place, seed)
    for torment in torments:
        driver.folder = place / torment
        try:
            told[torment] = getattr(driver, torment)()
        except Exception:
            told[torment] = traceback.format_exc()
    return told


if __name__ == "__main__":
    print(json.dumps(disturb(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))
