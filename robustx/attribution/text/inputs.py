"""Prompts whose parts may be there or not: what of a text, or of a picture, counts as one feature."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...engine.checks import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Words = list[str] | dict[str, str]


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers answer."""

    def encode(self, text: str, *args: Any, **kwargs: Any) -> Any: ...

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any: ...


class InterpretableInput(ABC):
    """A prompt as a model takes it, made of features that are there (1) or not (0).

    Ribeiro, Singh, Guestrin (KDD 2016), section 3.1; Miglani et al. (2023), arXiv 2312.05491.

    ``n_itp_features`` counts the features, and ``values`` names what is shown in a result.
    """

    n_itp_features: int
    values: list[str]

    @abstractmethod
    def to_tensor(self) -> Tensor:
        """All features as they are there [1, F]."""

    @abstractmethod
    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> Any:
        """What the model is given when these features are there [1, F]; None: all of them.

        A text, token ids [1, L], or a mapping of tensors that the model takes by keyword.
        """

    def format_attr(self, itp_attr: Tensor) -> Tensor:
        """Attributions of features [..., F] as :attr:`values` show them [..., V]."""
        return itp_attr

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_itp_features} features)"


class TextTemplateInput(InterpretableInput):
    """A text that a template makes of some values, each of which may give way to another one.

    Args:
        template: a format string, or a function of the values that returns the text.
        values: a list for positional fields, or a dict for named ones.
        baselines: what stands there instead, in the form of ``values``: None for nothing at all (""), or a function
            that draws it anew for each text, such as :class:`robustx.attribution.ProductBaselines`.
        mask: an id for each value, in their form; those of the same id are one feature, and share its attribution.

    Raises:
        TypeError: arguments are of other types, or not of the same form.
        ValueError: they do not name the same values, or not all that the template asks for.

    >>> import torch
    >>> prompt = TextTemplateInput("{} feels {} right now", ["He", "depressed"], baselines=["It", "neutral"])
    >>> prompt.to_model_input(torch.tensor([[0, 1]]))
    'It feels depressed right now'
    """

    def __init__(
        self,
        template: str | Callable[..., str],
        values: Words,
        baselines: Words | Callable[[], Words] | None = None,
        mask: list[int] | dict[str, int] | None = None,
    ) -> None:
        if not isinstance(values, list | dict):
            raise ArgumentTypeError(f"values must be a list or a dict of texts, got {type(values).__name__}")
        if not isinstance(template, str) and not callable(template):
            raise ArgumentTypeError(
                f"template must be a format string or a function, got {type(template).__name__}; "
                "such as '{} lives in {}'"
            )
        self.dict_keys = list(values) if isinstance(values, dict) else []
        self._named = isinstance(values, dict)
        self.values = list(values.values()) if isinstance(values, dict) else list(values)
        self.n_features = len(self.values)
        self.template = template
        self.format_fn: Callable[..., str] = template.format if isinstance(template, str) else template
        self.baselines: list[str] | Callable[[], Words] = (
            [""] * self.n_features
            if baselines is None
            else baselines
            if callable(baselines)
            else self._listed("baselines", baselines)
        )
        self.mask = None if mask is None else self._listed("mask", mask)
        ids = range(self.n_features) if self.mask is None else self.mask
        place = {name: i for i, name in enumerate(sorted(set(ids)))}
        self.formatted_mask = [place[name] for name in ids]
        self.n_itp_features = len(place)
        if isinstance(template, str):
            try:
                self.to_model_input()
            except (IndexError, KeyError) as e:
                raise ArgumentError(
                    f"template {template!r} asks for more than values give: {values!r}; a brace itself is {{{{ or }}}}"
                ) from e

    def to_tensor(self) -> Tensor:
        return torch.ones(1, self.n_itp_features)

    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> str:
        values = self.values
        if perturbed_tensor is not None:
            made = self.baselines
            away = self._listed("baselines", made()) if callable(made) else made
            there = (perturbed_tensor[0] != 0).tolist()
            values = [v if there[k] else b for v, b, k in zip(values, away, self.formatted_mask, strict=True)]
        if self._named:
            return self.format_fn(**dict(zip(self.dict_keys, values, strict=True)))
        return self.format_fn(*values)

    def format_attr(self, itp_attr: Tensor) -> Tensor:
        return itp_attr[..., self.formatted_mask]

    def _listed(self, name: str, given: Any) -> list[Any]:
        """What is given in the form of the values, in their order."""
        wanted = dict if self._named else list
        if not isinstance(given, wanted):
            raise ArgumentTypeError(
                f"{name} must be a {wanted.__name__} as values are, or return one, got {type(given).__name__}"
            )
        if len(given) != self.n_features or (self._named and set(given) != set(self.dict_keys)):
            told = ", ".join(map(repr, given if self._named else [len(given)]))
            raise ArgumentError(
                f"{name} must have one entry for each of the {self.n_features} values, got {told or 'none'}"
            )
        return [given[k] for k in self.dict_keys] if isinstance(given, dict) else list(given)


