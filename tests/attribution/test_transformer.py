"""Rollout and relevance of attention: both papers written out, every way to write attention, closed forms."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from robustx.attribution.transformer import AttentionRollout, TransformerRelevance
from robustx.engine import Each, ModelError, NonFiniteError
from robustx.engine.rules import RuleError

METHODS = (AttentionRollout, TransformerRelevance)
every = pytest.mark.parametrize("method", METHODS, ids=lambda v: v.__name__)
HEADS, WIDTH, LAYERS = 2, 6, 3


# --- one transformer, in many words -----------------------------------------------------------------------


def split(layer, x):
    """Queries, keys and values, [B, heads, T, D] each."""
    parts = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, -1)
    return [p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts]


def joined(layer, y):
    """[B, heads, T, D] -> [B, T, WIDTH]"""
    return layer.self_attn.out_proj(y.transpose(1, 2).flatten(2))


def by_hand(layer, x, seen=None, normal=lambda scores: scores.softmax(-1), change=lambda w: w):
    q, k, v = split(layer, x)
    w = normal(q @ k.transpose(-2, -1) / sqrt(WIDTH / HEADS))
    if seen is not None:
        seen.append(w)
    return joined(layer, change(w) @ v)


def flat(layer, x):
    q, k, v = (t.flatten(0, 1) for t in split(layer, x))
    w = torch.softmax(torch.bmm(q, k.mT) / sqrt(WIDTH / HEADS), dim=2)
    return joined(layer, torch.bmm(w, v).unflatten(0, (len(x), HEADS)))


def einsum(layer, x):
    q, k, v = split(layer, x)
    w = F.softmax(torch.einsum("bhid,bhjd->bhij", q, k) / sqrt(WIDTH / HEADS), dim=-1, dtype=torch.float64)
    return joined(layer, torch.einsum("bhij,bhjd->bhid", w, v))


def sdpa(layer, x):
    return joined(layer, F.scaled_dot_product_attention(*split(layer, x)))


def function(layer, x):
    m, x = layer.self_attn, x.transpose(0, 1)
    biases = m.in_proj_weight, m.in_proj_bias, None, None, False, 0.0, m.out_proj.weight, m.out_proj.bias
    return F.multi_head_attention_forward(x, x, x, WIDTH, HEADS, *biases, training=False)[0].transpose(0, 1)


def crosswise(layer, x):
    """Keyword arguments; query and key are copies."""
    return layer.self_attn(query=x.clone(), key=x.clone(), value=x, need_weights=False)[0]


def doubled(w):
    return w.mul_(2.0).div_(2.0)  # in place


WAYS = {
    "x.softmax": by_hand,
    "F.softmax": lambda layer, x: by_hand(layer, x, normal=lambda s: F.softmax(s, -1)),
    "nn.Softmax": lambda layer, x: by_hand(layer, x, normal=nn.Softmax(dim=-1)),
    "softmax by keyword": lambda layer, x: by_hand(layer, x, normal=lambda s: torch.softmax(input=s, axis=3)),
    "aten": lambda layer, x: by_hand(layer, x, normal=lambda s: torch.ops.aten.softmax(s, -1)),
    "changed in place": lambda layer, x: by_hand(layer, x, change=doubled),
    "dropout in place": lambda layer, x: by_hand(layer, x, change=nn.Dropout(0.5, inplace=True).eval()),
    "heads in the batch": flat,
    "einsum": einsum,
    "F.scaled_dot_product_attention": sdpa,
    "F.multi_head_attention_forward": function,
    "nn.MultiheadAttention": lambda layer, x: layer.self_attn(x, x, x, need_weights=False)[0],
    "nn.MultiheadAttention with weights": lambda layer, x: layer.self_attn(x, x, x)[0],
    "nn.MultiheadAttention by keyword": crosswise,
    "nn.TransformerEncoderLayer": None,
    "nn.TransformerEncoder": None,
}


class Tiny(nn.Module):
    """[B, T, 6] -> [B, 4]; three layers of two heads; token 0 stands for the class."""

    def __init__(self, way="x.softmax", dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=True)
        self.encoder, self.head, self.way = nn.TransformerEncoder(layer, LAYERS), nn.Linear(WIDTH, 4), way
        with torch.no_grad():  # layers that differ, and heads that choose
            for p in self.encoder.parameters():
                p.copy_(torch.randn_like(p) * 0.7)
        self.double().eval().to(dtype)

    def forward(self, x, seen=None):
        if self.way == "nn.TransformerEncoder":
            return self.head(self.encoder(x)[:, 0])
        for layer in self.encoder.layers:
            if self.way == "nn.TransformerEncoderLayer":
                x = layer(x)
            else:
                x = layer.norm1(x + WAYS[self.way](layer, x, *([] if seen is None else [seen])))
                x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
        return self.head(x[:, 0])


def given(count=4, tokens=5, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(count, tokens, WIDTH, dtype=torch.float64).to(dtype)


def ask(method, model, x, target=2, **options):
    return method(model).attribute(x, **({} if method is AttentionRollout else {"target": target}), **options)


# --- the papers, written out ------------------------------------------------------------------------------


def rolled_out(weights, examples):
    """Abnar, Zuidema (2020): eq. 1, and the residual connections of section 3. [B, T, T]"""
    out = []
    for b in range(examples):
        through = None
        for w in weights:
            heads, count, _ = w[b].shape
            a = 0.5 * sum(w[b, h] for h in range(heads)) / heads + 0.5 * torch.eye(count).to(w)
            through = a if through is None else a @ through
        out.append(through)
    return torch.stack(out)


def relevant(weights, grads, examples):
    """Chefer, Gur, Wolf (2021): R begins as the identity (eq. 1); eq. 5 and 6 for each layer. [B, T, T]"""
    out = []
    for b in range(examples):
        r = torch.eye(weights[0].shape[-1]).to(weights[0])
        for w, g in zip(weights, grads, strict=True):
            a = torch.stack([(g[b, h] * w[b, h]).clamp(min=0) for h in range(w.shape[1])]).mean(0)
            r = r + a @ r
        out.append(r)
    return torch.stack(out)


def written_out(method, model, x, target=2, seen=None):
    """[B, T, T] of a model that hands over its weights."""
    weights = [] if seen is None else seen
    score = model(x, seen=weights)[:, target].sum()
    kept = [w.detach() for w in weights]
    if method is AttentionRollout:
        return rolled_out(kept, len(x))
    return relevant(kept, torch.autograd.grad(score, weights), len(x))


@every
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_it_is_the_paper(method, way):
    x, model = given(), Tiny(way)
    assert_close(model(x), Tiny()(x))
    expected = written_out(method, Tiny(), x)
    assert_close(ask(method, model, x), expected[:, 0, 1:])
    model.requires_grad_(False)
    assert_close(ask(method, model, x, class_token=-2, leave_out=0), expected[:, -2])
    assert_close(ask(method, model, x, class_token=None, leave_out=2), expected.mean(1)[:, 2:])


@every
def test_maps(method):
    """Positions in rows; a square is found."""
    x, model = given(tokens=14), Tiny()
    line = ask(method, model, x, leave_out=2)
    assert torch.equal(ask(method, model, x, leave_out=2, grid=(3, 4)), line.reshape(4, 1, 3, 4))
    square = ask(method, model, x[:, :10], grid=True)
    assert torch.equal(square, ask(method, model, x[:, :10]).reshape(4, 1, 3, 3))


@every
def test_torchvisions_vision_transformer(method):
    """A model that nobody changed, against the weights that its attention modules give when asked."""
    from torchvision.models import VisionTransformer

    class Shown(nn.Module):
        def __init__(self, attention, seen):
            super().__init__()
            self.self_attn, self.seen = attention, seen

        def forward(self, x, *_, **__):
            return by_hand(self, x, self.seen), None

    model, seen = VisionTransformer(12, 4, 2, HEADS, WIDTH, 8, num_classes=3).double().eval(), []
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 12, 12).double()
    found = ask(method, model, x, grid=True)
    for block in model.encoder.layers:
        block.self_attention = Shown(block.self_attention, seen)
    expected = written_out(method, lambda x, seen: model(x), x, seen=seen)
    assert_close(found, expected[:, 0, 1:].reshape(2, 1, 3, 3))


def test_scores_that_do_not_see_a_layer_add_nothing():
    """What a layer that is cut off attends to is no relevance."""
    x, model = given(), Tiny()
    for layer in model.encoder.layers[1:]:
        nn.init.zeros_(layer.self_attn.out_proj.weight)
    weights = []
    score = model(x, seen=weights)[:, 2].sum()
    grad = torch.autograd.grad(score, weights[0])[0]
    expected = relevant([weights[0].detach()], [grad], len(x))
    assert_close(TransformerRelevance(model).attribute(x, 2), expected[:, 0, 1:])


def test_a_layer_used_again_counts_again():
    x, model = given(), Tiny()
    model.encoder.layers = nn.ModuleList([model.encoder.layers[0]] * 3)
    for method in METHODS:
        assert_close(ask(method, model, x), written_out(method, model, x)[:, 0, 1:])


# --- closed forms and laws --------------------------------------------------------------------------------


def plain(x):
    """One layer, one head, all weights alike: every token becomes the mean of all."""
    zero = torch.zeros_like(x[:, None])
    return F.scaled_dot_product_attention(zero, zero, x[:, None])[:, 0]


@pytest.mark.parametrize("layers", [1, 4])
def test_rollout_of_even_attention(layers):
    """A power of (1/2 + mean/2): what stays with the token halves in each layer, the rest is even."""

    def model(x):
        for _ in range(layers):
            x = x + plain(x)
        return x[:, 0]

    left = 0.5**layers
    expected = torch.full((4, 5), (1 - left) / 5).double()
    expected[:, 0] += left
    for options in ({}, {"head_fusion": "max"}, {"head_fusion": "min"}, {"discard_ratio": 0.5}):
        assert_close(AttentionRollout(model, **options).attribute(given(), leave_out=0), expected)


def test_relevance_of_even_attention_is_each_tokens_own_positive_part():
    """The gradient of y[0, c] = sum over j of w[0, j] x[j, c] at w is x[:, c]: another for another class."""
    x = given()
    for target in range(WIDTH):
        found = TransformerRelevance(lambda x: plain(x)[:, 0]).attribute(x, target, leave_out=0)
        assert_close(found, x[:, :, target].relu() / 5 + torch.eye(5)[0])


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.99])
def test_rollout_adds_up_to_one(head_fusion, discard_ratio):
    method = AttentionRollout(Tiny(), head_fusion, discard_ratio)
    for token in (0, 3, None):
        found = method.attribute(given(), class_token=token, leave_out=0)
        assert (found >= 0).all()
        assert_close(found.sum(1), torch.ones(4).double())


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.99])
def test_fusions_and_discards_written_out(head_fusion, discard_ratio):
    x, model, weights = given(), Tiny(), []
    model(x, seen=weights)
    expected = []
    for b in range(len(x)):
        through = torch.eye(5).double()
        for w in weights:
            heads = w[b].detach()
            fused = {"mean": heads.mean(0), "max": heads.max(0)[0], "min": heads.min(0)[0]}[head_fusion]
            order = fused.flatten().argsort()
            fused.view(-1)[order[: int(discard_ratio * 25)]] = 0
            a = fused + torch.eye(5)
            through = torch.diag(1 / a.sum(1)) @ a @ through
        expected.append(through[0, 1:])
    assert_close(AttentionRollout(model, head_fusion, discard_ratio).attribute(x), torch.stack(expected))


@every
def test_what_is_masked_has_no_part(method):
    """Padding of some examples, and what comes later."""
    x, model = given(), Tiny()
    pad = torch.zeros(4, 5, dtype=torch.bool)
    pad[1, 3:] = pad[2, 1:] = True

    def padded(x, pad):
        return model.head(model.encoder(x, src_key_padding_mask=pad)[:, 0])

    def causal(x, token):
        for layer in model.encoder.layers:
            y = F.scaled_dot_product_attention(*split(layer, x), is_causal=True)
            x = layer.norm1(x + joined(layer, y))
        return model.head(x[:, token])

    found = ask(method, padded, x, additional_forward_args=pad, leave_out=0)
    assert (found[pad] == 0).all() and (found[~pad] > 0).sum() > 8
    assert_close(found[1:2, :3], ask(method, model, x[1:2, :3], leave_out=0))
    first = ask(method, causal, x, additional_forward_args=0, leave_out=0)
    assert (first[:, 1:] == 0).all() and (first[:, 0] > 0).all()
    last = ask(method, causal, x, additional_forward_args=-1, class_token=-1, leave_out=0)
    assert (last > 0).sum() > 8


@every
def test_other_softmaxes_do_not_count(method):
    """Over another axis, be it square, or of as many classes as there are examples."""
    x, model = given(4, WIDTH), Tiny()

    def busy(x):
        x = x + 0 * x.softmax(1) + 0 * torch.softmax(x, dim=-2)
        classes = model(x)
        return classes + 0 * classes.softmax(-1) + 0 * F.softmax(classes, dim=1)

    assert_close(ask(method, busy, x), ask(method, model, x))


def test_several_scores_at_once():
    """[B, S, T]: what each of them says on its own, from one pass."""
    x, model = given(tokens=10), Tiny()
    targets = [3, (0,), [0, 1, 2, 3]]
    alone = torch.stack([TransformerRelevance(model).attribute(x, t) for t in targets], 1)
    assert_close(TransformerRelevance(model).attribute(x, Each(targets)), alone)
    maps = TransformerRelevance(model).attribute(x, Each(targets), grid=True)
    assert_close(maps, alone.reshape(4, 3, 1, 3, 3))


# --- inputs, passes, dtypes, traces -----------------------------------------------------------------------


class Words(nn.Module):
    """Token ids [B, T] and a mask -> [B, 4]."""

    def __init__(self):
        super().__init__()
        self.tiny = Tiny("nn.TransformerEncoder")
        self.embed = nn.Embedding(9, WIDTH).double()

    def forward(self, ids, mask):
        return self.tiny.head(self.tiny.encoder(self.embed(ids), src_key_padding_mask=~mask)[:, 0])


@every
@pytest.mark.parametrize("frozen", [False, True])
def test_token_ids(method, frozen):
    """Nothing can be differentiated at them, and nothing needs to be."""
    model, ids = Words(), torch.randint(9, (4, 5))
    mask = torch.ones(4, 5, dtype=torch.bool)
    model.requires_grad_(not frozen)
    expected = written_out(method, Tiny(), model.embed(ids).detach())[:, 0, 1:]
    assert_close(ask(method, model, ids, additional_forward_args=mask), expected)
    assert_close(ask(method, model, (ids, mask)), expected)
    assert_close(ask(method, model, {"ids": ids, "mask": mask}), expected)
    assert_close(ask(method, model, {"ids": ids}, additional_forward_kwargs={"mask": mask}), expected)


@every
@pytest.mark.parametrize("way", ["heads in the batch", "nn.TransformerEncoder"])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 20])
def test_rows_do_not_depend_on_the_batch(method, way, count):
    """Also where there are as many examples as heads or tokens."""
    x, model = given(20), Tiny(way)
    targets = torch.arange(20) % 4
    alone = [ask(method, model, x[i : i + 1], targets[i]) for i in range(count)]
    expected = torch.cat([x.new_zeros(0, 4), *alone])
    for limit in (None, 3):
        found = ask(method, model, x[:count], targets[:count], internal_batch_size=limit)
        assert found.shape == (count, 4)
        assert_close(found, expected)


@every
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("grid", [False, True])
def test_one_pass(method, count, grid):
    ahead, back = [], []

    class Tally(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            ahead.append(len(out))
            return out.clone()

        @staticmethod
        def backward(ctx, g):
            back.append(len(g))
            return g

    model = Tiny()
    model.head.register_forward_hook(lambda _, __, out: Tally.apply(out))
    ask(method, model, given(count), grid=grid)
    assert sum(ahead) == count and sum(back) == (count if method is TransformerRelevance else 0)


@every
@pytest.mark.parametrize("way", ["x.softmax", "nn.TransformerEncoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(method, way, dtype):
    expected, found = (ask(method, Tiny(way, t), given(dtype=t)) for t in (torch.float64, dtype))
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps * expected.max().item())


@every
def test_inputs_of_any_strides_and_in_inference_mode(method):
    x = given(4, 10)[:, ::2]
    expected = ask(method, Tiny(), x.contiguous())
    assert_close(ask(method, Tiny(), x), expected)
    model = Tiny("nn.TransformerEncoder")
    with torch.inference_mode():
        assert_close(ask(method, model, x.clone()), expected)


@every
def test_leaves_no_trace(method):
    model, x = Tiny("nn.TransformerEncoder"), given()
    kept, before, state = x.clone(), model(x), torch.get_rng_state()
    method(model, within=model.encoder).attribute(x, **({} if method is AttentionRollout else {"target": 1}))
    model.head.forward = lambda v: torch.ones(2, 2) @ v  # the last step fails
    with pytest.raises(ModelError):
        method(model, within=model.encoder).attribute(x)
    del model.head.forward
    assert torch.equal(x, kept) and not x.requires_grad and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(model(x), before)


@every
def test_compiled_models(method):
    """They run as they are written, also if they ran before."""
    model, x = Tiny("F.scaled_dot_product_attention"), given()
    expected = ask(method, model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert_close(ask(method, compiled, x), expected)


# --- some attention of much -------------------------------------------------------------------------------


class Both(nn.Module):
    """An encoder and a decoder of another sequence -> [B, 6]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.both = nn.Transformer(WIDTH, HEADS, 2, 2, 8, batch_first=True).double().eval()

    def forward(self, x, y):
        return self.both(x, y)[:, 0]


