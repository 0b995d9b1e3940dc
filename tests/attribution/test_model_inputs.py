"""Inputs and embeddings as layers: what stands there is attributed to as by methods at the input, and by captum."""

from copy import deepcopy
from inspect import signature

import captum.attr
import pytest
import torch
from attribution_cases import Net, Pair
from captum.attr._utils import input_layer_wrapper
from told import told
from torch import nn
from torch.testing import assert_close

from robustx import attribution
from robustx.attribution import IntegratedGradients, LayerIntegratedGradients, inputs
from robustx.attribution.inputs import (
    InterpretableEmbeddingBase,
    ModelInputWrapper,
    TokenReferenceBase,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),  # captum's
    pytest.mark.filterwarnings("ignore:Multiple layers provided"),
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients"),
]


def pair():
    """Inputs of a Pair."""
    return torch.randn(3, 5).double(), torch.randn(3, 2, 3).double()


# --- inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_input", [False, True])
def test_an_inputs_layer_is_the_input(of_input):
    model, x = Net(), torch.randn(4, 2, 3, 3).double()
    wrapped = ModelInputWrapper(model)
    ours = LayerIntegratedGradients(wrapped, wrapped.input_maps["x"])
    expected, delta = IntegratedGradients(model).attribute(x, 0.5, target=1, return_convergence_delta=True)
    a, d = ours.attribute(x, 0.5, target=1, return_convergence_delta=True, attribute_to_layer_input=of_input)
    assert_close(a, expected)
    assert_close(d, delta)


def test_several_inputs_at_once():
    """By place and by keyword."""
    model, (a, b) = Pair(), pair()
    wrapped = ModelInputWrapper(model)
    expected = IntegratedGradients(model).attribute((a, b), target=1, additional_forward_args=0.5)
    at_inputs = LayerIntegratedGradients(wrapped, [wrapped.input_maps["a"], wrapped.input_maps["b"]])
    by_place = at_inputs.attribute((a, b), target=1, additional_forward_args=0.5)
    by_keyword = at_inputs.attribute({"b": b, "a": a}, target=1, additional_forward_kwargs={"more": 0.5})
    for results in (by_place, by_keyword):
        for got, want in zip(results, expected, strict=True):
            assert_close(got, want)


def test_one_input_while_the_other_stays():
    model, (a, b) = Pair(), pair()
    wrapped = ModelInputWrapper(model)
    got = LayerIntegratedGradients(wrapped, wrapped.input_maps["b"]).attribute((a, b), (a, 0.0), target=1)
    assert_close(got, IntegratedGradients(lambda b, a: model(a, b)).attribute(b, 0.0, 1, a))


class Mixed(nn.Module):
    """Token ids [B, 3] and numbers [B, 5] -> [B, 4]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(12, 4)
        self.dense = nn.Linear(5, 12)

    def forward(self, ids, numbers):
        return self.head(torch.tanh(self.embedding(ids).flatten(1)) * torch.tanh(self.dense(numbers)))


def test_tokens_beside_numbers_with_captum():
    given, results = (torch.randint(0, 9, (3, 3)), torch.randn(3, 5)), []
    for room, wrapper in ((attribution, ModelInputWrapper), (captum.attr, input_layer_wrapper.ModelInputWrapper)):
        model = wrapper(Mixed())
        layers = [model.module.embedding, model.input_maps["numbers"]]
        results.append(room.LayerIntegratedGradients(model, layers).attribute(given, target=2))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert theirs.abs().sum() > 0
    assert sorted(model.input_maps) == ["ids", "numbers"]


class Awkward(nn.Module):
    """Names that a ModuleDict has methods of, a default, keywords only, and what is gathered."""

    def forward(self, keys, values=2.0, *rest, type=0.0, **more):
        return keys * values + sum(rest) + type + sum(more.values())


@pytest.mark.parametrize(
    "args, kwargs, passing",
    [
        ((1.0,), {}, {"keys": 1.0}),
        ((1.0, 3.0), {}, {"keys": 1.0, "values": 3.0}),
        ((1.0, 3.0, 5.0, 7.0), {"type": 11.0}, {"keys": 1.0, "values": 3.0, "type": 11.0}),
        ((1.0,), {"values": 5.0}, {"keys": 1.0, "values": 5.0}),
        ((), {"values": 5.0, "keys": 7.0, "extra": 13.0}, {"keys": 7.0, "values": 5.0}),
    ],
)
def test_all_that_forward_takes(args, kwargs, passing):
    """What has a name passes its layer, all else is passed on."""
    model, seen = Awkward(), {}
    wrapped = ModelInputWrapper(model)
    for name, layer in wrapped.input_maps._modules.items():
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    assert wrapped(*args, **kwargs) == model(*args, **kwargs)
    assert seen == passing


def test_a_wrapped_model_is_the_model():
    model, given = Pair(), pair()
    wrapped = ModelInputWrapper(model)
    assert wrapped.module is model
    assert list(map(id, wrapped.parameters())) == list(map(id, model.parameters()))
    assert torch.equal(wrapped(*given, shift=1.0), model(*given, shift=1.0))


def test_inputs_without_names():
    class Nameless(nn.Module):
        def forward(self, *args, **kwargs):
            return args[0]

    with pytest.raises(ValueError, match="module_to_wrap") as error:
        ModelInputWrapper(Nameless())
    told(error.value, ("Nameless", "*args", "name"))


# --- embeddings -------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Token ids [B, 3] -> [B, 9]; the embedding lies deeper, and its weight is the decoder's too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"words": nn.Embedding(9, 4), "mix": nn.Linear(12, 4)})
        self.double()

    def forward(self, ids):
        hidden = torch.tanh(self.body["mix"](self.body["words"](ids).flatten(1)))
        return hidden @ self.body["words"].weight.T


class Untied(Deep):
    """The same without the decoder: captum's layer has no weight."""

    def forward(self, ids):
        return torch.tanh(self.body["mix"](self.body["words"](ids).flatten(1)))