class TextTokenInput(InterpretableInput):
    """A text whose tokens are the features; a token that is not there gives way to another one.

    Args:
        text: the prompt.
        tokenizer: of the language model.
        baselines: the id of the token that stands there instead, or the token itself; 0 means "unknown" or "pad" to
            many tokenizers.
        skip_tokens: ids, or tokens, that always stay, such as special ones; they get no attribution.

    Raises:
        ValueError: the tokenizer does not know a token.

    >>> import torch
    >>> class Letters:
    ...     def encode(self, text, return_tensors):
    ...         return torch.tensor([[ord(c) for c in text]])
    ...
    ...     def convert_ids_to_tokens(self, ids):
    ...         return [chr(i) for i in ids]
    >>> prompt = TextTokenInput("cat", Letters(), baselines=ord("_"), skip_tokens=[ord("a")])
    >>> prompt.values, "".join(map(chr, prompt.to_model_input(torch.tensor([[0, 1]]))[0]))
    (['c', 't'], '_at')
    """

    def __init__(
        self,
        text: str,
        tokenizer: Tokenizer,
        baselines: int | str = 0,
        skip_tokens: Sequence[int] | Sequence[str] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.inp_tensor: Tensor = tokenizer.encode(text, return_tensors="pt")  # [1, L]
        self.skip_tokens = token_ids(tokenizer, skip_tokens, "skip_tokens")
        self.itp_mask: Tensor | None = None
        self.itp_tensor = self.inp_tensor
        if self.skip_tokens:
            self.itp_mask = ~torch.isin(self.inp_tensor, torch.tensor(self.skip_tokens, dtype=self.inp_tensor.dtype))
            self.itp_tensor = self.inp_tensor[self.itp_mask][None]
        self.values = tokenizer.convert_ids_to_tokens(self.itp_tensor[0].tolist())
        self.n_itp_features = len(self.values)
        self.baselines = token_ids(tokenizer, [baselines], "baselines")[0]

    def to_tensor(self) -> Tensor:
        return torch.ones_like(self.itp_tensor)

    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> Tensor:
        """Token ids [N, L], for features [N, F] of several prompts as well."""
        if perturbed_tensor is None:
            return self.inp_tensor
        kept = self.itp_tensor.to(perturbed_tensor.device).expand(len(perturbed_tensor), -1)
        tokens = torch.where(perturbed_tensor == 1, kept, self.baselines)
        if self.itp_mask is None:
            return tokens
        whole = self.inp_tensor.to(tokens.device).repeat(len(tokens), 1)
        whole[:, self.itp_mask[0].to(tokens.device)] = tokens
        return whole


def token_ids(tokenizer: Tokenizer, tokens: Any, name: str) -> list[int]:
    """Ids of tokens that are given by their ids or themselves."""
    found = [tokenizer.convert_tokens_to_ids([t])[0] if isinstance(t, str) else t for t in tokens or []]
    for given, number in zip(tokens or [], found, strict=True):
        if number is None:
            raise ArgumentError(f"{name}: the tokenizer has no token {given!r}; give the id of one it has")
    return [index(t) for t in found]


class ImageMaskInput(InterpretableInput):
    """A picture whose parts may be painted over, as a model for pictures and text takes it.

    Args:
        image: a PIL image.
        mask: integers [H, W], one feature each; None: the whole picture is one.
        mask_list: masks [H, W], one for each feature, which may overlap; ``mask`` is then ignored.
        baseline: the colour of what is not there.
        processor_fn: (image) -> what the model takes by keyword, such as a processor of transformers with the text.

    Raises:
        TypeError: the image is none of PIL's.
        ValueError: a mask has another size than the picture.

    >>> import torch
    >>> from PIL import Image
    >>> picture = Image.new("RGB", (4, 2), (10, 20, 30))
    >>> left_right = torch.tensor([[0, 0, 1, 1]] * 2)
    >>> given = ImageMaskInput(picture, left_right, baseline=(0, 0, 0))
    >>> changed = given.to_model_input(torch.tensor([[1, 0]]))
    >>> changed.getpixel((0, 0)), changed.getpixel((3, 0))
    ((10, 20, 30), (0, 0, 0))
    """

    def __init__(
        self,
        image: "Image",
        mask: Tensor | None = None,
        mask_list: Sequence[Tensor] | None = None,
        baseline: tuple[int, int, int] = (255, 255, 255),
        processor_fn: Callable[["Image"], Any] = lambda image: image,
    ) -> None:
        if not isinstance(getattr(image, "size", None), tuple):
            raise ArgumentTypeError(
                f"image must be a PIL image, got {type(image).__name__}; "
                "PIL.Image.fromarray makes one of an array [H, W, 3]"
            )
        size = image.size[1], image.size[0]
        self.image, self.baseline, self.processor_fn = image, baseline, processor_fn
        if mask_list is None:
            mask = torch.zeros(size, dtype=torch.int32) if mask is None else torch.as_tensor(mask)
            self.mask, self.mask_list = mask, []
            ids = torch.unique(mask).tolist()
        else:
            self.mask, self.mask_list = torch.empty(0), [torch.as_tensor(m) for m in mask_list]
            ids = list(range(len(self.mask_list)))
        for name, m in [("mask_list", m) for m in self.mask_list] or [("mask", self.mask)]:
            if tuple(m.shape) != size:
                raise ArgumentError(f"{name} must be [H, W] = {size} like the picture, got {tuple(m.shape)}")
        self.mask_id_to_idx = {int(name): i for i, name in enumerate(ids)}
        self.n_itp_features = len(ids)
        self.values = [f"image_feature_{name}" for name in self.mask_id_to_idx]
        self.original_model_inputs = processor_fn(image)

    def to_tensor(self) -> Tensor:
        return torch.ones(1, self.n_itp_features)

    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> Any:
        if perturbed_tensor is None:
            return self.original_model_inputs
        from PIL import Image

        pixels = np.array(self.image)
        for there, mask in zip((perturbed_tensor[0] != 0).tolist(), self.get_mask_list(), strict=True):
            if not there:
                pixels[mask.numpy()] = self.baseline
        return self.processor_fn(Image.fromarray(pixels))

    def get_mask_list(self) -> list[Tensor]:
        """Where each feature is, booleans [H, W]."""
        if self.mask_list:
            return [m.bool().cpu() for m in self.mask_list]
        return [self.mask.cpu() == name for name in self.mask_id_to_idx]

    def format_pixel_attr(self, itp_attr: Tensor) -> Tensor:
        """Attributions of features [..., F] as pixels show them [..., H, W]: the sum over those that a pixel is in."""
        where = torch.stack(self.get_mask_list()).to(itp_attr)  # [F, H, W]
        return torch.einsum("...f,fhw->...hw", itp_attr, where)

    def plot_mask_overlay(
        self, show: bool = False, border_width: int = 0, show_legends: bool = True
    ) -> "tuple[Figure, Axes] | None":
        """The picture with its features in colours.

        Args:
            show: show it and return None, instead of figure and axes.
            border_width: of the features' borders, in points.
            show_legends: write a feature's id in its middle.
        """
        from .pictures import figure, mark, shown

        fig, axes = figure(show, (6.4, 4.8))
        axes.imshow(self.image)
        import matplotlib

        colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]  # of listed maps alone
        for i, (name, mask) in enumerate(zip(self.mask_id_to_idx, self.get_mask_list(), strict=True)):
            colour = colours[i % len(colours)]
            axes.imshow(mask.numpy()[..., None] * np.array([*colour, 0.6]))
            mark(axes, mask, border_width, colour, str(name) if show_legends else "")
        axes.axis("off")
        return shown(fig, axes, show)


Prompt = Mapping[str, Tensor]
"""What a language model takes by keyword, of one prompt: ``input_ids`` [1, L], and whatever else."""


def prompt_of(given: Any, tokenizer: Tokenizer) -> Prompt:
    """What :meth:`InterpretableInput.to_model_input` gives, as a model takes it.

    Raises:
        TypeError: it is none of the three forms.
        ValueError: it has no tokens.
    """
    if isinstance(given, str):
        given = tokenizer.encode(given, return_tensors="pt")
    if isinstance(given, Tensor):
        given = {"input_ids": given}
    if isinstance(given, Mapping) and "input_ids" in given:
        if not given["input_ids"].numel():
            raise ArgumentError(
                "nothing is left of the prompt without these features, and an answer must follow a token; give them "
                "baselines, write something around them, or let the tokenizer begin with a token of its own"
            )
        return dict(given)
    raise ArgumentTypeError(
        f"a prompt must be a text, token ids [1, L] or a mapping with input_ids, got {type(given).__name__}; "
        "processor_fn can make one of a picture"
    )