@every
@pytest.mark.parametrize("other", [3, 5])
def test_within_some_modules(method, other):
    """The encoder's part, as if it were alone: its weights, and the whole model's gradient."""
    model, x, y = Both(), given(), given(tokens=other)
    encoder = model.both.encoder
    with pytest.raises(ValueError, match="one sequence to another.*within"):
        ask(method, model, (x, y))
    options = {} if method is AttentionRollout else {"target": 2}
    found = method(model, within=encoder).attribute((x, y), **options)
    assert_close(method(model, within=list(encoder.layers)).attribute((x, y), **options), found)
    if method is AttentionRollout:
        alone = AttentionRollout(encoder).attribute(x)
    else:
        weights, here = [], x
        for layer in encoder.layers:
            here = layer.norm1(here + by_hand(layer, here, weights))
            here = layer.norm2(here + layer.linear2(layer.linear1(here).relu()))
        score = model.both.decoder(y, encoder.norm(here))[:, 0, 2].sum()
        grads = torch.autograd.grad(score, weights)
        alone = relevant([w.detach() for w in weights], grads, 4)[:, 0, 1:]
    assert_close(found, alone)


def test_within_one_layer():
    """One layer's step alone, with the gradient that comes through the others."""
    x, model = given(), Tiny("nn.TransformerEncoderLayer")
    weights = []
    score = Tiny()(x, seen=weights)[:, 2].sum()
    (grad,) = torch.autograd.grad(score, weights[1])
    expected = relevant([weights[1].detach()], [grad], 4)[:, 0, 1:]
    assert_close(TransformerRelevance(model, within=model.encoder.layers[1]).attribute(x, 2), expected)


