"""Models whose inputs, or token embeddings, can be attributed to like anything else."""

from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import ArgumentError, whole


class ModelInputWrapper(nn.Module):
    """The same model, with each input on its way through a layer of its own, ``input_maps[name]``.

    So methods at layers attribute to inputs too, beside other layers if need be: pictures and token embeddings at once.

    Args:
        module_to_wrap: a model whose ``forward`` names its inputs; what it gathers by ``*args`` or ``**kwargs`` is
            passed on.

    Raises:
        ValueError: it names none.

    >>> from robustx.attribution import IntegratedGradients, LayerIntegratedGradients
    >>> model, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    >>> wrapped = ModelInputWrapper(model)
    >>> a = LayerIntegratedGradients(wrapped, wrapped.input_maps["input"]).attribute(x, target=1)
    >>> torch.allclose(a, IntegratedGradients(model).attribute(x, target=1), atol=1e-6)
    True
    """

    def __init__(self, module_to_wrap: nn.Module) -> None:
        super().__init__()
        takes = signature(module_to_wrap.forward).parameters.values()
        named = [p for p in takes if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        if not named:
            raise ValueError(
                f"module_to_wrap must name its inputs, but {type(module_to_wrap).__name__}.forward takes "
                f"{signature(module_to_wrap.forward)}; wrap the module within, or give forward their names"
            )
        self.module = module_to_wrap
        self.arg_name_list = [p.name for p in named if p.kind is not Parameter.KEYWORD_ONLY]
        self.input_maps = nn.ModuleDict()
        # past add_module, which refuses names that a ModuleDict has methods of: "keys", "values", "type", ...
        self.input_maps._modules.update({p.name: nn.Identity() for p in named})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        names = self.arg_name_list[: len(args)]
        through = [self.input_maps[name](v) for name, v in zip(names, args, strict=False)]
        by_name = {k: self.input_maps[k](v) if k in self.input_maps else v for k, v in kwargs.items()}
        return self.module(*through, *args[len(names) :], **by_name)


class InterpretableEmbeddingBase(nn.Module):
    """Stands for an embedding layer, and passes on embeddings that were made before.

    Args:
        embedding: the layer.
        full_name: its name within the model.

    >>> layer = InterpretableEmbeddingBase(torch.nn.Embedding(9, 4), "embedding")
    >>> embedded = layer.indices_to_embeddings(torch.tensor([[1, 2, 3]]))
    >>> layer(embedded) is embedded
    True
    """

    def __init__(self, embedding: nn.Module, full_name: str) -> None:
        super().__init__()
        self.num_embeddings = getattr(embedding, "num_embeddings", None)
        self.embedding_dim = getattr(embedding, "embedding_dim", None)
        self.embedding = embedding
        self.full_name = full_name

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The first argument, whatever the others."""
        if not inputs and not kwargs:
            raise TypeError(
                f"{self.full_name} got no argument; expected embeddings, as indices_to_embeddings makes them"
            )
        return next(iter((*inputs, *kwargs.values())))

    def indices_to_embeddings(self, *input: Any, **kwargs: Any) -> Any:
        """What the embedding layer makes of these arguments."""
        return self.embedding(*input, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The embedding's, where this has none: a model may use its weight elsewhere, as tied decoders do."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("embedding"), name)


def configure_interpretable_embedding_layer(
    model: nn.Module, embedding_layer_name: str = "embedding"
) -> InterpretableEmbeddingBase:
    """Makes a model take embeddings where it took token ids, until :func:`remove_interpretable_embedding_layer`.

    Args:
        model: the model; its layer is replaced.
        embedding_layer_name: the layer's name, dotted if it lies deeper.

    Raises:
        ArgumentError: that was done before.
        ValueError: there is no such layer.

    >>> from robustx.attribution import IntegratedGradients
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> layer = configure_interpretable_embedding_layer(model, "0")
    >>> embedded = layer.indices_to_embeddings(torch.tensor([[1, 2, 3]]))
    >>> IntegratedGradients(model).attribute(embedded, target=1).shape
    torch.Size([1, 3, 4])
    >>> remove_interpretable_embedding_layer(model, layer)
    """
    layer = _layer(model, embedding_layer_name)
    if isinstance(layer, InterpretableEmbeddingBase):
        raise ArgumentError(
            f"layer {embedding_layer_name!r} is interpretable already; remove_interpretable_embedding_layer undoes it"
        )
    interpretable = InterpretableEmbeddingBase(layer, embedding_layer_name)
    _replace(model, embedding_layer_name, interpretable)
    return interpretable


def remove_interpretable_embedding_layer(model: nn.Module, interpretable_emb: InterpretableEmbeddingBase) -> None:
    """Gives a model its embedding layer back.

    Raises:
        ValueError: ``interpretable_emb`` is not what stands in its place.
    """
    if _layer(model, interpretable_emb.full_name) is not interpretable_emb:
        raise ValueError(
            f"interpretable_emb does not stand at {interpretable_emb.full_name!r} of this model; it may have been "
            "removed before, or belong to another model"
        )
    _replace(model, interpretable_emb.full_name, interpretable_emb.embedding)


class TokenReferenceBase:
    """Makes reference sequences of one token.

    Args:
        reference_token_idx: its id, such as the padding's.

    >>> TokenReferenceBase(7).generate_reference(3, "cpu")
    tensor([7, 7, 7])
    """

    def __init__(self, reference_token_idx: int = 0) -> None:
        self.reference_token_idx = reference_token_idx

    def generate_reference(self, sequence_length: int, device: torch.device | str | None = None) -> Tensor:
        """The token's id, again and again [sequence_length]."""
        return torch.full((whole("sequence_length", sequence_length, 0),), self.reference_token_idx, device=device)


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in layers:
        likely = [n for n, m in layers.items() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        raise ValueError(
            f"model has no layer {name!r}; its embedding layers are {', '.join(map(repr, likely)) or 'of other names'}"
        )
    return layers[name]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    holder, _, last = name.rpartition(".")
    setattr(model.get_submodule(holder), last, layer)
