"""What a model may do with what it computes: functions of [B, 4, 6], by name, each with one operation to tell."""

import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (4, 6)

with torch.random.fork_rng():
    torch.manual_seed(0)
    SQUARE, ROW, TABLE, CHANNELS = (torch.randn(*s).double() for s in ((6, 6), (6,), SHAPE, (4,)))
    WEIGHTS = torch.randn(3, 4, 3).double()
    LAYERS = {
        "layer norm": nn.LayerNorm(SHAPE),
        "group norm": nn.GroupNorm(2, 4),
        "instance norm": nn.InstanceNorm1d(4, affine=True),
        "instance norm, tracked": nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        "rms norm": nn.RMSNorm(6),
        "batch norm": nn.BatchNorm1d(4),
        "local response norm": nn.LocalResponseNorm(2),
        "softmax": nn.Softmax(-1),
        "embedded": nn.Sequential(nn.Linear(6, 3), nn.Dropout(), nn.Identity(), nn.Linear(3, 6)),
        "transformer": nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
        "transformer, norm first": nn.TransformerEncoderLayer(
            6, 2, 8, batch_first=True, norm_first=True, activation="gelu"
        ),
    }
    for layer in LAYERS.values():
        layer.double().eval()
        for p in [*layer.parameters(), *layer.buffers()]:
            if p.ndim == 1 and p.is_floating_point():  # norms start as the identity
                nn.init.uniform_(p, 0.5, 1.5)
    ATTENTION = nn.MultiheadAttention(6, 2, batch_first=True).double().eval()
    TIME_FIRST = nn.MultiheadAttention(6, 2).double().eval()
    DECODER = nn.TransformerDecoderLayer(6, 2, 8, batch_first=True).double().eval()
    ENCODER = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2).double().eval()
    LSTM = nn.LSTM(6, 3, 2, bidirectional=True, batch_first=True, proj_size=2).double().eval()
    GRU = nn.GRU(6, 3, batch_first=True, bias=False).double().eval()
    RNNS = [nn.RNN(6, 3, 2, nonlinearity=n).double().eval() for n in ("relu", "tanh")]
    CELLS = [c(6, 3).double() for c in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)]

HIDDEN = torch.zeros(len(TABLE), dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
AHEAD = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.double)


def size(x):
    """Something positive."""
    return x.abs() + 0.3


def other(x):
    """Something else of the same shape."""
    return torch.tanh(x @ SQUARE)


def within(x):
    return 0.9 * torch.tanh(x)


def named(room, names, before=lambda x: x):
    return {n: lambda x, f=getattr(room, n): f(before(x)) for n in names.split()}


def two(f):
    """Of two branches."""
    return lambda x: f(x, other(x))


def set_item(x):
    y = x.clone()
    y[:, 0] = x[:, 1] ** 2
    return y


def in_place(f):
    return lambda x: f(x.clone())


NUMBERS = {  # element by element
    **named(F, "relu relu6 elu selu celu leaky_relu silu mish gelu softplus softsign tanhshrink softshrink hardshrink"),
    **named(F, "hardtanh hardswish hardsigmoid logsigmoid rrelu"),
    **named(torch, "sigmoid tanh square abs sin cos atan asinh erf erfc exp exp2 expm1 sinh cosh sinc sign"),
    **named(torch, "round floor ceil trunc frac"),
    **named(torch, "log log1p log2 log10 sqrt rsqrt reciprocal tan", size),
    **named(torch, "asin acos atanh erfinv", within),
    **named(torch.special, "expit log1p logit", lambda x: (within(x) + 1) / 2),
    "acosh": lambda x: torch.acosh(1 + size(x)),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "prelu": lambda x: F.prelu(x, CHANNELS.abs()),
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp at tensors": lambda x: x.clamp(TABLE - 0.5, TABLE),
    "clip": lambda x: torch.clip(x, 0, 1),
    "x ** 2": lambda x: x**2,
    "x ** 1": lambda x: x**1,
    "x ** 0": lambda x: x**0,
    "x ** 0.5": lambda x: size(x) ** 0.5,
    "x ** tensor": lambda x: size(x) ** ROW,
    "2 ** x": lambda x: 2**x,
    "x % 0.7": lambda x: x % 0.7,
    "aten": lambda x: torch.ops.aten.relu(x),
    "aten, overload": lambda x: torch.ops.aten.relu.default(x),
}

