"""Weights and normalisation given to models by name, and that nothing which is loaded runs code."""

import ast
import io
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from robustx import zoo
from robustx.zoo.checkpoints import load_weights, patience, reachable, weights_only

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working directory."""
    (tmp_path / "mine.py").write_text("from torch import nn\ndef net(): return nn.Linear(4, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_weights_come_from_every_safe_format(mine, suffix):
    own = nn.Linear(4, 3)
    save_model(own, "own.safetensors") if suffix == "safetensors" else torch.save(own.state_dict(), f"own.{suffix}")
    by_name, by_argument = zoo.model(f"mine:net@own.{suffix}"), zoo.model("mine:net", weights=f"own.{suffix}")
    for model in (by_name, by_argument):
        assert torch.equal(model.weight, own.weight) and torch.equal(model.bias, own.bias)
    with pytest.raises(ValueError, match=r"the weights of 'mine:net@own\.\w+' are named twice"):
        zoo.model(f"mine:net@own.{suffix}", weights="other.pt")
    with pytest.raises(ValueError, match="do not fit Linear: .*size mismatch"):
        load_weights(nn.Linear(4, 2), f"own.{suffix}")


def test_embedded_models_take_weights_and_both_a_normalisation(mine):
    save_model(zoo.model("digits-robust"), "robust.safetensors")
    model, data = zoo.load("digits", weights="robust.safetensors", mean=[0.5], std=[0.25], limit=8)
    inside = zoo.model("digits-robust")((data.x - 0.5) / 0.25)
    assert isinstance(model, zoo.Normalized) and not model.training and torch.equal(model(data.x), inside)


def test_own_normalisation_replaces_that_of_torchvision():
    torch.manual_seed(0)
    own = zoo.model("torchvision:squeezenet1_1@none", mean=[0.0] * 3, std=[1.0] * 3)
    x = torch.rand(1, 3, 64, 64)
    assert not isinstance(own.model, zoo.Normalized) and torch.equal(own(x), own.model(x))


@pytest.mark.parametrize(
    "more, message",
    [
        ({"mean": [0.5]}, r"mean and std come together, got mean=\[0.5\] and std=None"),
        ({"std": [0.5]}, "give both or neither"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "must hold one number per channel"),
        ({"mean": [0.5], "std": [0.0]}, "those of std positive"),
    ],
    ids=["mean alone", "std alone", "lengths", "zero"],
)
def test_what_a_normalisation_may_not_be(more, message):
    with pytest.raises(ValueError, match=message):
        zoo.model("digits", **more)


def test_one_channel_is_not_taken_for_three():
    model = zoo.model("digits", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=r"normalised for 3 channels, got inputs of shape \(2, 1, 8, 8\)"):
        model(torch.rand(2, 1, 8, 8))


class Evil:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt", ".safetensors", ""])
def test_a_pickle_given_as_weights_is_refused(mine, suffix, monkeypatch):
    trace = mine / "trace"
    file = mine / f"evil{suffix}"
    torch.save({"weight": Evil(trace)}, file)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what people are told to set
    with pytest.raises(ValueError, match=r"must be a .safetensors file|not a whole safeten|holds more than weights"):
        zoo.model(f"mine:net@{file}")
    with pytest.raises(ValueError, match=r"must be a .safetensors|not a whole|has no weights|holds more than weights"):
        zoo.model(f"torchvision:squeezenet1_1@{file}")
    assert not trace.exists()
    torch.load(io.BytesIO(file.read_bytes()), weights_only=False)  # the trap itself works
    assert trace.exists()


def test_a_pickle_that_would_print_prints_nothing(mine, capfd):
    class Shell:
        def __reduce__(self):
            return os.system, ("echo taken over",)

    torch.save(Shell(), "evil.pt")
    with pytest.raises(ValueError, match=r"'evil.pt' holds more than weights and was not loaded: .* can run code"):
        zoo.model("mine:net@evil.pt")
    assert capfd.readouterr() == ("", "")
    torch.load("evil.pt", weights_only=False)
    assert "taken over" in capfd.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ({"state_dict": nn.Linear(4, 3).state_dict()}, "must hold a plain state_dict, .* but has state_dict as well"),
        (nn.Linear(4, 3).state_dict() | {"epoch": 3}, r"but has epoch as well; save only the weights: torch.save"),
        (torch.zeros(3), "must hold a state_dict, got Tensor"),
        (nn.Linear(4, 3), "holds more than weights"),
    ],
    ids=["nested", "more", "tensor", "module"],
)
def test_only_a_plain_state_dict_is_taken(mine, content, message):
    torch.save(content, "odd.pt")
    with pytest.raises(ValueError, match=message):
        zoo.model("mine:net@odd.pt")


@pytest.mark.parametrize("keep", [0, 40, -40], ids=["empty", "head", "tail missing"])
def test_a_torn_checkpoint_is_told(mine, keep):
    torch.save(nn.Linear(4, 3).state_dict(), "whole.pt")
    Path("torn.pt").write_bytes(Path("whole.pt").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"'torn.pt' (is not a whole checkpoint|holds more than weights)"):
        zoo.model("mine:net@torn.pt")


def test_a_pickle_among_torchvisions_downloads_is_refused(tmp_path, monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights as Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder, trace = tmp_path / "hub" / "checkpoints", tmp_path / "trace"
    folder.mkdir(parents=True)
    torch.save(Evil(trace), folder / Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    with pytest.raises(ValueError, match="holds more than weights and was not loaded"):
        zoo.model("torchvision:squeezenet1_1@IMAGENET1K_V1")
    assert not trace.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_is_forced_ends_with_the_block(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before, timeout = dict(os.environ), socket.getdefaulttimeout()

    def fail_inside():
        with weights_only(), patience():
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1" and socket.getdefaulttimeout() > 0
            assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert dict(os.environ) == before and socket.getdefaulttimeout() == timeout


def test_a_host_answers_or_not(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/file"
        assert reachable(url)
    assert not reachable(url)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert reachable(url)  # the proxy is asked, not the host


def test_no_source_unpickles():
    """Every ``torch.load`` of the package, the examples and the benchmarks says weights_only=True."""
    files = [f for room in ("robustx", "examples", "benchmarks") for f in (ROOT / room).rglob("*.py")]
    calls = [
        (file, node)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls  # the one of the zoo
    for file, call in calls:
        assert "weights_only=True" in ast.unparse(call), file
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not any(word in text for word in ("weights_only=False", "pickle.load", "yaml.load(")), file
