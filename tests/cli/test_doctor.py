"""``robustx doctor``: what is sound, what is not, and what to do about it."""

import json
from importlib import metadata

import pytest

from robustx.cli import doctor


def found(run, *argv):
    said = run("doctor", "--json", *argv)
    told = json.loads(said.out)
    assert said.code == (0 if told["sound"] else 1)
    return {f["what"]: f for f in told["findings"]}


def test_this_installation_is_sound(run):
    findings = found(run)
    assert {
        "robustx",
        "python",
        "torch",
        "torchvision",
        "torch + torchvision",
        "device cpu",
        "threads",
        "self-test",
    } <= set(findings)
    assert not [f for f in findings.values() if f["state"] == "mend"]
    assert run("doctor").out.endswith("This installation is sound.\n")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        OSError("/lib/_C.so: undefined symbol: _ZN3c1017RegisterOperators"),
        ImportError("libtorch_cuda.so: cannot open shared object file"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_torchvision_of_another_build_is_explained(error, run, monkeypatch):
    known = doctor.import_module
    monkeypatch.setattr(
        doctor, "import_module", lambda name: exec("raise error") if name == "torchvision" else known(name)
    )

    def broken(name):
        if name == "torchvision":
            raise error
        return known(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    finding = found(run)["torch + torchvision"]
    assert finding["state"] == "mend" and str(error) in finding["value"]
    assert "pip install --force-reinstall torch torchvision" in finding["advice"]
    said = run("doctor")
    assert said.code == 1 and "1 to mend: torch + torchvision" in said.out


def test_missing_old_and_broken_packages_are_named(run, monkeypatch):
    version = metadata.version

    def other(name):
        if name == "tqdm":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "safetensors" else version(name)

    monkeypatch.setattr(doctor.metadata, "version", other)
    monkeypatch.setattr(doctor, "_broken", lambda module: "ImportError: gone" if module == "sklearn" else None)
    findings = found(run)
    assert findings["tqdm"]["advice"].startswith("pip install 'tqdm")
    assert "0.1" in findings["safetensors"]["value"] and findings["safetensors"]["state"] == "mend"
    assert findings["scikit-learn"]["advice"] == "pip install --force-reinstall scikit-learn"


def test_a_model_that_does_not_load_is_told(run, monkeypatch):
    from robustx import zoo

    def lost(name):
        raise FileNotFoundError("digits.safetensors")

    monkeypatch.setattr(zoo, "load", lambda *a, **k: lost("digits"))
    assert found(run)["self-test"]["state"] == "mend"


def test_extras_are_listed_where_robustx_is_installed(run, monkeypatch):
    known = metadata.metadata

    class Installed:
        def get_all(self, what):
            return ["test", "moon"]

    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: Installed() if name == "robustx" else known(name))
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: ["numpy>=2", "pytest>=8; extra == 'test'", "surely-not-there; extra == 'moon'"],
    )
    findings = found(run)
    assert findings["extra test"]["state"] == "ok"
    assert findings["extra moon"]["advice"] == "pip install 'robustx[moon]'"
