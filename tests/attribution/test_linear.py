"""Linear surrogates: closed forms are scikit-learn's numbers, gradient descent comes to them, forms are captum's."""

import captum._utils.models.linear_model as theirs
import numpy as np
import pytest
import sklearn.linear_model
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution import linear as ours
from robustx.attribution.linear import least_squares, ridge

SHAPES = {"tall": (40, 5), "square": (6, 6), "wide": (7, 12)}


def data(samples, features, fits=3, scores=2):
    """x [B, S, F] of zeros and ones, y [B, S, T] and weights [B, S]."""
    x = torch.bernoulli(torch.full((fits, samples, features), 0.5, dtype=torch.float64))
    return x, torch.randn(fits, samples, scores).double(), torch.rand(fits, samples).double() + 0.1


def loader(x, y, w=None, size=None, dtype=torch.float64):
    tensors = [t.to(dtype) for t in (x, y, w) if t is not None]
    return DataLoader(TensorDataset(*tensors), batch_size=size or len(x))


CLOSED = [
    ("LinearRegression", {}),
    ("LinearRegression", {"fit_intercept": False}),
    ("Ridge", {}),
    ("Ridge", {"alpha": 0.3}),
    ("Ridge", {"alpha": 2.0, "fit_intercept": False}),
]
OTHERS = [
    ("Ridge", {"positive": True}),
    ("LinearRegression", {"positive": True}),
    ("Lasso", {"alpha": 0.02}),
    ("Lasso", {"alpha": 0.05, "fit_intercept": False, "max_iter": 2000, "tol": 1e-6}),
    ("Lasso", {"alpha": 0.02, "positive": True}),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, options", CLOSED + OTHERS, ids=str)
def test_many_fits_are_scikit_learns(name, options, shape):
    """Also where there are fewer samples than features: the smallest coefficients of those that fit."""
    x, y, w = data(*SHAPES[shape])
    model = getattr(ours, f"SkLearn{name}")(**options)
    slopes, intercepts = model.solve(x, y, w)
    for i, j in np.ndindex(3, 2):
        one = getattr(sklearn.linear_model, name)(**options).fit(x[i].numpy(), y[i, :, j].numpy(), w[i].numpy())
        assert_close(slopes[i, j], torch.from_numpy(one.coef_), rtol=0, atol=1e-8)
        assert intercepts[i, j].item() == pytest.approx(one.intercept_, abs=1e-8)
    assert_close(model.representation(), slopes[-1, -1:], rtol=0, atol=0)
    assert_close(model(x[0]), x[0] @ slopes[-1, -1:].mT + intercepts[-1, -1])


@pytest.mark.parametrize("name, options", [c for c in CLOSED if c[1].get("fit_intercept", True)], ids=str)
def test_what_is_fitted_by_scikit_learn_is_what_is_solved(name, options):
    x, y, w = data(30, 4, 1, 1)
    solved, fitted = (getattr(ours, f"SkLearn{name}")(**options) for _ in range(2))
    solved.solve(x, y, w)
    fitted.fit(loader(x[0], y[0, :, 0], w[0], size=7))
    assert_close(fitted.representation(), solved.representation(), rtol=0, atol=1e-9)
    assert_close(fitted.bias(), solved.bias(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_no_other_coefficients_fit_better(shape, penalty):
    """The gradient vanishes, and what changes nothing is not there."""
    x, y, _ = data(*SHAPES[shape])
    b = least_squares(x, y, penalty)
    assert_close(x.mT @ (x @ b - y) + penalty * b, torch.zeros_like(b), rtol=0, atol=1e-9)
    null = torch.eye(x.shape[2]).double() - torch.linalg.pinv(x) @ x
    assert_close(null @ b, torch.zeros_like(b), rtol=0, atol=1e-9)


def test_weights_count_repetitions():
    x, y, w = data(20, 4)
    w = torch.randint(0, 4, w.shape).double()
    w[:, 0] = 2
    for i in range(len(x)):
        times = w[i].long()
        many = (t[i : i + 1].repeat_interleave(times, 1) for t in (x, y, torch.ones_like(w)))
        one = ridge(*many)
        for found, expected in zip(ridge(x[i : i + 1], y[i : i + 1], w[i : i + 1]), one, strict=True):
            assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["SkLearnLasso", "SkLearnRidge", "SkLearnLinearRegression"])
@pytest.mark.parametrize("weighted", [False, True])
def test_captums_scikit_learn_models(name, weighted):
    x, y, w = (t[0] for t in data(30, 4, 1, 1))
    found = [getattr(room, name)(**({"alpha": 0.1} if name == "SkLearnLasso" else {})) for room in (ours, theirs)]
    for model in found:
        model.fit(loader(x, y[:, 0], w if weighted else None, size=9, dtype=torch.float32))
    for ask in ("representation", "bias"):
        assert_close(*(getattr(m, ask)() for m in found), rtol=1e-5, atol=1e-6)
    assert_close(*(m(x.float()) for m in found), rtol=1e-5, atol=1e-6)


def test_any_model_of_scikit_learn():
    x, y, w = (t[0] for t in data(60, 4, 1, 1))
    model = ours.SkLearnLinearModel("linear_model.LogisticRegression", C=0.5)
    labels = (y[:, 0] > 0).long()
    model.fit(DataLoader(TensorDataset(x, labels, w), batch_size=60))
    one = sklearn.linear_model.LogisticRegression(C=0.5).fit(x.numpy(), labels.numpy(), w.numpy())
    assert_close(model.representation(), torch.from_numpy(one.coef_))
    assert model.classes().tolist() == [0, 1]
    assert_close(model(x).squeeze(1), torch.from_numpy(one.decision_function(x.numpy())))
    lars = ours.SkLearnLinearModel("linear_model.LassoLars", alpha=0.01)
    with pytest.warns(UserWarning, match="takes no sample weights"):
        lars.fit(loader(x, y[:, 0], w))
    lars.fit(loader(x, y[:, 0]), Xy=x.T.numpy() @ y.numpy())
    assert lars.classes() is None


def test_outputs_of_several_columns():
    x, y, w = (t[0] for t in data(30, 4, 1, 3))
    model = ours.SkLearnRidge()
    model.fit(loader(x, y, w))
    assert model.representation().shape == (3, 4) and model.bias().shape == (3,) and model(x).shape == (30, 3)


@pytest.mark.parametrize("name", ["SGDLasso", "SGDRidge", "SGDLinearRegression", "SGDLinearModel"])
@pytest.mark.parametrize("size", [30, 10])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("patience, within", [(10_000, 1e-5), (10, 0.05)], ids=["to the end", "until it stands still"])
def test_gradient_descent_is_captums(name, size, weighted, patience, within):
    """Step by step; captum's mean loss is over one batch more than it says, so it may stop a little later."""
    x, y, w = (t[0] for t in data(30, 4, 1, 1))
    y = y[:, 0] + x @ torch.tensor([3.0, 0, -2, 1]).double()
    found, told = [], []
    options = {"initial_lr": 0.1, "max_epoch": 60, "patience": patience, "alpha": 0.1}
    for room in (ours, theirs):
        model = getattr(room, name)()
        told.append(model.fit(loader(x, y, w if weighted else None, size, torch.float32), **options))
        found.append(model)
    assert_close(*(m.representation() for m in found), rtol=0, atol=within)
    assert_close(*(m.bias() for m in found), rtol=0, atol=within)
    assert told[0].keys() == told[1].keys()
    assert abs(told[0]["train_iter"] - told[1]["train_iter"]) <= (0 if patience > 10 else 12)


def test_gradient_descent_comes_to_the_closed_form():
    x, _, w = data(50, 4, 1, 1)
    y = (x @ torch.tensor([3.0, 0, -2, 1]).double() + 0.5)[..., None]
    model = ours.SGDLinearRegression()
    told = model.fit(loader(x[0], y[0], w[0]), initial_lr=0.5, max_epoch=2000, threshold=1e-12)
    slopes, intercepts = ridge(x, y, w)
    assert_close(model.representation(), slopes[0], rtol=0, atol=1e-4)
    assert_close(model.bias(), intercepts[0], rtol=0, atol=1e-4)
    assert told["train_loss"] < 1e-6


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("scheme", ["xavier", None])
def test_norms_and_starts(norm, scheme):
    x, y, w = (t[0] for t in data(30, 4, 1, 1))
    model = ours.SGDLinearModel(norm_type=norm, affine_norm=True, bias=False)
    model.fit(loader(x, y, w), init_scheme=scheme, reg_term=None, max_epoch=3)
    assert model.bias() is None and not model.training
    expected = torch.nn.LayerNorm(4) if norm == "layer_norm" else torch.nn.BatchNorm1d(4)
    assert type(model.norm) is type(expected) and model.norm.weight.dtype == torch.float64
    assert model(x).shape == (30, 1)


def test_models_of_ones_own():
    def mean(model, dataloader, construct_kwargs, factor=1.0):
        ((x, y),) = dataloader
        weight = factor * (x * y[:, None]).mean(0, keepdim=True)
        model.construct(x.shape[1], weight=weight, bias_value=torch.zeros(1), like=x, **construct_kwargs)

    x, y, _ = (t[0] for t in data(30, 4, 1, 1))
    model = ours.LinearModel(mean)
    model.fit(loader(x, y[:, 0]), factor=2.0)
    assert_close(model.representation(), 2 * (x * y).mean(0, keepdim=True))


def test_mistakes():
    x, y, _ = (t[0] for t in data(5, 2, 1, 1))
    with pytest.raises(RuntimeError, match="SGDLasso has not been fitted; call fit first"):
        ours.SGDLasso().representation()
    with pytest.raises(ValueError, match="norm_type must be one of None, 'batch_norm', 'layer_norm', got 'l2'"):
        ours.SGDLasso(norm_type="l2").fit(loader(x, y))
    with pytest.raises(ValueError, match="init_scheme must be 'zeros', 'xavier' or None, got 'ones'"):
        ours.SGDLasso().fit(loader(x, y), init_scheme="ones")