PRODUCTS = {
    "x x": lambda x: x * x,
    "x const": lambda x: x * TABLE,
    "x y": two(lambda x, y: x * y),
    "x y, broadcast": two(lambda x, y: x * y.sum(-1, keepdim=True)),
    "x y z": two(lambda x, y: x * y * (x + y)),
    "x / y": two(lambda x, y: x / size(y)),
    "x / y, any sign": two(lambda x, y: x / y),
    "x / const": lambda x: x / TABLE,
    "const / x": lambda x: TABLE / size(x),
    "2 / x": lambda x: 2 / size(x),
    "signs": two(lambda x, y: (2 - x) * 3 - y / 2 + (-x)),
    "matmul": two(lambda x, y: x @ y.mT),
    "bmm": two(lambda x, y: torch.bmm(x, y.mT)),
    "einsum": two(lambda x, y: torch.einsum("bij,bkj->bik", x, y)),
    "einsum of three": two(lambda x, y: torch.einsum("bij,bkj,jl->bikl", x, y, SQUARE)),
    "inner": lambda x: torch.inner(x, SQUARE),
    "tensordot": lambda x: torch.tensordot(x, SQUARE, 1),
    "bilinear": two(lambda x, y: F.bilinear(x, y, SQUARE.expand(3, 6, 6))),
    "vecdot": two(lambda x, y: torch.linalg.vecdot(x, y)),
    "cross": two(lambda x, y: torch.linalg.cross(x[..., :3], y[..., :3])),
    "baddbmm": two(lambda x, y: torch.baddbmm(x[..., :4], x, y.mT, beta=0.5, alpha=2)),
    "addcmul": two(lambda x, y: torch.addcmul(x, x, y, value=2)),
    "addcdiv": two(lambda x, y: torch.addcdiv(x, x, size(y), value=2)),
    "lerp": two(lambda x, y: torch.lerp(x, y, 0.3)),
    "lerp by itself": two(lambda x, y: torch.lerp(x, y, y)),
    "glu": F.glu,
    "swiglu": two(lambda x, y: F.silu(x) * y),
    "convolution": lambda x: F.conv1d(x, WEIGHTS, padding=1),
    "transposed convolution": lambda x: F.conv_transpose1d(x, WEIGHTS.reshape(4, 3, 3)),
}

