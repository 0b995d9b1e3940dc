"""AutoAttack: attacks one after the other, each on what still stands."""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..engine.checks import whole
from ..engine.files import write
from ..engine.guard import guarded, modules_of
from ..engine.probe import Door, Probe
from ..engine.randomness import Noise
from ..engine.scores import Everything
from ..perturb.goals import Loss, as_logits, class_goal
from ..perturb.norms import Norm
from ..perturb.region import Region
from .apgd import APGD
from .base import Attack, ZeroGradientWarning
from .checks import look, square_helped
from .fab import FAB
from .found import Found
from .square import Square

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}

RIVALS, DRAWS, QUERIES = 9, 20, 50
"""Classes climbed towards; passes of a model that draws; queries of Square for each step of the others."""

RATIOS = {"apgd-dlr", "apgd-t"}
"""Those that climb the ratio of logits."""

SEEN = 250
"""Examples that are looked at for flags."""


class AutoAttack(Attack):
    """An ensemble without parameters that tells how robust a model is, as the literature reports it.

    Croce, Hein (ICML 2020), arXiv 2003.01690; in L1 Croce, Hein (ICML 2021), arXiv 2103.01208. Each attack sees only
    the examples that withstood those before it. ``standard``: APGD on the cross-entropy, APGD and FAB towards nine
    rivals, 5,000 queries of Square; ``plus``: also APGD on the ratio of logits and FAB, with five restarts; ``rand``,
    for models that draw: both untargeted APGD on the mean of 20 passes. The constructor,
    :meth:`run_standard_evaluation` and :meth:`run_standard_evaluation_individual` are those of RobustBench, so that it
    drops in; :meth:`run` is that of all attacks here, and its result says ``by`` which of them each example fell. What
    looks doubtful is told by a warning, see :mod:`robustx.attacks.checks`.

    Args:
        model: any callable that returns class scores [B, K].
        norm, eps: ``"Linf"``, ``"L2"`` or ``"L1"``, and the budget.
        seed: None is 0: what is found never depends on the clock.
        verbose: print what each attack achieves, in :meth:`run_standard_evaluation`.
        attacks_to_run: names, for ``version="custom"``.
        version: ``"standard"``, ``"plus"``, ``"rand"`` or ``"custom"``.
        is_tf_model: models of TensorFlow are refused.
        device: plays no part: everything happens where the inputs are.
        log_path: a file to which the lines of ``verbose`` are appended.
        bounds: the box of valid inputs.
        steps: of each gradient attack; Square makes 50 queries for each of them.
        flags: whether to look for what makes the result doubtful, at five passes of at most 250 examples.

    Further arguments as for :class:`Attack`; ``loss_func`` plays no part. ``attack.parts`` holds the attacks by name,
    whose settings may be changed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    >>> x, y = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    >>> adversary = AutoAttack(model, norm="Linf", eps=0.5, verbose=False)
    >>> x_adv = adversary.run_standard_evaluation(x, y)
    >>> bool((model(x_adv).argmax(1) != y).all()), bool((x_adv - x).abs().max() <= 0.5)
    (True, True)
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")

    def __init__(
        self,
        model: Callable[..., Any],
        norm: str | float | Norm = "Linf",
        eps: float | Tensor = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: Any = "cuda",
        log_path: str | Path | None = None,
        *,
        loss_func: str | Loss | None = None,
        bounds: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        steps: int = 100,
        flags: bool = True,
        **options: Any,
    ) -> None:
        if is_tf_model:
            raise ValueError("is_tf_model=True: models of TensorFlow are not attacked here; hand in a PyTorch model")
        if version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(map(repr, VERSIONS))}, got {version!r}")
        if attacks_to_run and version != "custom":
            raise ValueError(f"attacks_to_run is for version='custom', got version={version!r}")
        super().__init__(model, loss_func, norm=norm, eps=eps, seed=seed or 0, bounds=bounds, **options)
        self.verbose, self.log_path, self.flags = verbose, log_path, flags
        self.version, self.steps = version, whole("steps", steps, 1)
        self.parts = _parts(model, self.norm, version, self.steps, eps=eps, seed=self.seed, bounds=bounds, **options)
        self.attacks_to_run = list(attacks_to_run or VERSIONS[version])
        self._known(self.attacks_to_run)

    def _known(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.parts]
        if unknown:
            raise ValueError(f"attacks_to_run knows {', '.join(self.parts)}, got {unknown[0]!r}")

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        self._known(self.attacks_to_run)
        best = Found.nothing(region.centre)
        if self.flags:
            look(f, region.centre[:SEEN], rows[:SEEN], self.attacks_to_run, self.version != "rand")
        for name in self.attacks_to_run:
            left = (~best.success).nonzero().squeeze(1)
            if not len(left):
                break
            part = self.parts[name]
            with self._quiet(name):
                found = part.search_within(f, region.at(left), rows[left], noise.at(left))
            found = replace(found, by=torch.where(found.success, list(self.parts).index(name), -1))
            best = best.put(left, best.at(left).stronger(found))
            if self.flags and name == "square" and len(self.attacks_to_run) > 1:
                square_helped(len(left), int((~best.success).sum()), f.examples)
        return best

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """The adversarial examples, as RobustBench asks for them; clean inputs where nothing was found.

        Args:
            x_orig, y_orig: inputs and their classes.
            bs: examples that are attacked together.
            return_labels: return also the model's answers to what is returned.
            state_path: a file (safetensors) that is written after each batch; if it is there, the evaluation goes on
                where it ended, to the same result.

        Raises:
            ValueError: the file at ``state_path`` is of another evaluation, or of another model.
        """
        self._known(self.attacks_to_run)
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}.")
        began, x, y = time.time(), x_orig.detach(), torch.as_tensor(y_orig, device=x_orig.device)
        mark = "" if state_path is None else self._mark(x, y)
        state = _State.open(state_path, mark, x)
        if state is None:
            state = _State(state_path, mark, self._right(x, y, bs), torch.zeros_like(y), x.clone())
        right = state.robust | (state.level > 0)
        self._say(f"initial accuracy: {_share(right)}")
        if self.flags and len(self.attacks_to_run):
            self._look(x, y, right)
        for level, name in enumerate(self.attacks_to_run):
            standing = int((state.robust | (state.level == level + 1)).sum())
            left = (state.robust & (state.level == level)).nonzero().squeeze(1)
            batches = left.split(bs) if len(left) else ()
            for i, batch in enumerate(batches):
                with self._quiet(name):
                    result = self.parts[name].run(x[batch], y[batch], eps=self._budget(batch))
                state.take(batch, result.success, result.adversarial, level + 1)
                fell = int(result.success.sum())
                self._say(f"{name} - {i + 1}/{len(batches)} - {fell} out of {len(batch)} successfully perturbed")
            if len(left):
                took = f"(total time {time.time() - began:.1f} s)"
                self._say(f"robust accuracy after {name.upper()}: {_share(state.robust)} {took}")
            if self.flags and name == "square" and len(self.attacks_to_run) > 1:
                square_helped(standing, int(state.robust.sum()), len(x))
        if len(x):
            size = self.norm.size((state.x.double() - x.double()).flatten(1)).max()
            told = f"nan in tensor: {int(state.x.isnan().sum())}, max: {state.x.max():.5f}, min: {state.x.min():.5f}"
            self._say(f"max {self.norm} perturbation: {size:.5f}, {told}")
        self._say(f"robust accuracy: {_share(state.robust)}")
        return (state.x, self._answers(state.x, bs)) if return_labels else state.x

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """What each attack finds by itself, on all examples: by name, as :meth:`run_standard_evaluation` returns it."""
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}.")
        found: dict[str, Any] = {}
        if self.flags and len(self.attacks_to_run):
            y = torch.as_tensor(y_orig, device=x_orig.device)
            self._look(x_orig, y, self._right(x_orig, y, bs))
        for name in self.attacks_to_run:
            began, alone = time.time(), copy(self)
            alone.attacks_to_run, alone.verbose, alone.log_path, alone.flags = [name], False, None, False
            x_adv, y_adv = alone.run_standard_evaluation(x_orig, y_orig, bs, return_labels=True)
            found[name] = (x_adv, y_adv) if return_labels else x_adv
            robust = _share(y_adv == torch.as_tensor(y_orig, device=y_adv.device))
            self._say(f"robust accuracy by {name.upper()}: {robust} (time attack: {time.time() - began:.1f} s)")
        return found

    @contextmanager
    def _quiet(self, name: str) -> Iterator[None]:
        """Flat gradients are told of where the loss is the ratio of logits, if that is asked at all.

        A cross-entropy may be flat because it is saturated, which the others are there to make up for.
        """
        with warnings.catch_warnings():
            if name not in RATIOS and RATIOS & set(self.attacks_to_run):
                warnings.simplefilter("ignore", ZeroGradientWarning)
            yield

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as log:
                log.write(line + "\n")

    def _budget(self, batch: Tensor) -> Any:
        return (
            self.eps[batch.to(self.eps.device)] if isinstance(self.eps, Tensor) and self.eps.numel() > 1 else self.eps
        )

    @guarded
    def _right(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
        """Where the model does not err [B]."""
        f = Door.open(x).probe(self.forward_func, limit=min(bs, self.batch_size or bs))
        return ~(f.to(of=class_goal(f, y)).score > 0)

    @guarded
    def _answers(self, x: Tensor, bs: int) -> Tensor:
        """The model's classes [B]."""
        f = Door.open(x).probe(self.forward_func, limit=min(bs, self.batch_size or bs))
        return as_logits(f.to(of=Everything()).score, f.everyone).argmax(1)

    @guarded
    def _look(self, x: Tensor, y: Tensor, right: Tensor) -> None:
        """Warns of what some examples show about the model, of those where it does not err."""
        first = right.nonzero().squeeze(1)[:SEEN]
        f = Door.open(x[first]).probe(self.forward_func, limit=self.batch_size)
        look(f.to(of=class_goal(f, y[first])), f.point, f.everyone, self.attacks_to_run, self.version != "rand")

    def _mark(self, x: Tensor, y: Tensor) -> str:
        """Tells one evaluation from another: its settings, inputs and classes, and the model's weights."""
        what = hashlib.sha256()
        parts = {name: self.parts[name] for name in self.attacks_to_run}
        weights = [m.state_dict() for m in modules_of(self.forward_func)]
        for t in tree_leaves([x, y, weights, [vars(part) for part in parts.values()]]):
            if isinstance(t, Tensor):  # which is not told in full below
                what.update(f"{t.dtype}{tuple(t.shape)}".encode())
                what.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        what.update(repr(parts).encode())
        return what.hexdigest()


