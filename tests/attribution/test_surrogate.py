"""LIME and KernelSHAP: exact where they can be, captum's numbers from the same seed, batches as one by one."""

from itertools import combinations
from math import exp, factorial

import captum._utils.models.linear_model as captums
import captum.attr
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from robustx import attribution
from robustx.attribution import (
    KernelShap,
    Lime,
    LimeBase,
    LinearModel,
    SGDLinearRegression,
    SkLearnLasso,
    SkLearnLinearRegression,
    SkLearnRidge,
    get_exp_kernel_similarity_function,
    kernel_shap,
)
from robustx.attribution.coalitions import Coalitions
from robustx.attribution.surrogate import all_sets, distinct
from robustx.engine import Each, Layer, Output, Probe, TargetError
from robustx.perturb import Windows, by, columns, here

pytestmark = [  # captum's
    pytest.mark.filterwarnings("ignore:You are providing multiple inputs for Lime"),
    pytest.mark.filterwarnings("ignore:Minimum element in feature mask is not 0"),
]
METHODS = pytest.mark.parametrize("method", [Lime, KernelShap])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def inputs(count=4, d=5):
    torch.manual_seed(1)
    return torch.randn(count, d, dtype=torch.float64)


def shapley(value, n):
    """The definition, set by set; ``value`` of a tuple of players."""
    found = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        found.append(
            sum(
                factorial(s) * factorial(n - s - 1) / factorial(n) * (value((*c, i)) - value(c))
                for s in range(n)
                for c in combinations(others, s)
            )
        )
    return torch.stack(found)


def captum_and_ours(name, net, args, ours=(), theirs=(), **options):
    found, states = [], []
    for room, made in ((attribution, ours), (captum.attr, theirs)):
        torch.manual_seed(7)
        found.append(getattr(room, name)(net, *made).attribute(*args, **options))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)  # also the next call draws the same
    return found


# --- captum's numbers -------------------------------------------------------------------------------------

