"""RobustBench's two numbers, and the file that its leaderboards take, from a run."""

from collections.abc import Mapping
from typing import Any

from .run import Run
from .spec import AttackSpec

BOARDS = {
    ("cifar10", "Linf"): (8 / 255, 10_000),
    ("cifar10", "L2"): (0.5, 10_000),
    ("cifar100", "Linf"): (8 / 255, 10_000),
    ("imagenet", "Linf"): (4 / 255, 5_000),
}
"""The budget and the number of samples of each leaderboard (Croce et al., NeurIPS 2021, arXiv 2010.09670)."""

FIELDS = (
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "external",
    "footnote",
    "unreliable",
)
"""What such a file may say, in its order."""

MEASURED = ("eps", "clean_acc", "autoattack_acc", "external", "unreliable")


def robustbench_json(
    run: Run, model: str | None = None, eps: float | None = None, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a model-info file of RobustBench says of a model: clean accuracy, AutoAttack's, and what is known beside.

    ``clean_acc`` and ``autoattack_acc`` are percentages as text, as in the published files. Where all attacks of the
    run together fool more than AutoAttack alone, ``external`` says what is left. ``unreliable`` is set where the check
    of the evaluation itself found it not valid. A ``footnote`` says in what the run differs from the leaderboard,
    unless one is given.

    Args:
        run: with the attack ``autoattack`` in its standard version, before all others.
        model: its name in the run; may be left out where there is one.
        eps: the budget; default: that of the leaderboard of these data and this norm, or the run's only one.
        about: what nobody can measure: ``link``, ``name``, ``authors``, ``additional_data``, ``venue``,
            ``architecture``, ``reported``...; ``dataset`` is the name of the run's data unless it says otherwise,
            ``number_forward_passes`` is 1.

    Raises:
        ValueError: no such model or budget, fields that such a file does not have or that are measured, no standard
            AutoAttack in the run, or one that other attacks spared samples.
    """
    data = run.data["name"].rpartition(":")[2].lower().replace("-", "")  # torchvision:CIFAR10 is cifar10
    given = {"dataset": data, "number_forward_passes": 1, **(about or {})}
    unknown = [k for k in given if k not in FIELDS or k in MEASURED]
    if unknown:
        allowed = ", ".join(k for k in FIELDS if k not in MEASURED)
        raise ValueError(f"about may hold {allowed}, got {unknown[0]!r}")
    names = [o.model for o in run.outcomes]
    if model is None and len(names) == 1:
        model = names[0]
    if model not in names:
        raise ValueError(f"model must be one of {', '.join(map(repr, names))}, got {model!r}")
    told = run.summary()["models"][names.index(model)]
    board = BOARDS.get((given["dataset"], run.spec.norm))
    at = _place(run, board, eps)
    attack = _autoattack(run)
    alone = told["attacks"][attack]["alone"]
    if alone is None:
        raise ValueError(
            "AutoAttack's accuracy is not known: other attacks came before it in this run and spared it samples; "
            "name 'autoattack' first among the attacks"
        )
    found, best = alone[at], told["robust"][at]["value"]
    measured: dict[str, Any] = {
        "eps": _budget(run.spec.eps[at], run.spec.norm),
        "clean_acc": _percent(told["clean"]["value"]),
        "autoattack_acc": _percent(found),
    }
    if best < found:
        measured["external"] = _percent(best)
    if told.get("soundness", {}).get("verdict", "VALID") != "VALID":
        measured["unreliable"] = True
    if note := _footnote(run, board, at, told["clean"]["total"]):
        given.setdefault("footnote", note)
    return {k: {**given, **measured}[k] for k in FIELDS if k in given or k in measured}


def _place(run: Run, board: tuple[float, int] | None, eps: float | None) -> int:
    """Which of the run's budgets is meant."""
    budgets = run.spec.eps
    if eps is None and board is not None:
        eps = board[0]
    if eps is None and len(budgets) == 1:
        return 0
    near = [i for i, e in enumerate(budgets) if eps is not None and abs(e - eps) <= 1e-6 * e]
    if not near:
        raise ValueError(f"eps must be one of the run's budgets {', '.join(f'{e:g}' for e in budgets)}, got {eps}")
    return near[0]


def _autoattack(run: Run) -> int:
    """Which of the run's attacks is AutoAttack's standard version."""
    mine = [i for i, a in enumerate(run.spec.attacks) if a.name.lower() == "autoattack"]
    standard = [i for i in mine if _standard(run.spec.attacks[i])]
    if not standard:
        told = f"with options {run.spec.attacks[mine[0]].options}" if mine else "none"
        raise ValueError(f"the run's attacks must hold 'autoattack' in its standard version, got {told}")
    return standard[0]


def _standard(attack: AttackSpec) -> bool:
    return attack.options.get("version", "standard") == "standard" and attack.options.keys() <= {"version", "flags"}


def _budget(eps: float, norm: str) -> str:
    """8/255 where it is one, as the published files have it."""
    levels, short = 255 * eps, f"{eps:.4g}"
    grey = norm == "Linf" and float(short) != eps and abs(levels - round(levels)) < 1e-6
    return f"{round(levels)}/255" if grey else short


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _footnote(run: Run, board: tuple[float, int] | None, at: int, samples: int) -> str:
    """In what the run differs from the leaderboard."""
    if board is None:
        return f"Measured on {samples} samples; there is no leaderboard of these data in {run.spec.norm}."
    parts = []
    if samples < board[1]:
        parts.append(f"Measured on {samples} of {board[1]} samples.")
    if abs(run.spec.eps[at] - board[0]) > 1e-6 * board[0]:
        parts.append(f"The leaderboard's budget is {_budget(board[0], run.spec.norm)}.")
    return " ".join(parts)
