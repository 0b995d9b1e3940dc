"""What an attack hands back: tensors, a table, a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..engine.checks import optional

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, example by example.

    Attributes:
        adversarial: in the form, shapes and dtypes of the inputs. Examples that reached the goal before are
            returned unchanged; where nothing was found, the best try is (the input, from attacks that look for the
            nearest point).
        success: whether the returned tensors reach the goal, asked of the model once more [B].
        distance: how far they are from the inputs in the attack's norm [B]; of those that look for the nearest point it
            is 0 where they found none, so that it says something only with ``success``.
        margin: by how much the goal is reached (below 0: missed) [B].
        forwards, backwards: how often each example went through the model [B]. Of several budgets, each counts what it
            cost beyond the larger ones.
        inputs: what was attacked.
        norm: the name of the norm.
        eps: the budgets [B].
        history: with ``history=True`` the margin each time that a search asked the model for it, and of what came back
            where that moved [B, T]; NaN behind.
        by: which attack found the point of each example, from those that are made of several.
    """

    adversarial: Any
    success: Tensor
    distance: Tensor
    margin: Tensor
    forwards: Tensor
    backwards: Tensor
    inputs: Any
    norm: str
    eps: Tensor
    history: Tensor | None = None
    by: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.success)

    def __repr__(self) -> str:
        n = len(self)
        if not n:
            return f"{type(self).__name__}(no examples)"
        share = self.success.double().mean()
        near = self.distance[self.success]
        told = f", median distance {near.median():.4g}" if len(near) else ""
        return (
            f"{type(self).__name__}({int(self.success.sum())} of {n} reached the goal ({share:.1%}){told}; "
            f"{self.forwards.double().mean():.1f} forwards and {self.backwards.double().mean():.1f} backwards each)"
        )

    def at(self, rows: Tensor | slice | Sequence[int]) -> Self:
        """Some of the examples: their numbers, booleans [B] or a slice."""
        index = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows).cpu()]
        by = None if self.by is None else tuple(self.by[i] for i in index.tolist())
        kept = tree_map_only(Tensor, lambda t: t[index.to(t.device)], self._held())
        return replace(self, **kept, by=by)

    @classmethod
    def cat(cls, results: Sequence[Self]) -> Self:
        """The examples of several results of one attack, one after the other.

        Raises:
            ValueError: there are none, or their norms differ.
        """
        if len({r.norm for r in results}) != 1:
            told = ", ".join(sorted({r.norm for r in results})) or "no results"
            raise ValueError(f"results must be at least one, all in the same norm, got {told}")
        first, *_ = held = [r._held() for r in results]
        if any((r.history is None) != (results[0].history is None) for r in results):
            raise ValueError("results must all have a history, or none: ask for history=True in each run")
        if results[0].history is not None:
            longest = max(h["history"].shape[1] for h in held)
            for h in held:
                h["history"] = torch.nn.functional.pad(
                    h["history"], (0, longest - h["history"].shape[1]), value=torch.nan
                )
        joined = {name: _cat([h[name] for h in held]) for name in first}
        by = [r.by for r in results]
        return replace(results[0], **joined, by=None if None in by else tuple(b for names in by for b in names or ()))

    def _held(self) -> dict[str, Any]:
        """What has a row for each example."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("norm", "by")}
        return held if self.history is not None else {k: v for k, v in held.items() if k != "history"}

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each example: success, distance, eps, margin, forwards, backwards (and who found it).

        Raises:
            ImportError: pandas is not installed.
        """
        frame: Callable[..., pd.DataFrame] = optional("pandas", "tables").DataFrame
        names = ("success", "distance", "eps", "margin", "forwards", "backwards")
        columns: dict[str, Any] = {name: getattr(self, name).detach().cpu().double().numpy() for name in names}
        columns |= {name: columns[name].astype(kind) for name, kind in KINDS.items()}
        return frame(columns if self.by is None else columns | {"by": list(self.by)})

    def plot(self, rows: Tensor | slice | Sequence[int] = slice(30), title: str = "") -> "Figure":
        """Images as they were, as they are and what changed: a matplotlib figure, of 30 examples at most.

        Raises:
            ValueError: the inputs are no images [B, C, H, W].
        """
        from ..plot import contact_sheet  # matplotlib, for those who look

        shown = self.at(rows)
        before, after = shown.inputs, shown.adversarial
        if not isinstance(before, Tensor) or before.ndim != 4 or before.shape[1] not in (1, 3):
            told = tuple(before.shape) if isinstance(before, Tensor) else type(before).__name__
            raise ValueError(f"plot shows images [B, 1 or 3, H, W], but the inputs are {told}; use to_pandas()")
        if not len(shown):
            raise ValueError("plot needs at least one example, got none")
        captions = [
            f"{d:.3g}" if s else "held" for d, s in zip(shown.distance.tolist(), shown.success.tolist(), strict=True)
        ]
        low, high = float(before.min()), float(before.max())
        title = title or f"{int(shown.success.sum())} of {len(shown)} reached the goal; distance in {self.norm}"
        return contact_sheet(before, after, captions, shown.success.tolist(), (low, high), title)


KINDS = {"success": bool, "forwards": int, "backwards": int}


def _cat(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], dict):
        return {k: _cat([p[k] for p in parts]) for k in parts[0]}
    return tuple(_cat(list(p)) for p in zip(*parts, strict=True))
