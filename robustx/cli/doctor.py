"""``robustx doctor``: is this installation sound?

Imports everything that robustx may need, each on its own, so that one broken package does not hide another.
"""

import configparser
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .. import __version__
from . import DONE, NO
from .show import as_json

State = Literal["ok", "note", "mend"]

IMPORTED = {  # by distribution, where the module is called differently
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
}

DRIVER = Path("/proc/driver/nvidia/version")
QUOTA = Path("/sys/fs/cgroup/cpu.max")

PAIR = (
    "torch and torchvision come from different builds (one for CUDA, one for the CPU, say, or of releases that do not "
    "belong together), so torchvision's operators do not load. robustx works without it, but torchvision's models, "
    "data sets and transforms do not. Install both from one place: "
    "pip install --force-reinstall torch torchvision, or for CPUs only "
    "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, worth knowing, or to be mended."""

    state: State
    what: str
    value: str
    advice: str = ""


@dataclass
class Findings:
    """All that was looked at, in order."""

    seen: list[Finding] = field(default_factory=list)

    def ok(self, what: str, value: str) -> None:
        self.seen.append(Finding("ok", what, value))

    def note(self, what: str, value: str, advice: str) -> None:
        self.seen.append(Finding("note", what, value, advice))

    def mend(self, what: str, value: str, advice: str) -> None:
        self.seen.append(Finding("mend", what, value, advice))


def run(asked: Namespace) -> int:
    """Look at everything; exit code 1 where something must be mended."""
    found = Findings()
    for look in (_python, _packages, _pair, _devices, _threads, _pickles, _model, _extras, _robustbench):
        look(found)
    bad = [f for f in found.seen if f.state == "mend"]
    if asked.json:
        print(as_json({"sound": not bad, "findings": [asdict(f) for f in found.seen]}))
        return NO if bad else DONE
    width = max(len(f.what) for f in found.seen)
    for f in found.seen:
        print(f"  {f.state:4}  {f.what:{width}}  {f.value}")
        if f.advice:
            print(_wrapped(f.advice, 8 + width + 2))
    print(f"\n{len(bad)} to mend: {', '.join(f.what for f in bad)}" if bad else "\nThis installation is sound.")
    return NO if bad else DONE


def _wrapped(text: str, indent: int) -> str:
    from textwrap import fill

    space = " " * indent
    return fill(
        text, 116, initial_indent=space, subsequent_indent=space, break_long_words=False, break_on_hyphens=False
    )


def _python(found: Findings) -> None:
    found.ok("robustx", f"{__version__} in {Path(__file__).parents[1]}")
    found.ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}")


def _packages(found: Findings) -> None:
    from packaging.requirements import Requirement

    for line in _requirements():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name.lower()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.mend(name, "is missing", f"pip install '{wanted.name}{wanted.specifier}'")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.mend(
                name, f"{version}, needed is {wanted.specifier}", f"pip install '{wanted.name}{wanted.specifier}'"
            )
        elif name == "torchvision" or (error := _broken(IMPORTED.get(name, name.replace("-", "_")))) is None:
            found.ok(name, version)
        else:
            found.mend(name, f"{version} does not load: {error}", f"pip install --force-reinstall {wanted.name}")


def _requirements() -> Iterable[str]:
    """What robustx needs: its metadata, or in a source folder that is not installed its setup.cfg."""
    try:
        return metadata.requires("robustx") or []
    except metadata.PackageNotFoundError:
        config = configparser.ConfigParser()
        config.read(Path(__file__).parents[2] / "setup.cfg")
        return config.get("options", "install_requires", fallback="").split("\n")[1:]


def _broken(module: str) -> str | None:
    """What stops a module from loading, in one line; None where nothing does."""
    try:
        import_module(module)
    except Exception as error:  # a broken package may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _pair(found: Findings) -> None:
    """torchvision's compiled operators must fit the torch that is installed."""
    error = _broken("torchvision")
    if error is None:
        found.ok("torch + torchvision", "fit together")
    elif "torchvision::" in error or "libtorch" in error or "undefined symbol" in error:
        found.mend("torch + torchvision", error, PAIR)
    elif not error.startswith("ModuleNotFoundError"):
        found.mend("torch + torchvision", error, "pip install --force-reinstall torch torchvision")


