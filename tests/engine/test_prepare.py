"""A prepared model answers as the user's does, is never the user's, and is believed only where it agrees."""

import copy

import pytest
import torch
import torch.nn.functional as F
from attack_cases import BUDGET, CASES, Counted
from contest import peak
from models import InPlaceCNN
from torch import nn
from torch.testing import assert_close
from torchvision.models import mobilenet_v3_small, resnet18

from robustx import zoo
from robustx.attacks import FGSM, PGD, Found
from robustx.engine import Everything, Layer, Output, Probe
from robustx.engine.prepare import AS_IS, Prepared, faithful, prepare, rounding


def settled(model, dtype=torch.float64):
    """In eval mode, with statistics and weights of norms that change something."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.uniform_(m.running_var, 0.3, 1.5)
            if m.affine:
                nn.init.normal_(m.weight, 1, 0.2)
                nn.init.normal_(m.bias, 0, 0.2)
    return model.to(dtype).eval()


def chain(*layers, dtype=torch.float64):
    return settled(nn.Sequential(*layers, nn.Flatten()), dtype)


def small(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()
    )
    return settled(model.append(nn.Linear(16, 3)), dtype)


class Taken(nn.Module):
    """One convolution and one norm; ``how`` says what else becomes of what the convolution gives."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head, self.how, self.kept = nn.Linear(64, 3), how, None
        settled(self)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "kept":
            self.kept = y
        if self.how == "changed in place":
            y += 1
        z = self.norm(y)
        if self.how == "added":
            z = z + y
        if self.how == "seen through a view":
            z = z + y.flatten(1)[:, :1, None, None]
        if self.how == "another norm":
            z = z + self.other(y)
        if self.how == "the same norm again":
            z = self.norm(z)
        if self.how == "the weight again":
            z = z + self.conv(x + 1)
        if self.how == "the pair again":
            z = z + self.norm(self.conv(x + 1))
        if self.how == "another norm next time":
            z = z + self.other(self.conv(x + 1))
        return self.head(z.flatten(1))


TAKEN = {
    "by the norm alone": 1,
    "kept": 0,
    "changed in place": 0,
    "added": 0,
    "seen through a view": 0,
    "another norm": 0,
    "the same norm again": 1,
    "the weight again": 0,
    "the pair again": 1,
    "another norm next time": 0,
}


class Functional(nn.Module):
    """No modules, only functions, some of them called by keyword."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(3, 64))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.double()

    def forward(self, x):
        y = F.conv2d(input=x, weight=self.w, padding="same").tanh()
        y = F.conv2d(y[:, :2], self.w, stride=(2, 2), padding=1)
        return F.linear(F.batch_norm(input=y, running_mean=self.mean, running_var=self.var).flatten(1), self.v[:, :36])


class Tokens(nn.Module):
    """A linear layer gives [N, L, C], of which the norm takes the L for channels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 6), nn.BatchNorm1d(4), nn.Linear(24, 3)
        settled(self)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).flatten(1))


LAYERS = {  # a model, its inputs' shape, and how many norms are folded
    "1d, no bias": (lambda: chain(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)), (2, 7), 1),
    "2d, strided, dilated, in groups": (
        lambda: chain(nn.Conv2d(4, 8, 3, 2, 1, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        (4, 9, 9),
        1,
    ),
    "2d, padded in a circle": (
        lambda: chain(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        (2, 5, 5),
        1,
    ),
    "3d, norm without weights": (lambda: chain(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4, affine=False)), (2, 3, 4, 4), 1),
    "transposed": (lambda: chain(nn.ConvTranspose2d(2, 4, 3, 2), nn.BatchNorm2d(4)), (2, 4, 4), 1),
    "transposed, in groups": (lambda: chain(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)), (4, 4, 4), 0),
    "linear": (lambda: chain(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.ReLU()), (3, 4), 1),
    "linear, tokens": (Tokens, (4, 5), 0),
    "norm first": (lambda: chain(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3)), (2, 5, 5), 0),
    "weight made anew": (
        lambda: chain(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), nn.BatchNorm2d(4)),
        (2, 5, 5),
        0,
    ),
    "functional": (Functional, (2, 5, 5), 0),
    "in place": (InPlaceCNN, (2, 4, 4), 0),
    "resnet18": (lambda: settled(resnet18(num_classes=4)), (3, 32, 32), 20),
    "mobilenet": (lambda: settled(mobilenet_v3_small(num_classes=4)), (3, 32, 32), 34),
} | {f"taken: {how}": (lambda how=how: Taken(how), (2, 6, 6), folds) for how, folds in TAKEN.items()}


