"""What a counterfactual search hands back."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class CounterfactualResult:
    """One counterfactual for each example, what was proved of it, and why it works.

    Attributes:
        inputs: what was asked about.
        counterfactual: in the form, shapes and dtypes of the inputs; equal to them where none was found.
        valid: whether the goal is reached there, asked of the model once more [B].
        margin, before: by how much the goal is reached there, and was at the inputs (below 0: missed) [B].
        nearest: the largest margin that any try had [B]: where none was found, how near it came.
        changed: which features differ [B, F].
        distance: sum of the sizes of all changes, in input units [B].
        contributions: what each feature's change did to the margin, Shapley values [B, F]; unchanged features
            have 0 and a row adds up to margin - before.
        proved: for each example ``"smallest"`` (no smaller set of features can do it, by the margin that was asked
            for), ``"irreducible"`` (taking back any one change loses the goal, so understood) or ``"nothing"``
            (none was found). When features move freely, a larger set is only called irreducible: that no smaller
            one works is then the word of a search.
        names: what the features are called, F of them.
        forwards, backwards: how often each example went through the model [B].
    """

    inputs: Any
    counterfactual: Any
    valid: Tensor
    margin: Tensor
    before: Tensor
    nearest: Tensor
    changed: Tensor
    distance: Tensor
    contributions: Tensor
    proved: list[str]
    names: tuple[str, ...]
    forwards: Tensor
    backwards: Tensor

    @property
    def n_changed(self) -> Tensor:
        """How many features differ [B]."""
        return self.changed.sum(1)

    def __len__(self) -> int:
        return len(self.valid)

    def why(self, example: int) -> list[tuple[str, float]]:
        """The changed features of one example and what each did, the most helpful first."""
        which = self.changed[example].nonzero().squeeze(1).tolist()
        told = [(self.names[i], float(self.contributions[example, i])) for i in which]
        return sorted(told, key=lambda t: -t[1])

    def __repr__(self) -> str:
        n = len(self)
        if not n:
            return "CounterfactualResult(no examples)"
        found = self.valid.sum().item()
        told = f"{found} of {n} found"
        if found:
            few = self.n_changed[self.valid].double()
            told += f", {few.mean():.2f} of {len(self.names)} features change on average (at most {int(few.max())})"
        counts = ", ".join(f"{self.proved.count(p)} {p}" for p in ("smallest", "irreducible") if p in self.proved)
        return f"CounterfactualResult({told}{'; proved: ' + counts if counts else ''})"
