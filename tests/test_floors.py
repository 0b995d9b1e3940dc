"""What may import what, read from the source: imports run downward, in no circle, and nothing unpickles.

The house is in CONTRIBUTING.md. A new room gets its floor here, in one line.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FLOORS = {
    "engine": 1,
    "plot": 1,
    "perturb": 2,
    "zoo": 2,
    "attribution": 3,
    "attacks": 3,
    "counterfactual": 4,
    "evaluation": 5,
    "report": 5,
    "cli": 6,
    "__main__": 7,
}
NEIGHBOURS = {("report", "evaluation")}  # may look across on its own floor: a report shows what a run wrote

NEVER = ("weights_only=False", "pickle.load", "yaml.load", "joblib.load", "allow_pickle=True")

HERE = Path(__file__).parents[1]


def sources(root: Path) -> dict[str, Path]:
    """Module name to file, for everything below ``root/robustx``."""
    found = {}
    for path in sorted((root / "robustx").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, inner: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below ``node``; without ``inner`` only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif inner:
            yield from statements(child, inner)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (s for part in child.orelse for s in statements(ast.Module([part], []), inner))
        else:
            yield from statements(child, inner)


def imports(name: str, modules: dict[str, Path], *, inner: bool) -> Iterator[str]:
    """The modules of robustx that ``name`` imports, by their full names."""
    path = modules[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"), str(path)), inner):
        if isinstance(statement, ast.Import):
            wanted = [alias.name for alias in statement.names]
        else:
            up = package.split(".")[: len(package.split(".")) + 1 - statement.level] if statement.level else []
            base = ".".join([*up, *filter(None, [statement.module])])
            # `from robustx.engine import probe` is the module where there is one, else a name of the package
            wanted = [full if (full := f"{base}.{alias.name}") in modules else base for alias in statement.names]
        yield from (w for w in wanted if w.split(".")[0] == "robustx")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def faults(root: Path) -> list[str]:
    """One sentence for each import that the house does not allow."""
    modules = sources(root)
    said = [
        f"robustx.{r} has no floor: give it one in FLOORS of tests/test_floors.py"
        for r in sorted({room(m) for m in modules} - {""} - FLOORS.keys())
    ]
    for module in modules:
        here = room(module)
        if here not in FLOORS:  # the front door, robustx/__init__.py, may name everything
            continue
        for target in imports(module, modules, inner=True):
            there = room(target)
            if there in ("", here) or there not in FLOORS or (here, there) in NEIGHBOURS:
                continue
            if FLOORS[there] >= FLOORS[here]:
                said.append(f"{module} imports {target}: {here} may not know {there}")
    return said


def circle(root: Path) -> list[str]:
    """The modules of one circular import, or nothing."""
    modules = sources(root)
    graph: dict[str, set[str]] = {}
    for module in modules:
        graph[module] = set()
        for target in imports(module, modules, inner=False):
            # importing a.b.c runs a and a.b first, unless they are what is being imported now
            steps = target.split(".")
            runs = {".".join(steps[:n]) for n in range(1, len(steps) + 1)}
            graph[module] |= {t for t in runs if t in modules and not f"{module}.".startswith(f"{t}.")}
            if target != module and f"{module}.".startswith(f"{target}."):
                graph[module].add(target)  # a name out of an unfinished package of its own
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_imports_run_downward():
    assert sources(HERE), "no modules found"
    assert not faults(HERE)


def test_no_circle():
    assert not circle(HERE)


@pytest.mark.parametrize("text", NEVER)
def test_nothing_unpickles(text):
    assert not [name for name, path in sources(HERE).items() if text in path.read_text(encoding="utf-8")]


def house(root: Path, **files: str) -> Path:
    """A package ``robustx`` with the given sources; ``engine__probe`` is robustx/engine/probe.py."""
    for name, text in {"__init__": "", **files}.items():
        path = (root / "robustx" / name.replace("__", "/", 1 if name[0] != "_" else 0)).with_suffix(".py")
        for folder in path.parents[: len(path.relative_to(root).parts) - 1]:
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"engine__probe": "from robustx.perturb import norms", "perturb__norms": ""},
        {"engine__probe": "import robustx.perturb.norms", "perturb__norms": ""},
        {"engine__probe": "from ..perturb.norms import L2", "perturb__norms": ""},
        {"engine__probe": "def f():\n    from ..perturb import norms", "perturb__norms": ""},
        {"attacks__pgd": "from robustx.attribution.path import ig", "attribution__path": ""},
        {"attribution__path": "from robustx import attacks", "attacks__pgd": ""},
        {"zoo__models": "from robustx.cli import main", "cli": ""},
        {"attacks__pgd": "from robustx.evaluation.store import Store", "evaluation__store": ""},
        {"cellar__wine": ""},
    ],
    ids=lambda files: next(iter(files.values())) or "a room without a floor",
)
def test_a_fault_is_seen(files, tmp_path):
    assert len(faults(house(tmp_path, **files))) == 1


def test_what_is_allowed_is_allowed(tmp_path):
    house(
        tmp_path,
        engine__probe="import torch",
        perturb__norms="from ..engine.probe import Probe\nfrom . import region",
        perturb__region="",
        attacks__pgd="from robustx.perturb.norms import L2\nfrom robustx import __version__",
        report__html="from ..evaluation import store",
        evaluation__store="",
        cli="def main():\n    from robustx.report import html",
    )
    assert not faults(tmp_path)
    assert not circle(tmp_path)


@pytest.mark.parametrize(
    ("a", "b", "turns"),
    [
        ("from .b import x", "from .a import y", True),
        ("from . import b", "import robustx.engine.a", True),
        ("from .b import x", "def f():\n    from .a import y", False),
        ("from .b import x", "if TYPE_CHECKING:\n    from .a import y", False),
        ("from .b import x", "try:\n    from .a import y\nexcept ImportError:\n    pass", True),
        ("from .b import x", "from torch import a", False),
    ],
)
def test_a_circle_is_seen(a, b, turns, tmp_path):
    assert bool(circle(house(tmp_path, engine__a=a, engine__b=b))) == turns


def test_a_circle_through_the_package_itself_is_seen(tmp_path):
    house(tmp_path, engine__probe="from robustx.engine import Site", engine__sites="")
    (tmp_path / "robustx/engine/__init__.py").write_text("from .sites import Site\nfrom .probe import Probe")
    assert circle(tmp_path)