def asked(model, x, precision="exact", of=None):
    """A probe, and what is prepared of it, which has seen enough rows to be worth it."""
    f = Probe(model, (x,), of or Output(lambda out: out.tanh().sum(1)))
    quick = prepare(f, precision)
    if isinstance(quick.model, Prepared):
        quick.model.rows = AS_IS
    return f, quick


def folded(quick):
    return sum(layer.folds and layer.made is not None for layer in quick.model.layers.values())


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_answers(name):
    make, shape, folds = LAYERS[name]
    x = torch.rand(3, *shape, dtype=torch.float64)
    f, quick = asked(make(), x)
    assert f.meter.forward.tolist() == [1] * 3 and quick.meter is f.meter  # looking on costs nothing
    z = torch.rand_like(f.point)
    for one, other in zip(f.grad(z), quick.grad(z), strict=True):
        assert one.dtype == other.dtype == torch.float64
        assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert_close(quick.value(z), f.value(z), rtol=1e-9, atol=1e-9)
    assert (folded(quick) if isinstance(quick.model, Prepared) else 0) == folds


def test_in_single_precision_to_its_rounding():
    model, x = settled(resnet18(num_classes=4), torch.float32), torch.rand(4, 3, 32, 32)
    f, quick = asked(model, x)
    exact = Probe(copy.deepcopy(model).double(), (x.double(),), Output(0)).score
    mine, own = quick.value(f.point), f.score
    assert folded(quick) == 20
    assert mine.dtype == torch.float32
    assert (mine - exact).norm() <= 4 * (own - exact).norm() + 1e-6 * exact.norm()  # it rounds about as the model does


def test_functions_around_a_model():
    model = small()
    f, quick = asked(lambda x: model((x - 0.5) / 0.2), torch.rand(4, 2, 6, 6, dtype=torch.float64))
    assert_close(quick.value(f.point), f.score)
    assert folded(quick) == 2


def test_what_would_lose_its_digits_is_not_folded():
    """Where a channel never changes, a norm takes a difference that folded weights cannot tell."""
    model = small()
    model[0].weight.data[0].zero_()
    model[0].weight.data[0, 0, 0, 0] = 1e-7
    model[0].bias.data[0] = 1.0
    model[1].running_mean[0], model[1].running_var[0], model[1].eps = 1.0, 1e-14, 0.0
    model.float()
    x = torch.rand(4, 2, 6, 6)
    f, quick = asked(model, x)
    assert_close(quick.value(f.point), f.score)
    assert folded(quick) == 1  # the other


def test_half_precision_is_left_alone():
    for dtype in (torch.bfloat16, torch.float16):
        f, quick = asked(small(dtype), torch.rand(4, 2, 6, 6).to(dtype))
        assert quick is f


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_see_the_model_itself(register):
    model = small()
    getattr(model[0], register)(lambda *_: None)
    f, quick = asked(model, torch.rand(4, 2, 6, 6, dtype=torch.float64))
    assert quick is f


def test_what_cannot_be_seen_is_used_as_it_is():
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64)
    compiled = torch.compile(small(), backend="eager")
    in_place = small()
    in_place.compile(backend="eager")
    with pytest.warns(FutureWarning, match="torch.jit.trace"):
        scripted = torch.jit.trace(small(), x)
    for model in (compiled, in_place, scripted, nn.Sequential(scripted)):
        f, quick = asked(model, x)
        assert quick is f
    model = small()
    f = Probe(model, (x,), Output(0))
    assert prepare(f, None) is f
    at_layer = f.to(at=Layer(model[3]))
    assert prepare(at_layer, "exact") is at_layer
    assert prepare(f.to(inputs=(x[:0],)), "exact").examples == 0
    digits = Probe(zoo.model("digits"), (torch.rand(2, 1, 8, 8),), Output(0))
    assert prepare(digits, "exact") is digits  # it has no norms


def test_short_searches_make_no_weights():
    f = Probe(small(), (torch.rand(AS_IS, 2, 6, 6, dtype=torch.float64),), Output(0))
    quick = prepare(f, "exact")
    quick.value(f.point)
    assert folded(quick) == 0
    quick.value(f.point)
    assert folded(quick) == 2


