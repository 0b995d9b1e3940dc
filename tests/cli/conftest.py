"""How the commands are run in tests: in this process, in an empty folder, with a module of the user's own beside."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from robustx.cli import main

MINE = """
import torch
from torch import nn


def net(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def images():
    x = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return x, net()(x).argmax(1)


def series():
    x, y = images()
    return x.view(20, 3, 4), y


def table():
    x, y = images()
    return x.flatten(1), y


def wide():
    x, y = images()
    return x * 4 - 2, y


def empty():
    return torch.zeros(0, 3, 2, 2), torch.zeros(0, dtype=torch.long)


def labels():
    x, y = images()
    return x, y + 5


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3], 1


class Nan(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * float("nan")


class Rounding(nn.Module):
    def forward(self, x):
        return (x.flatten(1)[:, :3] * 8).round()


class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("oh")
"""


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., Said]:
    """Runs a command in an empty folder that holds mine.py."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def command(*argv: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        return Said(code, *capsys.readouterr())

    yield command
    sys.modules.pop("mine", None)
