"""The command line: ``robustx COMMAND ...``, the same as ``python -m robustx COMMAND ...``.

Results go to standard output, everything else to standard error. Exit codes:

====  =======================================================================================
code  meaning
====  =======================================================================================
0     done
1     done, and the answer is no: nothing was found, a requirement was missed, a check failed
2     bad arguments or input; one sentence says what came, what was expected and the way out
3     something failed that should not have; ``--debug`` shows where
130   interrupted; what was finished is kept
143   told to end (SIGTERM); what was finished is kept
====  =======================================================================================

A command is a module of this package with the one function ``run(arguments) -> exit code``. It is imported
when it is asked for, so that ``--help`` loads neither torch nor numpy.
"""

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from .parser import parse

DONE, NO, BAD, FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

USERS = (ValueError, TypeError, OSError, ImportError, MemoryError)
"""Errors that tell the user what to mend (OSError: files, the network)."""


class Interrupted(KeyboardInterrupt):
    """An interrupt, after which the command says what was kept and how to go on, and ends with that code."""

    code = INTERRUPTED

    def __init__(self, told: str = "", code: int = INTERRUPTED) -> None:
        super().__init__(told)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Wrong usage raises SystemExit(2), as argparse does."""
    arguments = parse(argv)
    with _plain_warnings(f"robustx {arguments.command}"), _ended_by_sigterm():
        return _run(arguments)


def _run(arguments: Namespace) -> int:
    name = f"robustx {arguments.command}"
    try:
        run = import_module(f".{arguments.command}", __package__).run
        code: int = run(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not when Python ends
        return code
    except KeyboardInterrupt as stop:
        told = str(stop) or "nothing was finished yet; the same command starts again"
        return _said(f"{name}: interrupted; {told}", getattr(stop, "code", INTERRUPTED))
    except BrokenPipeError:  # the reader has seen enough: `robustx ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        told = _words(error)
        if isinstance(error, USERS) or type(error).__name__ == "ModelError":
            return _said(f"{name}: {told or type(error).__name__}", BAD)
        more = "" if arguments.debug else "; --debug shows where"
        return _said(f"{name}: failed unexpectedly: {type(error).__name__}: {told}{more}", FAILED)


def _words(error: Exception) -> str:
    """What an error says, in one line; for files without the number of the error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename!r}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return " ".join(str(error).split())


def _said(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A polite request to end, as schedulers send it, interrupts like Ctrl-C; but with the exit code of its own."""

    def end(*_: Any) -> None:
        raise Interrupted(code=TERMINATED)

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Warnings as one line on standard error, once each, without the line of code that gave them."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        kind = re.sub(r"\d+", "", str(message))
        if kind in seen:  # the same, with other numbers
            return
        seen.add(kind)
        print(f"{name}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # always called by position
        yield


__all__ = ["main"]