def test_the_models_own_code_runs():
    """Nothing of it is copied, so what it counts is counted, and what it branches on is looked at each time."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.rows, self.asked = small(), 0, []

        def forward(self, x):
            self.rows += len(x)
            self.asked.append(float(x.sum()))
            return self.net(x) if x.sum() > 0 else self.net[:7](x)[:, :3]

    model = Counting()
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64)
    f, quick = asked(model, x)
    assert_close(quick.value(-f.point), f.value(-f.point))
    assert_close(quick.value(f.point), f.score)
    assert model.rows == 16 == f.meter.forward.sum() and len(model.asked) == 4


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_model_is_left_as_it_was(precision):
    model = small(torch.float32)
    for p in list(model.parameters())[::2]:
        p.requires_grad_(False)
    before = {k: (id(v), v._version, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    flags = [p.requires_grad for p in model.parameters()]
    held = {k: dict(vars(m)) for k, m in model.named_modules()}
    f, quick = asked(model, torch.rand(4, 2, 6, 6), precision)
    quick.grad(f.point)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert {k: dict(vars(m)) for k, m in model.named_modules()} == held
    for k, v in model.state_dict(keep_vars=True).items():
        assert (id(v), v._version) == before[k][:2]
        assert torch.equal(v, before[k][2])


def test_changed_weights_are_seen_by_the_next_run():
    model, x, y = small(), torch.rand(8, 2, 6, 6, dtype=torch.float64), torch.arange(8) % 3
    attack = PGD(model, bounds=(0, 1), eps=0.05, steps=8, early_stop=False)
    first = attack.run(x, y)
    with torch.no_grad():
        model[1].running_mean.add_(0.5)
        model[3].weight.mul_(-1)
    second = attack.run(x, y)
    assert not torch.equal(first.adversarial, second.adversarial)
    plain = PGD(model, bounds=(0, 1), eps=0.05, steps=8, early_stop=False, precision=None).run(x, y)
    assert_close(second.adversarial, plain.adversarial)
    assert_close(second.margin, plain.margin)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_it_holds_one_more_set_of_weights(precision):
    model, x = settled(resnet18(), torch.float32), torch.rand(1, 3, 32, 32)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    f, quick = asked(model, x, precision)
    assert peak(lambda: quick.grad(f.point)) < peak(lambda: f.grad(f.point)) + 1.2 * weights
    made = [t for layer in quick.model.layers.values() for t in layer.made or () if t is not None]
    assert sum(t.numel() * t.element_size() for t in made) / 2**20 < 1.01 * weights


# --- fast -------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Notes the dtypes that its activations have."""

    def __init__(self, net):
        super().__init__()
        self.net, self.dtypes = net, set()

    def forward(self, x):
        x = self.net[:3](x)
        self.dtypes.add(x.dtype)
        return self.net[3:](x)


def test_fast_is_bfloat16_inside_and_float32_outside():
    model = Told(small(torch.float32))
    f, quick = asked(model, torch.rand(8, 2, 6, 6), "fast", Output(0))
    assert model.dtypes == {torch.float32}
    value, g = quick.grad(f.point)
    assert model.dtypes == {torch.float32, torch.bfloat16}
    assert value.dtype == g.dtype == torch.float32
    assert faithful(quick, f.score, f.everyone)
    assert f.meter.forward.tolist() == [3] * 8
    assert F.cosine_similarity(g, f.grad(f.point)[1]).min() > 0.98
    assert rounding(quick, torch.float32) > rounding(f, torch.float32)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(lambda: settled(resnet18(num_classes=4), torch.float32), (3, 32, 32)), (lambda: zoo.model("digits"), (1, 8, 8))],
)
def test_fast_agrees_with_what_it_stands_for(model, shape):
    f, quick = asked(model(), torch.rand(6, *shape), "fast", Everything())
    apart = quick.value(f.point) - f.score
    assert 1e-5 * f.score.norm() < apart.norm() < 0.05 * f.score.norm()  # rougher, and not much


def test_fast_with_attention():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3)).eval()
    f, quick = asked(model, torch.rand(6, 5, 8), "fast")
    assert faithful(quick, f.score, f.everyone)


