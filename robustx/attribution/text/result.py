"""What a language model's answer is owed to, token by token."""

from dataclasses import KW_ONLY, dataclass
from math import floor, log10
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engine.checks import ArgumentError
from .inputs import ImageMaskInput, InterpretableInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(eq=False)
class LLMAttributionResult:
    """Attributions of a language model's answer to the parts of the prompt.

    Args:
        input_tokens: names of the prompt's features, F of them.
        output_tokens: the answer's tokens, T of them.
        seq_attr: attributions of the whole answer [F].
        token_attr: attributions of each of its tokens [T, F], if there are any.
        output_probs: how likely each token is, given the whole prompt and the tokens before it [T].
        inp: the prompt.

    Raises:
        ValueError: shapes do not fit.

    >>> LLMAttributionResult(input_tokens=["a", "b"], output_tokens=["c"], seq_attr=[1.0, -0.5]).seq_attr_dict
    {'a': 1.0, 'b': -0.5}
    """

    _: KW_ONLY
    input_tokens: list[str]
    output_tokens: list[str]
    seq_attr: Any
    token_attr: Any = None
    output_probs: Any = None
    inp: InterpretableInput | None = None

    def __post_init__(self) -> None:
        features, tokens = len(self.input_tokens), len(self.output_tokens)
        self.seq_attr = _fitting("seq_attr", self.seq_attr, (features,))
        self.token_attr = _fitting("token_attr", self.token_attr, (tokens, features))
        self.output_probs = _fitting("output_probs", self.output_probs, (tokens,))

    @property
    def seq_attr_dict(self) -> dict[str, float]:
        """Attributions by their features' names; of features of one name, the last one's."""
        return dict(zip(self.input_tokens, self.seq_attr.tolist(), strict=True))

    def plot_token_attr(self, show: bool = False) -> "tuple[Figure, Axes] | None":
        """A table of attributions, one line for each token of the answer; red adds, blue takes away.

        Args:
            show: show it and return None, instead of figure and axes.

        Raises:
            ValueError: there are no attributions of single tokens.
        """
        from ...plot import SIGNED
        from .pictures import figure, label, shown

        values = self._of_tokens().detach().float().cpu()
        most = float(values.abs().max()) or 1.0
        fig, axes = figure(show, (max(values.shape[1] * 0.9 + 1.5, 6.4), max(values.shape[0] / 2.5 + 1, 3.2)))
        image = axes.imshow(values.numpy(), vmin=-most, vmax=most, cmap=SIGNED, aspect="auto")
        fig.colorbar(image, ax=axes, label="attribution of the token", fraction=0.05, pad=0.02)
        self._ticks(axes)
        axes.set_yticks(range(values.shape[0]), [label(t) for t in self.output_tokens])
        places = max(0, 2 - floor(log10(most)))  # of the largest three digits are told
        for i, line in enumerate(values.tolist()):
            for j, value in enumerate(line):
                ink = "white" if abs(value) > 0.6 * most else "black"
                told = f"{round(value, places) + 0.0:.{places}f}"  # -0.0 is nothing
                axes.text(j, i, told, ha="center", va="center", color=ink, fontsize=9)
        return shown(fig, axes, show)

    def plot_seq_attr(self, show: bool = False) -> "tuple[Figure, Axes] | None":
        """Attributions of the whole answer as bars; red adds, blue takes away.

        Args:
            show: show it and return None, instead of figure and axes.
        """
        from ...plot import BLUE, RED
        from .pictures import figure, shown

        values = self.seq_attr.tolist()
        fig, axes = figure(show, (max(len(values) / 2, 6.4), 4.2))
        axes.bar(range(len(values)), values, color=[RED if v > 0 else BLUE for v in values])
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_ylabel("attribution of the answer")
        axes.spines[["right", "bottom"]].set_visible(False)
        self._ticks(axes)
        return shown(fig, axes, show)

    def plot_image_heatmap(
        self,
        show: bool = False,
        target_token_pos: int | tuple[int, int] | None = None,
        border_width: int = 2,
        show_legends: bool = True,
    ) -> "tuple[Figure, Axes] | None":
        """The picture of the prompt in grey, with attributions of its parts in colours; red adds, blue takes away.

        Args:
            show: show it and return None, instead of figure and axes.
            target_token_pos: of which token of the answer; (begin, end) of several, the end left out; None: of all.
            border_width: of the parts' borders, in points.
            show_legends: write a part's id in its middle.

        Raises:
            ValueError: the prompt is no :class:`ImageMaskInput`, or there are no attributions of single tokens.
        """
        if not isinstance(self.inp, ImageMaskInput):
            raise ArgumentError(
                f"plot_image_heatmap is for an ImageMaskInput, got {type(self.inp).__name__}; use plot_seq_attr"
            )
        import numpy as np

        from ...plot import draw_signed
        from .pictures import figure, mark, shown

        values = self.seq_attr
        if target_token_pos is not None:
            begin, end = target_token_pos if isinstance(target_token_pos, tuple) else (target_token_pos, None)
            of = self._of_tokens()
            values = of[begin] if end is None else of[begin:end].sum(0)
        pixels = self.inp.format_pixel_attr(values.detach().float().cpu())
        most = float(pixels.abs().max()) or 1.0
        fig, axes = figure(show, (6.4, 4.8))
        axes.imshow(np.asarray(self.inp.image.convert("L")), cmap="gray", vmin=0, vmax=255)
        heat = draw_signed(axes, pixels, most, alpha=0.7)
        fig.colorbar(heat, ax=axes, label="attribution of the answer")
        for name, mask in zip(self.inp.mask_id_to_idx, self.inp.get_mask_list(), strict=True):
            mark(axes, mask, border_width, "0.3", str(name) if show_legends else "")
        return shown(fig, axes, show)

    def _of_tokens(self) -> Tensor:
        if self.token_attr is None:
            raise ArgumentError("token_attr is None: there are no attributions of single tokens; use those of seq_attr")
        return self.token_attr  # type: ignore[no-any-return]  # a tensor since it was checked

    def _ticks(self, axes: "Axes") -> None:
        from .pictures import label

        axes.set_xticks(range(len(self.input_tokens)), [label(t) for t in self.input_tokens], rotation=30, ha="left")
        axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False)


def _fitting(name: str, given: Any, shape: tuple[int, ...]) -> Tensor | None:
    if given is None:
        return None
    value = torch.as_tensor(given)
    if tuple(value.shape) != shape:
        raise ArgumentError(
            f"{name} must have the shape {shape} of the tokens and features named, got {tuple(value.shape)}"
        )
    return value