# --- mistakes ---------------------------------------------------------------------------------------------


def over(shape):
    """A model whose only attention has this shape, from B examples."""
    return lambda x: x.sum((1, 2))[:, None] + torch.zeros(shape(len(x))).double().softmax(-1).sum()


@every
def test_attention_that_is_not_there(method):
    x, model = given(), Tiny()
    with pytest.raises(ValueError, match="no self-attention was seen in the model.*softmax"):
        ask(method, lambda x: model.head(x.tanh()[:, 0]), x)
    with pytest.raises(ValueError, match="no self-attention was seen in within"):
        method(model, within=model.head).attribute(x, **({} if method is AttentionRollout else {"target": 1}))


@every
@pytest.mark.parametrize(
    "shape",
    [lambda n: (n, 2, 3, 5), lambda n: (2 * n, 2, 3, 3), lambda n: (n, 2, 2, 3, 3), lambda n: (n + 1, 3, 3)],
    ids=["not square", "windows", "five axes", "no examples"],
)
def test_attention_of_other_shapes(method, shape):
    with pytest.raises(ValueError, match=r"softmax of shape \(.* B=4.*within=model.encoder"):
        ask(method, over(shape), given(), 0)


@every
def test_layers_of_other_lengths(method):
    model = Tiny()

    def pooled(x):
        return model(x) + model(x[:, ::2])

    with pytest.raises(ValueError, match="share their tokens, but there are 3, 5.*within="):
        ask(method, pooled, given())