v = torch.arange(10)
FORMS = {
    "plain": {},
    "mask": {"feature_mask": torch.tensor([[0, 0, 1, 2, 2, 3, 3, 4, 1, 5]])},
    "masks": {"feature_mask": torch.stack([v // 2, v.flip(0) // 2, v % 5, (3 * v) % 5])},
    "from one": {"feature_mask": torch.tensor([[1, 1, 1, 2, 2, 3, 4, 4, 5, 6]])},
    "number": {"baselines": 0.3},
    "row": {"baselines": torch.linspace(-1, 1, 10)[None]},
    "coefficients": {"return_input_shape": False},
    "many": {"n_samples": 90},
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["Lime", "KernelShap"])
def test_the_same_seed_gives_captums_numbers(name, form, count):
    """Its batches too, which it explains one by one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    x, options = torch.randn(count, 10), dict(FORMS[form])
    if form == "masks":
        options["feature_mask"] = options["feature_mask"][:count]
    made = [(room.SkLearnLasso(alpha=0.001),) if name == "Lime" else () for room in (attribution, captums)]
    for target in (1, torch.arange(count) % 3):
        ours, theirs = captum_and_ours(name, net, (x,), *made, target=target, **options)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and theirs.abs().sum() > 0
        assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["SkLearnLasso", "SkLearnRidge", "SkLearnLinearRegression"])
@pytest.mark.parametrize("kernel", [("cosine", 0.3), ("euclidean", 2.0)])
def test_surrogates_and_kernels_of_captum(kind, kernel, count):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    options = {"alpha": 0.01} if kind != "SkLearnLinearRegression" else {}
    made = [
        (getattr(room, kind)(**options), similar(*kernel))
        for room, similar in (
            (attribution, get_exp_kernel_similarity_function),
            (captums, captum.attr._core.lime.get_exp_kernel_similarity_function),
        )
    ]
    ours, theirs = captum_and_ours("Lime", net, (torch.randn(count, 10),), *made, target=0, n_samples=30)
    assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Lime", "KernelShap"])
def test_several_inputs_and_further_arguments(name):
    def net(a, b, shift, factor):
        return (a.sum(1) * b.flatten(1)[:, 1] + shift) * factor * a[:, 0].exp()

    given = torch.randn(3, 4), torch.randn(3, 2, 3)
    options = {
        "additional_forward_args": (torch.randn(3), 2.0),
        "feature_mask": (torch.tensor([[0, 1, 2, 3]]), torch.tensor([[[0, 1, 4], [5, 5, 2]]])),
        "baselines": (0.5, torch.full((1, 2, 3), -0.5)),
    }
    ours, theirs = captum_and_ours(name, net, (given,), target=None, **options)
    assert type(ours) is type(theirs) is tuple
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Lime", "KernelShap"])
@pytest.mark.parametrize("number", [float, torch.as_tensor, lambda v: v.reshape(1)], ids=["float", "scalar", "one"])
def test_one_number_for_the_whole_batch(name, number):
    """Examples move together, and get one map."""
    x, weight = torch.randn(3, 6), torch.randn(6)

    def loss(x):
        return number((x @ weight).tanh().sum())

    ours, theirs = captum_and_ours(name, loss, (x,), feature_mask=torch.tensor([[0, 1, 1, 2, 3, 4]]))
    assert ours.shape == theirs.shape == (1, 6)
    assert_close(ours.float(), theirs, rtol=0, atol=1e-5)


def test_token_ids():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3))
    ids = torch.randint(1, 9, (1, 6))
    for name in ("Lime", "KernelShap"):
        ours, theirs = captum_and_ours(name, net, (ids,), target=1)
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, rtol=0, atol=1e-5)


# --- what is true of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_all_sets_give_exact_shapley_values(n):
    torch.manual_seed(n)
    net, x, b = nn.Sequential(nn.Linear(n, 9), nn.Tanh(), nn.Linear(9, 2)).double(), inputs(3, n), inputs(3, n).flip(0)
    found = KernelShap(net).attribute(x, b, target=1, n_samples=2**n)
    assert_close(KernelShap(net).attribute(x, b, target=1, n_samples=5000), found, rtol=0, atol=0)
    for i in range(3):

        def value(there, i=i):
            z = b[i].clone()
            z[list(there)] = x[i, list(there)]
            return net(z[None])[0, 1].detach()

        assert_close(found[i], shapley(value, n), rtol=0, atol=1e-9)


def test_all_sets_are_all_of_them():
    sets, kernel = all_sets(4)
    assert sets.shape == (1, 14, 4) and len({tuple(s) for s in sets[0].tolist()}) == 14
    for s, w in zip(sets[0].sum(1).tolist(), kernel, strict=True):
        assert w.item() == pytest.approx(3 / ({1: 4, 2: 6, 3: 4}[s] * s * (4 - s)))


@pytest.mark.parametrize("samples", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", [None, 0])
def test_shares_add_up_however_few_samples_there_are(model, samples, seed):
    x, b = inputs(4, 5), inputs(4, 5).flip(0)
    model = nn.Sequential(nn.Linear(10, 5), nn.Tanh(), model).double()
    x, b = torch.cat([x, b], 1), torch.cat([b, -x], 1)
    found = KernelShap(model).attribute(x, b, target=2, n_samples=samples, seed=seed)
    assert_close(found.sum(1), (model(x) - model(b))[:, 2].detach(), rtol=0, atol=1e-10)
    if samples == 2:
        assert_close(found, found.mean(1, keepdim=True).expand_as(found))  # nothing is known of the players


@METHODS
@pytest.mark.parametrize("seed", [None, 3])
def test_a_linear_model_is_found(method, seed):
    """From as many samples as there are features, and some more."""
    model, x, b = nn.Linear(12, 3).double(), inputs(4, 12), inputs(4, 12).flip(0)
    made = (SkLearnLinearRegression(),) if method is Lime else ()
    found = method(model, *made).attribute(x, b, target=torch.tensor([0, 2, 1, 1]), n_samples=40, seed=seed)
    assert_close(found, (x - b) * model.weight[[0, 2, 1, 1]].detach(), rtol=0, atol=1e-9)


def test_lime_follows_the_model_near_the_example_if_the_kernel_is_narrow():
    """A product's slope where both are there, and not where both are away."""

    def product(x):
        return 4 * x[:, 0] * x[:, 1] + x[:, 2]

    x = torch.ones(1, 3, dtype=torch.float64)
    for width, slope in ((0.3, 4.0), (1e3, 2.0)):
        kernel = get_exp_kernel_similarity_function("euclidean", width)
        found = Lime(product, SkLearnLinearRegression(), kernel).attribute(x, n_samples=4000, seed=0)
        assert_close(found, torch.tensor([[slope, slope, 1.0]]).double(), rtol=0, atol=0.15)


@pytest.mark.parametrize("method, made", [(KernelShap, ()), (Lime, (SkLearnRidge(),))], ids=["kernel shap", "lime"])
def test_keyed_draws_are_captums_in_distribution(method, made):
    """Means over 20 seeds each differ by chance alone: fewer than one in a thousand standard scores exceeds 3.3."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x, options = 2 * inputs(1, 8), {"target": 0, "n_samples": 30}
    theirs = getattr(captum.attr, method.__name__)(net, *[captums.SkLearnRidge()] * len(made))
    drawn, keyed = [], []
    for seed in range(20):
        torch.manual_seed(seed)
        drawn.append(theirs.attribute(x, **options).double())
        keyed.append(method(net, *made).attribute(x, **options, seed=seed))
    drawn, keyed = torch.cat(drawn), torch.cat(keyed)
    error = ((drawn.var(0) + keyed.var(0)) / 20).sqrt()
    assert ((drawn.mean(0) - keyed.mean(0)).abs() < 4 * error).all()
    assert 0.3 < (keyed.std(0) / drawn.std(0)).mean() < 3


@METHODS
def test_a_seed_knows_no_batch_and_no_global_generator(method, model):
    x, made = inputs(4, 5), (SkLearnRidge(),) if method is Lime else ()
    options = {"target": 1, "n_samples": 20, "seed": 5}
    before = torch.get_rng_state()
    found = method(model, *made).attribute(x, **options)
    assert torch.equal(torch.get_rng_state(), before)
    for i in range(4):
        assert_close(method(model, *made).attribute(x[i : i + 1], **options), found[i : i + 1], rtol=0, atol=1e-12)
    assert (method(model, *made).attribute(x, **(options | {"seed": 6})) - found).abs().max() > 1e-6


@METHODS
def test_masks_of_any_ids(method, model):
    x, made = inputs(3, 5), (SkLearnRidge(),) if method is Lime else ()
    options = {"target": 1, "n_samples": 20, "seed": 5}
    one, other = (
        method(model, *made).attribute(x, feature_mask=torch.tensor([ids]), **options)
        for ids in ([0, 0, 1, 2, 1], [-7, -7, 30, 400, 30])
    )
    assert_close(one, other, rtol=0, atol=0)
    assert_close(one[:, 0], one[:, 1])
    bare = method(model, *made).attribute(
        x, feature_mask=torch.tensor([[9, 9, 4, 2, 4]]), return_input_shape=False, **options
    )
    assert bare.shape == (3, 3)  # by ascending id
    named = method(model, *made).attribute(x, feature_mask=columns([(0, 1), (2, 4), (3,)], 5), **options)
    assert_close(named, one, rtol=0, atol=0)


@METHODS
def test_several_scores_from_one_pass(method, model):
    x, rows = inputs(3, 5), []
    options = {"n_samples": 12, "seed": 1}
    made = (SkLearnLasso(alpha=0.001),) if method is Lime else ()
    expected = torch.stack([method(model, *made).attribute(x, target=k, **options) for k in range(3)], 1)
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    assert_close(method(model, *made).attribute(x, target=Each(), **options), expected, rtol=0, atol=1e-10)
    assert sum(rows) == 3 * (12 + (method is Lime))  # Lime also asks about the examples as they are
    bare = method(model, *made).attribute(x, target=Each([2, 0]), return_input_shape=False, **options)
    assert_close(bare, expected[:, [2, 0]], rtol=0, atol=1e-10)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_that_of_the_output(method, dtype):
    found = method(lambda x: x.sum(1).to(dtype)).attribute(inputs(2, 5), seed=0)
    assert found.dtype == dtype
    assert method(lambda x: x.sum(1).round().long()).attribute(inputs(2, 5), seed=0).dtype == torch.float32


@METHODS
def test_all_examples_go_together_and_a_cap_caps(method, model):
    x, rows = inputs(4, 5), []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    options = {"target": 1, "n_samples": 30, "seed": 0}
    whole = method(model).attribute(x, **options)
    assert len(rows) < 10
    rows.clear()
    assert_close(method(model).attribute(x, perturbations_per_eval=2, **options), whole, rtol=0, atol=1e-10)
    assert max(rows) == 8


def test_kernel_shap_takes_any_place(model):
    """Pairs of hidden units, set to zero: a linear game."""
    x = inputs(3, 5)
    f = Probe(model, (x,), Output(2), Layer(model[1]))
    players = Coalitions(f, columns([(0, 1), (2, 3), (4, 5), (6, 7)], 8), here(0.0))
    hidden = model[:2](x).detach() * model[2].weight[2].detach()
    assert_close(kernel_shap(players, *all_sets(4)), hidden.reshape(3, 4, 2).sum(2))


def test_examples_are_solved_in_parts_where_there_are_many(model, monkeypatch):
    x, options = inputs(5, 5), {"target": 1, "n_samples": 20, "seed": 0}
    whole = [m.attribute(x, **options) for m in (KernelShap(model), Lime(model, SkLearnRidge()))]
    monkeypatch.setattr("robustx.attribution.surrogate.BUDGET", 2 * 8 * 20 * 5)
    parts = [m.attribute(x, **options) for m in (KernelShap(model), Lime(model, SkLearnRidge()))]
    assert_close(parts, whole, rtol=0, atol=1e-12)


@METHODS
def test_progress_is_told_on_standard_error(method, model, capsys):
    method(model).attribute(inputs(2, 5), target=0, seed=0, show_progress=True)
    name = "Lime" if method is Lime else "Kernel Shap"
    assert f"{name} attribution: 100%" in capsys.readouterr().err


# --- functions of the user's own --------------------------------------------------------------------------


class Means:
    """Scores of the samples that have a feature, less those of the others; weighted."""

    def fit(self, train_data):
        ((x, y, w),) = train_data
        gone = w[:, None] * (1 - x)
        self.found = ((w * y) @ x) / (w @ x) - (w * y) @ (1 - x) / gone.sum(0)

    def representation(self):
        return self.found


def near(original, perturbed, sample, **told):
    assert sample.shape == (1, told["num_interp_features"]) and original.shape == perturbed.shape == (1, 6)
    shown = torch.where(sample[0][told["feature_mask"]].bool(), original, told["baselines"])
    assert_close(perturbed, shown)
    return cosine_similarity(original, perturbed).clamp(0.1)


def pairs(original, **told):
    """Yields samples forever, weaker and weaker."""
    while True:
        yield torch.bernoulli(torch.full((1, told["num_interp_features"]), 0.7)) * 0.5


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "perturb", [None, pairs, lambda x, **told: torch.randint(0, 2, (1, told["num_interp_features"]))]
)
def test_surrogates_similarities_and_samples_of_ones_own(count, perturb):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(count, 6)
    options = {"target": 1, "feature_mask": torch.tensor([[0, 0, 1, 2, 2, 3]]), "baselines": torch.full((1, 6), 0.2)}
    found = []
    for room in (attribution, captum.attr):
        torch.manual_seed(3)
        found.append(room.Lime(net, Means(), near, perturb).attribute(x, **options))
    assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stops", [9, 20, 0])
def test_generators_that_stop_early(model, stops):
    x = inputs(2, 5)

    def samples(original, **told):
        for _ in range(stops if original[0, 0] == x[0, 0] else 20):
            yield torch.bernoulli(torch.full((1, 5), 0.5))

    surrogates = SkLearnRidge(), SkLearnLasso(alpha=0.001), Means()
    for surrogate in surrogates:
        lime = Lime(model, surrogate, perturb_func=samples)
        if not stops:
            with pytest.raises(ValueError, match="perturb_func made no sample"):
                lime.attribute(x, target=1, n_samples=20)
            continue
        torch.manual_seed(4)
        if stops < 20:
            with pytest.warns(UserWarning, match="perturb_func stopped after 9 of 20 samples"):
                both = lime.attribute(x, target=1, n_samples=20)
        else:
            both = lime.attribute(x, target=1, n_samples=20)
        torch.manual_seed(4)
        first = lime.attribute(x[:1], target=1, n_samples=stops)
        assert_close(both[:1], first, rtol=0, atol=1e-6)


def test_models_that_are_trained_by_descent():
    """Whatever fits a loader will do; and it is left as the last example's."""
    model, x = nn.Linear(4, 2), torch.randn(2, 4)
    surrogate = SGDLinearRegression()
    found = Lime(model, Steep(surrogate)).attribute(x, target=1, n_samples=60, seed=0)
    assert_close(found, (x * model.weight[1]).detach(), rtol=0, atol=0.02)
    assert_close(surrogate.representation(), found[1:])


class Steep:
    def __init__(self, model: LinearModel):
        self.model = model

    def fit(self, train_data):
        self.model.fit(train_data, initial_lr=0.5, max_epoch=500, threshold=1e-9)

    def representation(self):
        return self.model.representation()


def test_the_exponential_kernel():
    x, z = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    both = (x, x.flip(0)), (z, z + 1)
    a, b = (torch.cat([t.flatten() for t in v]) for v in both)
    cosine = 1 - a @ b / a.norm() / b.norm()
    kernel = get_exp_kernel_similarity_function(kernel_width=0.4)
    assert kernel(*both, None, anything=1) == pytest.approx((-cosine.square() / 0.32).exp().item())
    kernel = get_exp_kernel_similarity_function("euclidean", 3.0)
    assert kernel(*both, None) == pytest.approx((-(a - b).square().sum() / 18).exp().item())
    assert isinstance(kernel(x, z), float)
    gone = torch.zeros_like(x)  # at no angle to anything
    assert get_exp_kernel_similarity_function()(x, gone) == pytest.approx(exp(-0.5))
    with pytest.raises(ValueError, match="distance_mode must be 'cosine' or 'euclidean', got 'manhattan'"):
        get_exp_kernel_similarity_function("manhattan")


@pytest.mark.parametrize("mode", ["cosine", "euclidean"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("baselines", [0.0, 0.4, by(lambda x: x.flip(-1))], ids=["zero", "number", "function"])
def test_the_kernel_is_the_same_sample_by_sample(mode, whole, baselines):
    """Distances of sets are sums over features; windows overlap, so there they are taken of what is perturbed."""
    kernel, x = get_exp_kernel_similarity_function(mode, 0.5), inputs(3, 6)
    net = (lambda x: x.sin().sum()) if whole else (lambda x: x.sin().sum(1))
    for mask in (None, torch.tensor([[0, 0, 1, 2, 2, 3]]), Windows.over((x,), (2,))):
        found = []
        for similarity in (kernel, lambda *given, **told: kernel(*given)):
            torch.manual_seed(0)
            lime = Lime(net, SkLearnRidge(), similarity)
            found.append(lime.attribute(x, baselines, feature_mask=mask))
        assert_close(*found, rtol=0, atol=1e-9)


# --- LimeBase ---------------------------------------------------------------------------------------------


def closeness(original, perturbed, sample, **told):
    return torch.exp(-(original - perturbed).norm().square() / 2)


def noisy(original, **told):
    return original + told.get("scale", 1.0) * torch.randn_like(original)


def difference(perturbed, original, **told):
    return perturbed - original


@pytest.mark.parametrize("each", [1, 7, None])
def test_samples_anywhere_around_an_example(each):
    """The slope of a model that bends, as captum finds it."""

    def net(x, shift):
        return torch.stack([(x + shift[:, None]).sin().sum(1), x.sum(1)], 1)

    x, found = torch.randn(1, 4), []
    for room, model in ((attribution, SkLearnLinearRegression()), (captum.attr, captums.SkLearnLinearRegression())):
        torch.manual_seed(2)
        method = room.LimeBase(net, model, closeness, noisy, False, None, difference)
        size = {} if each is None and room is captum.attr else {"perturbations_per_eval": each}
        found.append(
            method.attribute(
                x, target=0, additional_forward_args=(torch.tensor([0.5]),), n_samples=200, scale=0.1, **size
            )
        )
    assert_close(*found, rtol=0, atol=1e-4)
    assert_close(found[0], (x + 0.5).cos(), rtol=0, atol=0.05)


def test_samples_of_different_lengths():
    """Words that are dropped: token ids, samples of any length, those of one length together."""
    torch.manual_seed(0)
    embedding, head, calls = nn.Embedding(9, 4), nn.Linear(4, 2), []

    def net(ids):
        calls.append(tuple(ids.shape))
        return head(embedding(ids).mean(1))

    def drop(sample, ids, **told):
        return ids[:, sample[0].bool()]

    def some(ids, **told):
        z = torch.bernoulli(torch.full((1, ids.shape[1]), 0.6))
        z[0, 0] = 1
        return z

    def kept(original, perturbed, sample, **told):
        return sample.mean()

    ids, found = torch.randint(0, 9, (1, 6)), []
    for room, model in ((attribution, SkLearnLasso(alpha=1e-3)), (captum.attr, captums.SkLearnLasso(alpha=1e-3))):
        calls.clear()
        torch.manual_seed(2)
        found.append(room.LimeBase(net, model, kept, some, True, drop, None).attribute(ids, target=1))
        if room is attribution:
            assert len(calls) <= 12 and {shape[1] for shape in calls} > {3, 4, 5}
    assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [float, torch.as_tensor], ids=["float", "scalar"])
@pytest.mark.parametrize("count", [1, 3])
def test_samples_of_a_whole_batch(number, count):
    def loss(a, b):
        assert len(a) == len(b) == count
        return number((a * b).sum().tanh())

    def moved(inputs, **told):
        return tuple(t + 0.1 * torch.randn_like(t) for t in inputs)

    def sums(perturbed, inputs, **told):
        return torch.stack([(p - t).sum() for p, t in zip(perturbed, inputs, strict=True)])[None]

    def alike(*_, **told):
        return 1.0

    given, found = (torch.randn(count, 2), torch.randn(count, 2)), []
    for room, model in ((attribution, SkLearnRidge(alpha=1e-3)), (captum.attr, captums.SkLearnRidge(alpha=1e-3))):
        torch.manual_seed(2)
        found.append(room.LimeBase(loss, model, alike, moved, False, None, sums).attribute(given, n_samples=30))
    assert_close(*(f.float() for f in found), rtol=0, atol=1e-4)


def test_samples_are_drawn_in_parts_where_they_are_large(monkeypatch, capsys):
    x, found = torch.randn(1, 4), []
    for budget in (1 << 26, 5 * 16):
        monkeypatch.setattr("robustx.attribution.surrogate.BUDGET", budget)
        torch.manual_seed(2)
        method = LimeBase(lambda x: x.sin().sum(1), SkLearnRidge(), closeness, noisy, False, None, difference)
        found.append(method.attribute(x, show_progress=True))
    assert_close(*found, rtol=0, atol=1e-6)
    assert "Lime Base attribution: 100%" in capsys.readouterr().err


def test_generators_of_samples():
    def three(x, **told):
        yield from (x + i for i in range(1, 4))

    lime = LimeBase(lambda x: x.sum(1), SkLearnRidge(alpha=1e-9), closeness, three, False, None, difference)
    with pytest.warns(UserWarning, match="perturb_func stopped after 3 of 50 samples"):
        found = lime.attribute(torch.zeros(1, 2).double())
    assert_close(found, torch.ones(1, 2).double(), rtol=0, atol=1e-6)
    assert not lime.multiplies_by_inputs and not lime.has_convergence_delta()


# --- mistakes ---------------------------------------------------------------------------------------------


def test_mistakes(model):
    x = inputs(3, 5)
    with pytest.raises(ValueError, match="seed is for the usual samples, but perturb_func draws its own"):
        Lime(model, perturb_func=pairs).attribute(x, target=1, seed=0)
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 2, got 1"):
        KernelShap(model).attribute(x, target=1, n_samples=1)
    with pytest.raises(ValueError, match="all samples of an example have weight 0: widen the kernel"):
        Lime(model, None, lambda *_, **told: 0.0).attribute(x, target=1)
    with pytest.raises(TargetError, match="choose one number per row with target"):
        Lime(model).attribute(x)

    class Short(Means):
        def representation(self):
            return super().representation()[:3]

    with pytest.raises(ValueError, match="represents 3 numbers, but there are 5 features"):
        Lime(model, Short()).attribute(x, target=1)
    assert Lime(model, Short()).attribute(x, target=1, return_input_shape=False).shape == (3, 3)


def test_mistakes_of_lime_base(model):
    x = inputs(3, 5)
    for space, name in ((True, "from_interp_rep_transform"), (False, "to_interp_rep_transform")):
        with pytest.raises(AssertionError, match=f"{name} must be given with perturb_interpretable_space={space}"):
            LimeBase(model, SkLearnRidge(), closeness, noisy, space, None, None)
    lime = LimeBase(model, SkLearnRidge(), closeness, noisy, False, None, difference)
    with pytest.raises(TargetError, match="one example, or one number for all of them, got 3 numbers"):
        lime.attribute(x, target=1)
    with pytest.raises(TargetError, match="choose one number per row"):
        lime.attribute(x[:1])
    twice = LimeBase(model, SkLearnRidge(), closeness, lambda x: x.repeat(2, 1), False, None, difference)
    with pytest.raises(ValueError, match=r"as many examples, got shapes \[\(2, 5\)\] for \[\(1, 5\)\]"):
        twice.attribute(x[:1], target=1)


@pytest.mark.parametrize("b, s, n", [(1, 30, 3), (3, 25, 4), (2, 1, 2), (2, 0, 3), (0, 4, 3), (2, 5, 0)])
def test_distinct_sets(b, s, n):
    torch.manual_seed(0)
    sets = torch.rand(b, s, n) < 0.5
    few, place = distinct(sets)
    assert torch.equal(few.take_along_dim(place[..., None], 1), sets)
    each = [len({tuple(row) for row in of.tolist()}) for of in sets]
    assert few.shape[1] == max(each, default=s)
    assert [len({tuple(row) for row in of.tolist()}) for of in few] == each


def test_no_set_is_asked_twice():
    """Of 9 features there are 18 sets of one and of all but one, and two in five draws are such."""
    asked = []
    KernelShap(lambda x: asked.append(len(x)) or x.prod(1)).attribute(torch.rand(2, 9) + 1, n_samples=300)
    assert sum(asked) < 2 * 250
