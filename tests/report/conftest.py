"""Runs to report on, made once: pictures, a table, and what is called by markup and has no shape anyone knows."""

import pytest
import torch
from report_cases import ATTACKS, EVIL

from robustx import zoo
from robustx.evaluation import Spec, evaluate
from robustx.evaluation.spec import BoundSpec


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    models = {n: zoo.model(n) for n in ("digits", "digits-robust")}
    more = {"bounds": (BoundSpec("ibp"),), "corruptions": ("fog", "contrast"), "severities": (1, 5)}
    spec = Spec(models=tuple(models), data="digits", eps=(0.1, 0.2), attacks=ATTACKS, block_size=8, explain=4, **more)
    return evaluate(models, zoo.data("digits", limit=16), spec, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    model, data = zoo.load("breast-cancer", limit=16)
    spec = Spec(models=("m",), data="breast-cancer", eps=(0.05, 0.1), attacks=ATTACKS, explain=3)
    return evaluate({"m": model}, data, spec, tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def strange(tmp_path_factory):
    """Names that are markup, many classes, no shape that anything is known of, rows that give NaN."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.rand(9, 2, 3, generator=g), torch.randn(6, 20, generator=g)
    x[3, 0, 0] = 0.95

    def model(x):
        return torch.where(x[:, 0, :1] > 0.9, torch.nan, x.flatten(1) @ weight)

    labels = (x.flatten(1) @ weight).argmax(1)
    data = zoo.as_data((x, labels), EVIL, classes=[f"{EVIL}&{i}" for i in range(20)])
    spec = Spec(models=(EVIL,), data=EVIL, norm="L2", eps=(0.5,), attacks=ATTACKS[:1], explain=2)
    return evaluate({EVIL: model}, data, spec, tmp_path_factory.mktemp("strange"))


@pytest.fixture(params=["digits", "table", "strange"])
def run(request):
    return request.getfixturevalue(request.param)
