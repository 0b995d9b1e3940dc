"""``robustx doctor``: what is sound, what is not, and what to do about it."""

import json
from dataclasses import asdict
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


def seen(look):
    """What one look finds, without all the others."""
    findings = doctor.Findings()
    look(findings)
    return {f.what: asdict(f) for f in findings.seen}


def test_extras_tell_their_versions_and_what_is_too_old(monkeypatch):
    known = metadata.metadata

    class Installed:
        def get_all(self, what):
            return ["both", "old"]

    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: Installed() if name == "robustx" else known(name))
    lines = ["numpy>=2", "pytest>=8; extra == 'both'", "mypy; extra == 'both'", "pytest>=99; extra == 'old'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*lines, "not-there; extra == 'old'"])
    findings = seen(doctor._extras)
    versions = f"pytest {metadata.version('pytest')}, mypy {metadata.version('mypy')}"
    assert (findings["extra both"]["state"], findings["extra both"]["value"]) == ("ok", versions)
    assert findings["extra old"]["state"] == "note"
    assert "without not-there" in findings["extra old"]["value"] and "needed: >=99" in findings["extra old"]["value"]


def test_a_package_is_imported_by_the_name_of_its_module(monkeypatch):
    lines = ["scikit-learn>=1", "axe-playwright_python", "Jinja2>=3", "pytest-xdist; extra == 'test'"]
    tried = []
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3")
    monkeypatch.setattr(doctor, "_broken", tried.append)
    assert set(seen(doctor._packages)) == {"scikit-learn", "axe-playwright_python", "jinja2"}
    assert tried == ["sklearn", "axe_playwright_python", "jinja2"]


@pytest.mark.parametrize(
    "built, hidden, state",
    [("13.0", None, "mend"), (None, None, "note"), ("13.0", "", None), ("13.0", "-1", None)],
    ids=["driver too old", "built for CPUs", "hidden", "hidden too"],
)
def test_a_gpu_that_torch_does_not_see(monkeypatch, tmp_path, built, hidden, state):
    import torch

    (tmp_path / "version").touch()
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    finding = seen(doctor._devices).get("device cuda")
    assert (finding and finding["state"]) == state


@pytest.mark.parametrize(
    "quota, threads, expected",
    [("50000 100000", 2, "0.5 cores"), ("max 100000", 1, "cores"), (None, 1, "cores")],
    ids=["half a core", "no limit", "no container"],
)
def test_threads_are_held_against_the_cores_of_the_container(monkeypatch, tmp_path, quota, threads, expected):
    import torch

    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(doctor, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    finding = seen(doctor._threads)["threads"]
    assert expected in finding["value"] and finding["state"] == ("ok" if threads == 1 else "note")
    assert ("OMP_NUM_THREADS=1" in finding["advice"]) == (threads > 1)


def test_a_switch_that_lets_checkpoints_run_code_is_to_be_mended(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert seen(doctor._pickles)["loading weights"]["state"] == "mend"


@pytest.mark.parametrize(
    "version, there, state, advice",
    [
        (None, (), "note", "install the real one"),
        ("1.1.1", ("timm", "gdown"), "note", "pip install 'setuptools<81', the last with it; pip install git"),
        ("1.1.1", ("timm", "gdown", "autoattack", "pkg_resources"), "ok", ""),
    ],
    ids=["a copy", "incomplete", "whole"],
)
def test_what_stops_robustbench_is_told(monkeypatch, version, there, state, advice):
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "robustbench" else known(name))
    monkeypatch.setattr(doctor, "find_spec", lambda name: name if name in ("robustbench", *there) else None)
    finding = seen(doctor._robustbench)["robustbench"]
    assert finding["state"] == state and advice in finding["advice"]


def test_no_word_of_a_robustbench_that_is_not_there(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert "robustbench" not in seen(doctor._robustbench)