ROWS = {  # of several elements
    "softmax": lambda x: F.softmax(x, -1),
    "softmax, other axis": lambda x: x.softmax(1),
    "softmax of far numbers": lambda x: (100 * x).softmax(-1),
    "softmax of masked numbers": lambda x: x.masked_fill(TABLE > 0.5, float("-inf")).softmax(-1),
    "special softmax": lambda x: torch.special.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
    "softmin": lambda x: F.softmin(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "logsumexp of two axes": lambda x: x.logsumexp((1, 2)),
    "logaddexp": two(torch.logaddexp),
    **{name: lambda x, layer=layer: layer(x) for name, layer in LAYERS.items()},
    "F.layer_norm": lambda x: F.layer_norm(x, (6,), ROW, ROW),
    "F.group_norm": lambda x: F.group_norm(x, 2, CHANNELS),
    "F.instance_norm": F.instance_norm,
    "F.rms_norm": lambda x: F.rms_norm(x, (6,)),
    "normalize": F.normalize,
    "cosine similarity": two(lambda x, y: F.cosine_similarity(x, y, dim=-1)),
    "cosine similarity to a constant": lambda x: F.cosine_similarity(x, TABLE, dim=-1),
    "norm": lambda x: x.norm(dim=-1),
    "norm 1": lambda x: x.norm(1, -1),
    "norm 3": lambda x: x.norm(3, dim=(1, 2)),
    "norm inf": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
    "norm -inf": lambda x: torch.linalg.vector_norm(x, float("-inf"), -1),
    "linalg.norm": lambda x: torch.linalg.norm(x, dim=-1, keepdim=True),
    "matrix norm": lambda x: torch.linalg.matrix_norm(x),
    "hypot": two(torch.hypot),
    "pairwise distance": two(F.pairwise_distance),
    "cdist": two(torch.cdist),
    "var": lambda x: x.var(-1),
    "var, uncorrected": lambda x: x.var((1, 2), correction=0, keepdim=True),
    "std": lambda x: torch.std(x, -1, unbiased=False),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, -1), 1),
    "std_mean": lambda x: torch.cat(torch.std_mean(x, 1, correction=0), 1),
    "standardised": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
    "logits of attention": two(lambda x, y: F.scaled_dot_product_attention(x, y, x)),
    "causal attention": two(lambda x, y: F.scaled_dot_product_attention(x, y, x, is_causal=True)),
    "grouped attention": two(
        lambda x, y: F.scaled_dot_product_attention(
            torch.stack([x, y], 1), x[:, None], y[:, None], enable_gqa=True, scale=0.3
        )
    ),
    "attention": lambda x: ATTENTION(x, x, x)[0],
    "attention's weights": lambda x: ATTENTION(x, x, x)[1],
    "attention without weights": two(lambda x, y: ATTENTION(x, y, y, need_weights=False)[0]),
    "attention, time first": lambda x: TIME_FIRST(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
    "attention, some hidden": lambda x: ATTENTION(x, x, x, key_padding_mask=HIDDEN.expand(len(x), -1))[0],
    "decoder": two(DECODER),
    "encoder": ENCODER,
    "causal encoder": lambda x: ENCODER(x, AHEAD, is_causal=True),
}

CHOICES = {
    "max": lambda x: x.max(-1)[0],
    "max, by name": lambda x: x.max(1).values,
    "min": lambda x: x.min(dim=1, keepdim=True).values,
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(1),
    "max of two": two(torch.max),
    "maximum": two(torch.maximum),
    "minimum with a constant": lambda x: torch.minimum(x, TABLE),
    "fmax": two(torch.fmax),
    "max_pool1d": lambda x: F.max_pool1d(x, 3, 2, 1),
    "max_pool1d, dilated": lambda x: F.max_pool1d(x, 2, 1, dilation=2),
    "max_pool1d, with places": lambda x: F.max_pool1d(x, 2, return_indices=True)[0],
    "max_pool2d": nn.MaxPool2d(2),
    "max_pool2d, overlapping": lambda x: F.max_pool2d(x[:, None], 3, 1, 1),
    "max_pool2d, ceil": lambda x: F.max_pool2d(x[:, None], 2, 3, ceil_mode=True),
    "max_pool3d": lambda x: F.max_pool3d(x.reshape(len(x), 1, 2, 2, 6), 2, 1),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 4),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[:, None], (3, 2)),
    "lp_pool": lambda x: F.lp_pool1d(size(x), 2, 2),
    "where": two(lambda x, y: torch.where(TABLE > 0, x, y)),
    "where a number": lambda x: torch.where(TABLE > 0, x, 0.5),
    "masked_fill": lambda x: x.masked_fill(TABLE > 0, 0.5),
}

