"""What hides gradients, and how attacks get around it: random transformations, and operations that have none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import whole
from ..engine.probe import Probe
from ..engine.randomness import Noise, identities
from ..perturb.region import Region
from .base import Attack
from .found import Found
from .views import Draws, Viewed


class EOT(Attack):
    """Any attack, on the mean over a random transformation of its inputs: expectation over transformation.

    Athalye et al. (ICML 2018), arXiv 1707.07397, section 2.1; against models that draw at random themselves, Athalye,
    Carlini, Wagner (ICML 2018), arXiv 1802.00420, section 4.2. Each question that the attack asks is asked of several
    draws and answered by the mean of their margins (losses, gradients): so the best point is kept, and
    an example counts as fooled, by the mean margin. In the result, too, ``success`` and ``margin`` are those of a mean,
    over as many fresh draws. Draws are functions of the seed, of each example's content and of how often it was asked
    before; what the model draws by itself is its own affair.

    Args:
        attack: one with a budget, bound to the model; its settings are those that count.
        transform: a differentiable function of the inputs of one example [1, ...] that keeps their shapes and draws
            from torch's generators, such as a transform of torchvision; None: the model draws, and is asked anew for
            each draw, as it may draw once for a whole batch.
        draws: how many of them answer each question.

    Raises:
        ValueError: the attack looks for the nearest point: that is where the mean margin is 0, so that fresh draws
            would undo half of what it finds.

    >>> import torch
    >>> from robustx.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> x, y = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    >>> attack = EOT(PGD(model, bounds=(0, 1), eps=0.1, steps=5), lambda x: x + 0.1 * torch.randn_like(x), draws=4)
    >>> int(attack.run(x, y).forwards.min()) % 4
    0
    """

    def __init__(self, attack: Attack, transform: Callable[..., Any] | None = None, draws: int = 10) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(
                f"attack must be one bound to a model, such as PGD(model, ...), got {type(attack).__name__}"
            )
        if attack.minimal:
            raise ValueError(
                f"attack must have a budget, but {type(attack).__name__} looks for the nearest point, which fresh "
                "draws would undo half of the time; give PGD, FGSM or the like"
            )
        vars(self).update(vars(attack))  # whatever settings attacks have
        self.attack, self.transform, self.draws = attack, transform, whole("draws", draws, 1)
        self.norms, self.needs = attack.norms, attack.needs  # type: ignore[misc]  # of each attack's own
        self.precision = None  # draws differ from one question to the next, so nothing could be held to its answers

    def _posed(self, f: Probe) -> Probe:
        noise = Noise(self.seed, type(self).__name__, identities(f.point))
        f = self.attack._posed(f)  # it may be another one of these
        if self.transform is None:
            return Viewed.of_probe(f, f.everyone, noise, times=self.draws)
        return Viewed.of_probe(f, f.everyone, noise, shown=[Draws(self.transform, self.draws)])

    def search(self, f: Probe, region: Region, rows: Tensor, noise: Noise) -> Found:
        return self.attack.search(f, region, rows, noise)


class BPDA(nn.Module):
    """A function that goes forward as it is and backward as another: backward pass differentiable approximation.

    Athalye, Carlini, Wagner (ICML 2018), arXiv 1802.00420, section 4.1. Put it where the model cuts its gradient:
    ``nn.Sequential(BPDA(quantise), net)``; attacks then need to know nothing of it. What comes out is to the bit what
    ``forward`` makes; the gradient is that of ``backward`` at the same inputs.

    Args:
        forward: the true function, of one tensor or several; it may be anything.
        backward: a differentiable one that is near it; None: the identity, of the first tensor.

    Raises:
        ValueError: what the two return differs in shape.

    >>> import torch
    >>> rounded = BPDA(lambda x: (4 * x).round() / 4)
    >>> x = torch.tensor([0.3, 0.6], requires_grad=True)
    >>> y = rounded(x)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.25, 0.5], [1.0, 1.0])
    """

    def __init__(self, forward: Callable[..., Tensor], backward: Callable[..., Tensor] | None = None) -> None:
        for name, f in (("forward", forward), ("backward", _first if backward is None else backward)):
            if not callable(f):
                raise TypeError(f"{name} must be a function of tensors, got {type(f).__name__}")
        super().__init__()
        self.true, self.substitute = forward, _first if backward is None else backward

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = _Substituted.apply(self.true, self.substitute, *inputs)
        return out


def _first(first: Tensor, *_: Tensor) -> Tensor:
    return first


class _Substituted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, true: Callable[..., Tensor], substitute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.substitute = substitute
        ctx.save_for_backward(*inputs)
        return true(*(t.clone() for t in inputs))  # which may work in place

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [
                t.detach().requires_grad_(needed)
                for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
            ]
            out = ctx.substitute(*inputs)
        if out.shape != g.shape:
            raise ValueError(
                f"backward must return what forward does, a tensor of shape {tuple(g.shape)}, got {tuple(out.shape)}"
            )
        moved = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(out, moved, g, allow_unused=True))
        return None, None, *(next(found) if t.requires_grad else None for t in inputs)