@every
@pytest.mark.parametrize(
    "options, told",
    [
        ({"class_token": 5}, "class_token must be one of 5 tokens, got 5"),
        ({"class_token": -6}, "class_token must be one of 5 tokens, got -6"),
        ({"class_token": "cls"}, "class_token must be a token's place.*'cls'"),
        ({"class_token": True}, "class_token.*True"),
        ({"leave_out": -1}, "leave_out must be a whole number of at least 0, got -1"),
        ({"leave_out": 5}, "5 tokens, the first 5 left out, do not fill"),
        ({"leave_out": 0, "grid": True}, "5 tokens, the first 0 left out, do not fill a grid of 2 x 2"),
        ({"grid": (2, 3)}, "5 tokens, the first 1 left out, do not fill a grid of 2 x 3"),
        ({"grid": (-2, -2)}, r"grid must be \(rows, columns\).*-2"),
        ({"grid": 4}, "grid must be.*4"),
        ({"grid": None}, "grid must be.*False for none, got None"),
    ],
    ids=str,
)
def test_tokens_that_are_not_there(method, options, told):
    with pytest.raises(ValueError, match=told):
        ask(method, Tiny(), given(), **options)


@every
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_mistakes(method):
    x, model = given(), Tiny()
    with pytest.raises(TypeError, match="forward_func must be callable"):
        method("model")
    with pytest.raises(TypeError, match="within must be a module.*str"):
        method(model, within=["encoder"])
    with pytest.raises(NonFiniteError):
        ask(method, model, x / 0)
    with pytest.raises(ValueError, match="train mode"):
        ask(method, Tiny().train(), x)
    with pytest.raises(RuleError, match="TorchScript"):
        ask(method, torch.jit.trace(Tiny(), x), x)


def test_mistakes_of_rollout():
    with pytest.raises(ValueError, match="head_fusion must be one of mean, max, min, got 'median'"):
        AttentionRollout(Tiny(), "median")
    for ratio in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"discard_ratio.*{ratio}"):
            AttentionRollout(Tiny(), discard_ratio=ratio)


def test_relevance_needs_a_gradient():
    model = Tiny()
    with pytest.raises(ModelError, match="no gradient"):
        TransformerRelevance(lambda x: model(x).detach()).attribute(given(), 1)
    with pytest.raises(ValueError, match="target"):
        TransformerRelevance(model).attribute(given())