MOVES = {  # and what is linear
    "index": lambda x: x[:, [0, 2]],
    "mask": lambda x: x[:, TABLE > 0],
    "slices": lambda x: x[:, ::2, 1:],
    "each row's own place": lambda x: x[torch.arange(len(x)), 1],
    "gather": lambda x: x.gather(2, torch.zeros(len(x), 4, 1).long()),
    "cat": two(lambda x, y: torch.cat([x, y], 1)),
    "stack": two(lambda x, y: torch.stack([x, y], 1)),
    "chunk": lambda x: x.chunk(2, -1)[1],
    "unbind": lambda x: sum(row * row for row in x.unbind(1)),
    "roll": lambda x: x.roll(1, -1),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad by reflection": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "pad in a circle": lambda x: F.pad(x, (1, 1), mode="circular"),
    "unfold": lambda x: x.unfold(-1, 3, 1),
    "F.unfold": lambda x: F.unfold(x[:, None], 3),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.arange(4).flip(0)[:, None].expand_as(x), x),
    "index_put": lambda x: x.index_put((torch.arange(len(x)), torch.tensor(0)), torch.zeros((), dtype=x.dtype)),
    "cumsum": lambda x: x.cumsum(1),
    "flip": lambda x: x.flip(1),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "mT": lambda x: x.mT,
    "tokens as rows": lambda x: torch.tanh(x.reshape(-1, 6)).reshape(x.shape),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="linear"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[..., None], 2),
    "grid_sample": lambda x: F.grid_sample(
        x[:, None], (TABLE[None, :, :2, None].mT).expand(len(x), -1, -1, -1), align_corners=True
    ),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "nll": lambda x: F.nll_loss(x.log_softmax(1), torch.zeros(len(x), 6).long(), reduction="none"),
}

IN_PLACE = {
    "add_": in_place(lambda x: x.add_(other(x))),
    "sub_": in_place(lambda x: x.sub_(x.tanh())),
    "mul_": in_place(lambda x: x.mul_(x.tanh())),
    "mul_ of a constant": lambda x: TABLE.expand_as(x).clone().mul_(x),
    "div_": in_place(lambda x: x.div_(size(x.clone()))),
    "pow_": in_place(lambda x: x.pow_(2)),
    "exp_": in_place(lambda x: x.exp_()),
    "clamp_": in_place(lambda x: x.clamp_(0, 1)),
    "lerp_": in_place(lambda x: x.lerp_(other(x), 0.2)),
    "addcmul_": in_place(lambda x: x.addcmul_(other(x), other(x))),
    "relu_ of a view": in_place(lambda x: (x[:, :2].relu_(), x)[1]),
    "ReLU6": in_place(nn.ReLU6(inplace=True)),
    "SiLU": in_place(nn.SiLU(inplace=True)),
    "Hardswish": in_place(nn.Hardswish(inplace=True)),
    "ELU": in_place(nn.ELU(inplace=True)),
    "LeakyReLU": in_place(nn.LeakyReLU(0.1, inplace=True)),
    "div_ of a constant": lambda x: TABLE.expand_as(x).clone().div_(size(x)),
    "an item": set_item,
}

RECURRENT = {
    "LSTM": lambda x: LSTM(x)[0],
    "LSTM's state": lambda x: LSTM(x)[1][1].transpose(0, 1),
    "GRU": lambda x: GRU(x)[0],
    "RNN": lambda x: RNNS[0](x.transpose(0, 1))[0].transpose(0, 1),
    "RNN by tanh": lambda x: RNNS[1](x.transpose(0, 1))[0].transpose(0, 1),
    "LSTMCell": lambda x: CELLS[0](x[:, 0])[1],
    "GRUCell": lambda x: CELLS[1](x[:, 0]),
    "RNNCell": lambda x: CELLS[2](x[:, 0]),
}

OPERATIONS = {**NUMBERS, **PRODUCTS, **ROWS, **CHOICES, **MOVES, **IN_PLACE, **RECURRENT}


def points(count, seed):
    """[count, 4, 6]."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def score(operation, x):
    """All that an operation makes of a row, as one number [B]."""
    out = operation(x)
    out = out.reshape(len(out), -1)
    return (out * torch.cos(torch.arange(out.shape[1]).to(out))).sum(1)