def _devices(found: Findings) -> None:
    import torch

    def look(what: str, there: Callable[[], bool], name: Callable[[], str], option: str) -> None:
        try:
            if there():
                found.ok(what, f"{name()}; use it with --device {option}")
        except Exception as error:  # a driver may raise anything
            found.note(what, f"{error}", "commands run on the CPU")

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(gpus):
        look(f"device cuda:{i}", lambda: True, partial(torch.cuda.get_device_name, i), f"cuda:{i}")
    look("device mps", torch.backends.mps.is_available, lambda: "Apple's GPU", "mps")
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
    found.ok("device cpu", f"{_cores():g} cores; {built}" + ("" if gpus else ", no CUDA device was found"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus or not DRIVER.exists() or torch.version.hip or hidden in ("", "-1"):
        return
    if torch.version.cuda:
        mend = f"update the driver to one for CUDA {torch.version.cuda}, or install a torch built for an older CUDA"
        found.mend("device cuda", "an NVIDIA driver is here, and torch sees no GPU", mend)
    else:
        mend = "to use the GPU install a torch built for CUDA: pip install --force-reinstall torch torchvision"
        found.note("device cuda", "an NVIDIA driver is here, and torch is built for CPUs only", mend)


def _cores() -> float:
    """How many cores this process may use: its affinity, and the quota of its container."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = QUOTA.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no such container, or no limit ("max")
        return cores


def _threads(found: Findings) -> None:
    import torch

    told = os.environ.get("OMP_NUM_THREADS")
    n, cores = torch.get_num_threads(), _cores()
    value = f"{n} ({f'OMP_NUM_THREADS={told}' if told else 'torch chose'}) on {cores:g} cores"
    if n == 1:
        found.ok("threads", value)
    elif n > cores:
        found.note(
            "threads",
            value,
            "more threads than cores wait for one another: set "
            f"OMP_NUM_THREADS={max(1, int(cores))} (or --threads), or 1 for several processes at once",
        )
    else:
        found.note(
            "threads",
            value,
            "several threads on cores that are busy with something else can be many times slower than one: set "
            "OMP_NUM_THREADS=1 (or --threads 1) there and start one process a core",
        )


def _pickles(found: Findings) -> None:
    """A switch that people set to get one old checkpoint loaded, and forget."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        found.mend(
            "loading weights",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: any checkpoint that torch.load opens may run code",
            "unset it; robustx itself reads weights only, whatever it says",
        )
    else:
        found.ok("loading weights", "torch.load reads weights only")


def _model(found: Findings) -> None:
    """The embedded model, its data, an attack and an attribution: everything once, small."""
    try:
        from .. import zoo
        from ..attacks import PGD
        from ..attribution import IntegratedGradients

        model, data = zoo.load("digits", limit=16)
        right = int((model(data.x).argmax(1) == data.y).sum())
        result = PGD(model, bounds=data.bounds, norm="Linf", eps=1.0, steps=20).run(data.x, data.y)
        _, delta = IntegratedGradients(model).attribute(data.x, target=data.y, return_convergence_delta=True)
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        found.mend("self-test", told, "install robustx anew: pip install --force-reinstall robustx")
        return
    fooled = int(result.success.sum())
    value = (
        f"digits: {right} of 16 right, {fooled} of 16 fooled with eps 1, IG misses its sum by {delta.abs().max():.1g}"
    )
    if right >= 15 and fooled == 16:
        found.ok("self-test", value)
    else:
        found.mend("self-test", value, "the numbers are not what they should be: reinstall torch and robustx")


def _extras(found: Findings) -> None:
    """Which optional extras are there and in which versions, by the metadata of the installed package."""
    from packaging.requirements import Requirement

    try:
        package = metadata.metadata("robustx")
    except metadata.PackageNotFoundError:
        found.note("installed", "no, this is a source folder", "pip install -e . gives the command robustx everywhere")
        return
    parts = [Requirement(line) for line in metadata.requires("robustx") or []]
    for extra in package.get_all("Provides-Extra") or []:
        wanted = [p for p in parts if p.marker and p.marker.evaluate({"extra": extra}) and "extra" in str(p.marker)]
        there = {p: _version(p.name) for p in wanted}
        lacking = [p.name for p, version in there.items() if version is None]
        old = [p for p, version in there.items() if version and not p.specifier.contains(version, prereleases=True)]
        told = ", ".join(f"{p.name} {version}" for p, version in there.items() if version and p not in old)
        bad = [*(f"without {name}" for name in lacking), *(f"{p.name} {there[p]} (needed: {p.specifier})" for p in old)]
        if bad:
            value = "; ".join(filter(None, [told, ", ".join(bad)]))
            found.note(f"extra {extra}", value, f"pip install 'robustx[{extra}]'")
        else:
            found.ok(f"extra {extra}", told or "nothing more is needed")


def _robustbench(found: Findings) -> None:
    """RobustBench is no extra: its own requirements cannot be met together. What stops ``robustbench:`` names."""
    if find_spec("robustbench") is None:
        return
    version = _version("robustbench")
    if version is None:
        found.note(
            "robustbench",
            "an old copy that another package (torchattacks, say) brings along",
            "to open models by 'robustbench:...' install the real one: pip install --no-deps robustbench",
        )
    elif lacking := [m for m in ("pkg_resources", "autoattack", "timm", "gdown") if find_spec(m) is None]:
        from ..zoo.leaderboard import MEND

        found.note(
            "robustbench",
            f"{version} does not import without {', '.join(lacking)}",
            "; ".join(MEND.get(m, f"pip install {m}") for m in lacking),
        )
    else:
        found.ok("robustbench", version)


def _version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