def _share(flags: Tensor) -> str:
    return f"{float(flags.double().mean()):.2%}"


def _parts(model: Callable[..., Any], norm: Norm, version: str, steps: int, **options: Any) -> dict[str, Attack]:
    """The attacks by name, as a version has them."""
    sparse, plus = str(norm) == "L1", version == "plus"
    usual: dict[str, Any] = {"norm": norm, "steps": steps, **options}
    climb = {**usual, "large_eps": sparse, "eot_iter": DRAWS if version == "rand" else 1}
    restarts = 5 if plus or (sparse and version == "standard") else 1
    return {
        "apgd-ce": APGD(model, "ce", restarts=restarts, **climb),
        "apgd-dlr": APGD(model, "dlr", restarts=restarts, **climb),
        "apgd-t": APGD(model, "dlr", targets=5 if sparse and not plus else RIVALS, **climb),
        "fab": FAB(model, restarts=5 if plus else 1, early_stop=True, **usual),
        "fab-t": FAB(model, targets=RIVALS, early_stop=True, **usual),
        "square": Square(model, **{**usual, "steps": QUERIES * steps}),
    }


@dataclass(eq=False)
class _State:
    """How far an evaluation has come; on disk, if there is a path.

    Args:
        path: where it is kept, or None.
        mark: which evaluation it is of.
        robust: what still stands [B].
        level: how many attacks have seen each example [B].
        x: the adversarial examples so far.
    """

    path: str | Path | None
    mark: str
    robust: Tensor
    level: Tensor
    x: Tensor

    @classmethod
    def open(cls, path: str | Path | None, mark: str, x: Tensor) -> Self | None:
        """That of a file, if there is one.

        Raises:
            ValueError: it is of another evaluation.
        """
        if path is None or not Path(path).exists():
            return None
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("evaluation") != mark:
                raise ValueError(
                    f"state_path {str(path)!r} holds another evaluation (other inputs, classes, weights or settings); "
                    "give another path, or delete the file to begin anew"
                )
            held = {name: file.get_tensor(name).to(x.device) for name in ("robust", "level", "fallen", "moved")}
        return cls(path, mark, held["robust"], held["level"], x.index_copy(0, held["fallen"], held["moved"]))

    def take(self, rows: Tensor, fell: Tensor, x: Tensor, level: int) -> None:
        """What an attack found for some rows."""
        self.x[rows[fell]] = x[fell]
        self.robust[rows] = ~fell
        self.level[rows] = level
        if self.path is not None:
            self._save(Path(self.path))

    def _save(self, path: Path) -> None:
        """All or nothing: a run that is killed meanwhile leaves the file as it was."""
        fallen = (~self.robust & (self.level > 0)).nonzero().squeeze(1)
        held = {"robust": self.robust, "level": self.level, "fallen": fallen, "moved": self.x[fallen]}
        write(path, held, {"evaluation": self.mark})
