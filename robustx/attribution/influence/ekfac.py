"""EK-FAC: an inverse of the curvature, layer by layer, whose cost grows with the layers' widths."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.checks import ArgumentError, ArgumentTypeError, at_least, whole
from ...engine.packing import flat
from ...engine.probe import Probe
from ...engine.randomness import Noise, identities
from ...engine.scores import Score
from ...engine.weights import Block, Outer
from .base import Layers, Loss, TrainData
from .checkpoints import load_checkpoint
from .solved import SolvedInfluenceFunction

WHOLE = 4096  # sides of at most so many have a basis of their own; longer ones keep that of the parameter
MEAN = 0.1  # of a part's mean curvature, what is added by default
OUTPUTS = 4096  # outputs of an example whose curvature, a matrix, is still written out


@dataclass(frozen=True, eq=False)
class Along(Score):
    """The output of each row in a direction of its own, ``u`` [B, C]."""

    u: Tensor

    def value(self, out: Any, rows: Tensor) -> Tensor:
        return (flat(out) * self.u[rows]).sum(1)


def output_roots(losses: Score, out: Tensor, rows: Tensor) -> Tensor:
    """A root of the curvature of each row's loss with respect to the outputs [N, C, C]: columns u, the
    longest first, with ``sum of u u' = H``.

    Losses that curve down in some direction have that left out.

    Raises:
        ValueError: no loss is curved.
    """
    leaf = out.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(losses.value(leaf, rows).sum(), leaf, create_graph=True)
        columns = [
            torch.autograd.grad(s.sum(), leaf, retain_graph=True)[0] if s.requires_grad else torch.zeros_like(leaf)
            for s in flat(slope).unbind(1)
        ]
    h = torch.stack([flat(c).detach() for c in columns], 2)
    values, vectors = torch.linalg.eigh((h + h.mT) / 2)
    noise = h.shape[1] * torch.finfo(h.dtype).eps * values[:, -1:]
    values = torch.where(values > noise, values, 0.0)  # no way back for what is zero but for rounding
    roots: Tensor = (vectors * values.sqrt()[:, None]).flip(2)
    if len(out) and not roots.any():
        raise ArgumentError(
            "the loss is nowhere curved in the model's outputs, so there is no Gauss-Newton matrix; let the model "
            "return logits or predictions, and loss_fn turn them into losses"
        )
    return roots


@dataclass(frozen=True, eq=False)
class Part:
    """A weight and its bias, as one matrix for each group with the bias as a last column; or any other parameter.

    Args:
        at: the places of the weight, and of the bias if there is one, among all parameters.
        shape: (G, O, I) of the matrices; of other parameters (1, P, 1).
    """

    at: tuple[int, ...]
    shape: tuple[int, int, int]

    def joined(self, blocks: list[Block]) -> Outer:
        """The gradients of some examples as one block."""
        block = blocks[self.at[0]]
        if not isinstance(block, Outer):
            if self.shape[0] > 1 or self.shape[2] > 1:
                raise ArgumentError("the model used a layer in another way than on the first examples")
            rows = block.dense()
            return Outer(rows.new_ones(len(rows), 1, 1, 1), rows[:, None, None])
        if len(self.at) == 1:
            return block
        return Outer(torch.cat([block.a, torch.ones_like(block.a[..., :1])], 3), block.g)

    def gathered(self, rows: Sequence[Tensor]) -> Tensor:
        """Gradients [n, G, O, I] of those with respect to each parameter [n, P]."""
        g, o, i = self.shape
        first, *rest = (rows[at].reshape(len(rows[at]), g, o, -1) for at in self.at)
        return torch.cat([first, *rest], 3)

    def spread(self, made: Tensor) -> dict[int, Tensor]:
        """The other way round."""
        if len(self.at) == 1:
            return {self.at[0]: made.flatten(1)}
        return {self.at[0]: made[..., :-1].flatten(1), self.at[1]: made[..., -1].flatten(1)}


def parts_of(names: Sequence[str], blocks: list[Block]) -> list[Part]:
    """How the parameters belong together, by their gradients on some examples."""
    found, biases = [], set[int]()
    for at, (name, block) in enumerate(zip(names, blocks, strict=True)):
        if isinstance(block, Outer):
            _, groups, _, i = block.a.shape
            o = block.g.shape[3]
            whose = name.removesuffix("weight") + "bias"
            bias = names.index(whose) if name.endswith("weight") and whose in names else None
            if bias is not None and _added(blocks[bias], block):
                biases.add(bias)
                found.append(Part((at, bias), (groups, o, i + 1)))
            else:
                found.append(Part((at,), (groups, o, i)))
    matrices = {p.at[0] for p in found}
    rest = set(range(len(names))) - matrices - biases
    return found + [Part((at,), (1, blocks[at].dense().shape[1], 1)) for at in sorted(rest)]


def _added(bias: Block, weight: Outer) -> bool:
    """Whether a bias is added wherever a weight is used, and nowhere else."""
    sums, rows = weight.g.sum(2).flatten(1), bias.dense()
    return rows.shape == sums.shape and torch.allclose(rows, sums, rtol=1e-3, atol=1e-3 * float(sums.abs().max()))


@dataclass(frozen=True, eq=False)
class Kronecker:
    """A basis for gradients [n, G, O, I] that is one of O for each of I, and the curvature along it.

    Args:
        left, right: orthonormal columns [G, O, O] and [G, I, I]; None for the parameter's own.
        curvature: [G, O, I], in that basis.
    """

    left: Tensor | None
    right: Tensor | None
    curvature: Tensor

    def turned(self, block: Outer) -> Tensor:
        """Gradients in this basis [n, G, O, I]."""
        g = block.g if self.left is None else block.g @ self.left
        a = block.a if self.right is None else block.a @ self.right
        return g.mT @ a

    def solve(self, rows: Tensor, damping: float | None) -> Tensor:
        """Gradients divided by the curvature and the damping; nothing along directions that have neither."""
        found = rows if self.left is None else self.left.mT @ rows
        found = found if self.right is None else found @ self.right
        total = self.curvature + (MEAN * self.curvature.mean() if damping is None else damping)
        found = torch.where(total > 0, found / total, 0.0)
        found = found if self.left is None else self.left @ found
        return found if self.right is None else found @ self.right.mT


def kronecker(passes: Callable[[], Iterator[list[Outer]]]) -> list[Kronecker]:
    """For each part, the basis that the second moments of its factors have, and the curvature along it.

    George, Laurent, Bouthillier, Ballas, Vincent (NeurIPS 2018, arXiv:1806.03884), algorithm 1: of all curvatures in
    that basis, the second moments of the turned gradients are the nearest to the whole.

    Args:
        passes: goes through all gradients, batch by batch, a block for each part.
    """
    moments = _summed([side for b in blocks for side in (_moment(b.g), _moment(b.a))] for blocks in passes())
    sides = [_basis(m) for m in moments]
    turns = [Kronecker(left, right, torch.empty(0)) for left, right in zip(sides[::2], sides[1::2], strict=True)]
    squares = _summed(
        [turn.turned(b).square().sum(0) for turn, b in zip(turns, blocks, strict=True)] for blocks in passes()
    )
    return [replace(turn, curvature=along) for turn, along in zip(turns, squares, strict=True)]


def _summed(batches: Iterable[list[Tensor]]) -> list[Tensor]:
    total: list[Tensor] = []
    for one in batches:
        total = [s + t for s, t in zip(total, one, strict=True)] if total else one
    if not total:
        raise ArgumentError("there are no examples to take the curvature of")
    return total


def _moment(factor: Tensor) -> Tensor:
    """The sum of squares [G, I, I] of factors [n, G, T, I]; of long ones nothing [0]."""
    if factor.shape[3] > WHOLE:
        return factor.new_zeros(0)
    rows = factor.transpose(0, 1).flatten(1, 2)
    return rows.mT @ rows


def _basis(moment: Tensor) -> Tensor | None:
    return torch.linalg.eigh(moment.double()).eigenvectors.to(moment) if moment.numel() else None


class EKFACInfluence(SolvedInfluenceFunction):
    """Influence functions by EK-FAC, an inverse Gauss-Newton matrix for each layer in a basis of its two sides.

    Grosse et al. (2023, arXiv:2308.03296), section 2.2 and 3; the matrix is George et al.'s (NeurIPS 2018,
    arXiv:1806.03884). It never has negative eigenvalues, so a model need not be at a minimum, and layers with millions
    of parameters are no trouble. A weight stands together with its bias; parameters that are neither of a linear map
    nor of a convolution have a matrix of their own, its diagonal alone if they are many. Exact where a layer is the
    whole model, linear, and its outputs curve all alike, as with squares.

    The Gauss-Newton matrix is that of the model's outputs and of ``loss_fn``: let the model return logits. With a
    cross-entropy it is the Fisher matrix.

    Args:
        others: see :class:`robustx.attribution.influence.functions.InfluenceFunctionBase`.
        damping: added to all curvatures, which are those of the sum over ``hessian_dataset``; None adds a tenth of each
            part's mean curvature, as Grosse et al. do.
        samples: random directions of each example's outputs that stand for all; None takes all: one way back for each
            of the outputs, exactly.
        seed: of these directions, which are drawn by key.
        show_progress: draws a bar of ways back while the factors are made.

    Raises:
        ValueError: the loss is nowhere curved in the outputs, or there are too many of these to take all.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> x, y = torch.randn(9, 2), torch.randn(9, 1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> EKFACInfluence(model, data, loss_fn=torch.nn.MSELoss()).influence((x, y), k=1).indices.shape
    torch.Size([9, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainData,
        checkpoint: Any = None,
        checkpoints_load_func: Callable[[nn.Module, Any], float] = load_checkpoint,
        layers: Layers | None = None,
        loss_fn: Loss = None,
        batch_size: int | None = 1,
        hessian_dataset: TrainData | None = None,
        test_loss_fn: Loss = None,
        *,
        damping: float | None = None,
        samples: int | None = None,
        seed: int = 0,
        show_progress: bool = False,
    ) -> None:
        super().__init__(
            *(model, train_dataset, checkpoint, checkpoints_load_func, layers, loss_fn, batch_size, hessian_dataset),
            test_loss_fn,
        )
        if damping is not None:
            at_least("damping", damping, 0)
        self.damping = damping
        self.samples, self.seed = samples if samples is None else whole("samples", samples, 1), seed
        self._parts: list[Part] = []
        with self._at_work(None, "factors", show_progress, "row") as told:
            self.factors = kronecker(lambda: self._curves(told))

    def _solve(self, rows: Tensor) -> Tensor:
        apart = rows.split([p.numel() for p in self._weights.parameters.values()], 1)
        made: dict[int, Tensor] = {}
        for part, factor in zip(self._parts, self.factors, strict=True):
            made |= part.spread(factor.solve(part.gathered(apart), self.damping))
        return torch.cat([made[at] for at in range(len(apart))], 1)

    def _curves(self, told: Callable[[int], object]) -> Iterator[list[Outer]]:
        """Gradients whose outer products add up to the Gauss-Newton matrix."""
        for probe in self._probes(self._curved, self.loss_fn):
            for u in self._directions(probe).unbind(2):
                for part, blocks in self._weights.blocks(probe.to(of=Along(u)), compact=False):
                    self._parts = self._parts or parts_of(list(self._weights.parameters), blocks)
                    yield [one.joined(blocks) for one in self._parts]
                    told(part.stop - part.start)

    def _directions(self, probe: Probe) -> Tensor:
        """Of all examples' outputs, with the loss's curvature as the sum of their squares [B, C, S]."""

        def work(part: slice) -> Tensor:
            rows = probe.everyone[part]
            out = probe.outputs(rows=rows)
            if not isinstance(out, Tensor):
                raise ArgumentTypeError(f"the model must return one tensor for EK-FAC, got {type(out).__name__}")
            if (c := flat(out).shape[1]) > OUTPUTS:
                raise ArgumentError(f"an example has {c} outputs, more than the {OUTPUTS} whose curvature is taken")
            return output_roots(probe.of, out, rows)

        kind = ("roots", probe._size)
        batches = probe.pace.batches(probe.examples, probe.device, work, kind, probe._size)
        roots: Tensor = torch.cat([t for _, t in batches])
        if self.samples is None:
            used: Tensor = roots[:, :, (roots != 0).any(0).any(0)]
            return used
        noise = Noise(self.seed, "EK-FAC", identities(*probe.inputs))
        drawn = noise.normal(roots.shape[2] * self.samples, roots).unflatten(1, (-1, self.samples))
        return torch.bmm(roots, drawn / float(self.samples) ** 0.5)