def test_fast_leaves_double_precision_alone():
    model = Told(small())
    f, quick = asked(model, torch.rand(4, 2, 6, 6, dtype=torch.float64), "fast")
    assert quick.value(f.point).dtype == torch.float64
    assert model.dtypes == {torch.float64}
    assert folded(quick) == 2


def test_views_of_channels_that_stand_last():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    f, quick = asked(Viewing(), torch.rand(4, 2, 6, 6), "fast")
    assert faithful(quick, f.score, f.everyone)


def test_fast_is_refused_where_it_is_too_rough():
    """Differences of large numbers are lost in bfloat16."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 3, 1), nn.Linear(3, 3)
            with torch.no_grad():
                self.two.bias.sub_(self(torch.full((1, 2, 3, 3), 0.5))[0])

        def forward(self, x):
            return self.two(self.one(x + 1e4).mean((2, 3)))

    model, x = Large(), torch.rand(8, 2, 3, 3)
    y = model(x).argmax(1)
    f, quick = asked(model, x, "fast", Output(y.tolist()))
    assert quick is not f
    assert not faithful(quick, f.score, f.everyone)
    fast, plain = (PGD(model, eps=0.1, steps=3, precision=precision).run(x, y) for precision in ("fast", None))
    assert_close(fast.adversarial, plain.adversarial)
    assert fast.success.tolist() == plain.success.tolist()


# --- in attacks -------------------------------------------------------------------------------------------


def examples(model, dtype):
    x = torch.rand(40, 2, 6, 6, dtype=dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[-3:] = (y[-3:] + 1) % 3
    return x, y


@pytest.mark.parametrize("precision", ["exact", "fast", None])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_an_attack_finds_holds_for_the_model_itself(precision, norm):
    net = small(torch.float32)
    x, y = examples(net, torch.float32)
    eps = {"Linf": 0.1, "L2": 0.5}[norm]
    model = Counted(net, len(x))
    attack = PGD(model, bounds=(0, 1), norm=norm, eps=eps, steps=8, precision=precision)
    result = attack.run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist()
    assert result.backwards.tolist() == model.backwards.tolist()
    with torch.no_grad():
        out = net(result.adversarial)
    assert result.success.tolist() == (out.argmax(1) != y).tolist()
    assert 3 < result.success.sum() < len(x)
    assert (result.distance <= eps + 1e-6).all()
    plain = PGD(net, bounds=(0, 1), norm=norm, eps=eps, steps=8, precision=None).run(x, y)
    assert (result.success != plain.success).sum() <= (2 if precision == "fast" else 0)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("case", {case.told: case for case in reversed(CASES)}.values(), ids=str)
def test_every_attack_tells_what_holds_for_the_model_itself(case, precision):
    net = small(torch.float32)
    x, y = (t[-12:] for t in examples(net, torch.float32))
    model, eps = Counted(net, len(x)), 3 * BUDGET[case.norm]
    result = case(model, eps=eps, precision=precision).run(x, y, additional_forward_args=torch.arange(len(x)))
    assert result.forwards.tolist() == model.forwards.tolist()
    assert result.backwards.tolist() == model.backwards.tolist()
    with torch.no_grad():
        assert result.success.tolist() == (net(result.adversarial).argmax(1) != y).tolist()
    assert (result.distance <= eps * (1 + 1e-6)).all()
    assert result.success[-3:].all()  # these were wrong before


def test_what_the_model_does_not_confirm_is_searched_again():
    class Boasting(PGD):
        """Claims the input itself where it asks a prepared model."""

        def search(self, f, region, rows, noise):
            if isinstance(f.model, Prepared):
                asked.append(len(rows))
                return Found(region.centre, torch.ones_like(region.radius), torch.zeros_like(region.radius))
            return super().search(f, region, rows, noise)

    asked = []
    model = small()
    x, y = examples(model, torch.float64)
    told, plain = (Boasting(model, bounds=(0, 1), eps=0.3, steps=8, precision=p).run(x, y) for p in ("exact", None))
    assert asked == [37]
    assert plain.success.sum() > 3
    assert_close(told.adversarial, plain.adversarial, rtol=0, atol=0)
    assert told.success.tolist() == plain.success.tolist()
    assert told.forwards.tolist() == plain.forwards.tolist()


def test_a_precision_that_is_none():
    with pytest.raises(ValueError, match=r"precision must be 'exact', 'fast' or None, got 'quick'"):
        FGSM(small(), precision="quick")