IDS, REFERENCE = torch.tensor([[1, 2, 3], [8, 0, 8]]), torch.tensor([[7, 7, 7]])


def embedded(room, method, model):
    """Attributions to embeddings that were made outside of the model."""
    layer = room.configure_interpretable_embedding_layer(model, "body.words")
    x, start = layer.indices_to_embeddings(IDS).detach(), layer.indices_to_embeddings(REFERENCE).detach()
    a = method(model).attribute(x, start, target=2)
    room.remove_interpretable_embedding_layer(model, layer)
    return a


def test_embeddings_made_before_or_within():
    """Integrated gradients over embeddings that were made outside are those at the embedding layer."""
    model = Deep()
    at_the_layer = LayerIntegratedGradients(model, model.body["words"]).attribute(IDS, REFERENCE, target=2)
    assert_close(embedded(inputs, IntegratedGradients, model), at_the_layer)
    assert at_the_layer.abs().sum() > 0


def test_embeddings_with_captum():
    ours = embedded(inputs, IntegratedGradients, Untied())
    assert_close(ours, embedded(captum.attr, captum.attr.IntegratedGradients, Untied()))


def test_configuring_and_removing():
    model = Deep()
    layer, keys, out = model.body["words"], list(model.state_dict()), model(IDS)
    interpretable = configure_interpretable_embedding_layer(model, "body.words")
    assert model.body["words"] is interpretable and interpretable.embedding is layer
    assert (interpretable.num_embeddings, interpretable.embedding_dim) == (9, 4)
    assert torch.equal(model(interpretable.indices_to_embeddings(IDS)), out)
    assert torch.equal(model(interpretable.indices_to_embeddings(input=IDS)), out)
    remove_interpretable_embedding_layer(model, interpretable)
    assert model.body["words"] is layer and list(model.state_dict()) == keys
    assert torch.equal(model(IDS), out)


def test_the_first_argument_passes():
    layer = InterpretableEmbeddingBase(nn.Linear(2, 2), "text")
    first, second = torch.rand(2), torch.rand(2)
    assert layer(first, second) is layer(first, more=second) is layer(text=first, more=second) is first
    assert layer.num_embeddings is None and layer.embedding_dim is None
    with pytest.raises(TypeError) as error:
        layer()
    told(error.value, ("text", "no argument", "indices_to_embeddings"))


def test_a_copy_of_a_configured_model_runs():
    model = Deep()
    layer = configure_interpretable_embedding_layer(model, "body.words")
    x = layer.indices_to_embeddings(IDS)
    assert torch.equal(deepcopy(model)(x), model(x))


@pytest.mark.parametrize("name", ["embedding", "body.word", "body.words.more", "nobody.words", ""])
def test_no_such_layer(name):
    model = Deep()
    with pytest.raises(ValueError, match="no layer") as error:
        configure_interpretable_embedding_layer(model, name)
    told(error.value, (f"'{name}'", "'body.words'"))


@pytest.mark.parametrize("kind", [ValueError, AssertionError])  # captum's is an AssertionError
def test_configured_already(kind):
    model = Deep()
    configure_interpretable_embedding_layer(model, "body.words")
    with pytest.raises(kind) as error:
        configure_interpretable_embedding_layer(model, "body.words")
    told(error.value, ("'body.words'", "already", "remove_interpretable_embedding_layer"))


def test_removed_already_or_from_another_model():
    model, other = Deep(), Deep()
    layer = configure_interpretable_embedding_layer(model, "body.words")
    own = other.body["words"]
    with pytest.raises(ValueError, match="interpretable_emb") as error:
        remove_interpretable_embedding_layer(other, layer)
    told(error.value, ("'body.words'", "another model"))
    assert other.body["words"] is own
    remove_interpretable_embedding_layer(model, layer)
    with pytest.raises(ValueError, match="removed before"):
        remove_interpretable_embedding_layer(model, layer)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_references_of_tokens_with_captum(length):
    """But for a length of zero, where captum's are floats."""
    ours, theirs = (room.TokenReferenceBase(7).generate_reference(length, "cpu") for room in (inputs, captum.attr))
    assert torch.equal(ours, theirs.long()) and ours.dtype == torch.int64
    assert TokenReferenceBase().generate_reference(2, torch.device("meta")).device.type == "meta"


def test_a_reference_has_a_length():
    with pytest.raises(ValueError, match="sequence_length.*got -1"):
        TokenReferenceBase().generate_reference(-1, "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "configure_interpretable_embedding_layer",
        "remove_interpretable_embedding_layer",
        "InterpretableEmbeddingBase",
        "TokenReferenceBase",
    ],
)
def test_arguments_are_captums(name):
    ours, theirs = (signature(getattr(room, name)).parameters.values() for room in (inputs, captum.attr))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
