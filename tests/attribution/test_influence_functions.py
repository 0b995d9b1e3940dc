"""Influence functions: captum's numbers in the same run, leaving out and training again, mislabelled digits."""

import copy
from collections import namedtuple

import captum.influence
import numpy as np
import pytest
import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction as CaptumArnoldi
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution.influence.functions import ArnoldiInfluenceFunction, NaiveInfluenceFunction
from robustx.engine import ArgumentError
from robustx.zoo.embedded import breast_cancer, digits

pytestmark = pytest.mark.filterwarnings(
    "ignore:WARNING. Using this implementation stores",
    "ignore:Since `(test_)?loss_fn` has no",
    "ignore:Input Tensor . did not already require gradients",
    "ignore:To copy construct from a tensor",
)

CrossEntropy, Squares = nn.CrossEntropyLoss, nn.MSELoss
Case = namedtuple("Case", "model data tests")


def load(model: nn.Module, state: dict[str, Tensor]) -> float:
    model.load_state_dict(state)
    return 1.0


@pytest.fixture
def case() -> Case:
    """A small network at a minimum of its loss, whose Hessian has no zeros but those of the shift of all logits."""
    body = (nn.Conv2d(1, 2, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    model = nn.Sequential(*body).double().eval()
    x, y = torch.randn(12, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (12,))
    return Case(model, TensorDataset(x, y), (torch.randn(4, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (4,))))


def gradients(model: nn.Module, batch, loss) -> Tensor:
    rows = []
    for x, y in zip(*batch, strict=True):
        grads = torch.autograd.grad(loss(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize(("samplewise", "layers"), [(False, None), (True, None), (True, ["3"])])
@pytest.mark.parametrize("projection", [5, 50])
def test_the_whole_hessian_is_captums(case, samplewise, layers, projection):
    state = case.model.state_dict()
    loss = CrossEntropy(reduction="mean" if samplewise else "none")
    args = (case.model, case.data, state, load, layers, loss, 5)
    options = {"projection_dim": projection, "sample_wise_grads_per_batch": samplewise, "hessian_inverse_tol": 1e-3}
    ours, theirs = NaiveInfluenceFunction(*args, **options), captum.influence.NaiveInfluenceFunction(*args, **options)
    assert_close(ours.influence(case.tests), theirs.influence(case.tests), rtol=1e-6, atol=1e-9)
    assert_close(ours.self_influence(), theirs.self_influence(), rtol=1e-6, atol=1e-9)
    assert_close(ours.self_influence(case.tests), theirs.self_influence(case.tests), rtol=1e-6, atol=1e-9)
    for proponents in (True, False):
        mine, other = (t.influence(case.tests, 3, proponents) for t in (ours, theirs))
        assert torch.equal(mine.indices, other.indices)
        assert_close(mine.influence_scores, other.influence_scores, rtol=1e-6, atol=1e-9)
    ones, twos = (t.compute_intermediate_quantities(case.tests) for t in (ours, theirs))
    assert_close(ones @ ones.T, twos @ twos.T, rtol=1e-6, atol=1e-9)
    whole = ours.compute_intermediate_quantities(case.tests, aggregate=True)
    assert_close(whole, ones.sum(0, keepdim=True))


def test_a_krylov_space_as_large_as_the_parameters_is_the_whole_hessian_here_and_in_captum(case):
    state = case.model.state_dict()
    args = (case.model, case.data, state, load, None, CrossEntropy(reduction="none"), 12)
    options = {"projection_dim": 10, "hessian_reg": 1e-3, "hessian_inverse_tol": 1e-4}
    truth = NaiveInfluenceFunction(*args, **options).influence(case.tests)
    krylov = options | {"arnoldi_dim": 60, "arnoldi_tol": 1e-9}
    for seed in (0, 1):
        assert_close(ArnoldiInfluenceFunction(*args, **krylov, seed=seed).influence(case.tests), truth)
    assert_close(CaptumArnoldi(*args, **krylov).influence(case.tests), truth, rtol=1e-4, atol=1e-6)
    few = ArnoldiInfluenceFunction(*args, **options | {"arnoldi_dim": 35, "projection_dim": 3})
    three = NaiveInfluenceFunction(*args, **options | {"projection_dim": 3})
    assert_close(few.influence(case.tests), three.influence(case.tests), rtol=0, atol=1e-4 * float(truth.abs().max()))
    assert few.R.shape == three.R.shape


def test_another_loss_and_other_data_for_the_hessian(case):
    small = TensorDataset(*(t[:7] for t in case.data.tensors))
    other = nn.MultiMarginLoss()
    naive = NaiveInfluenceFunction(
        case.model,
        case.data,
        loss_fn=CrossEntropy(),
        hessian_dataset=small,
        test_loss_fn=other,
        projection_dim=None,
        hessian_reg=20.0,
    )
    h = hessian_of(case.model, small.tensors) + 20 * torch.eye(47).double()  # positive definite so
    inverse = torch.linalg.inv(h)
    tests, train = gradients(case.model, case.tests, other), gradients(case.model, case.data.tensors, CrossEntropy())
    truth = tests @ inverse @ train.T
    assert_close(naive.influence(case.tests), truth)
    assert_close(naive.influence(DataLoader(TensorDataset(*case.tests), batch_size=3)), truth)
    top = naive.influence(case.tests, k=2)
    assert_close(top.influence_scores, truth.topk(2).values)
    vectors = naive.compute_intermediate_quantities(case.tests, test=True)
    assert_close(vectors @ vectors.T, tests @ inverse @ tests.T)


def hessian_of(model: nn.Module, batch) -> Tensor:
    named = dict(model.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        weights = {n: t.view(p.shape) for (n, p), t in zip(named.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (batch[0],)), batch[1], reduction="sum")

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in named.values()]))


def test_the_model_is_as_it_was_and_the_checkpoint_is_what_counts(case):
    model, state = case.model, copy.deepcopy(case.model.state_dict())
    other = {n: t + 0.1 for n, t in state.items()}
    args = (case.data, other, load, None, CrossEntropy(), 12)
    before, random = [(p, p.requires_grad) for p in model.parameters()], torch.get_rng_state()
    found = [kind(model, *args).influence(case.tests) for kind in (NaiveInfluenceFunction, ArnoldiInfluenceFunction)]
    for p, (q, wanted) in zip(model.parameters(), before, strict=True):
        assert p is q
        assert p.grad is None
        assert p.requires_grad is wanted
    assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    model.load_state_dict(other)
    assert_close(NaiveInfluenceFunction(model, *args).influence(case.tests), found[0])
    assert_close(NaiveInfluenceFunction(model, case.data, None, *args[2:]).influence(case.tests), found[0])


def test_what_cannot_be_asked_is_refused(case, capsys):
    flat = nn.Linear(2, 1).double()
    data = TensorDataset(torch.zeros(3, 2).double(), torch.zeros(3, 1).double())
    for kind in (NaiveInfluenceFunction, ArnoldiInfluenceFunction):
        with pytest.raises(ArgumentError, match="no eigenvalue above 10 .*take a higher hessian_reg"):
            kind(flat, data, loss_fn=Squares(), hessian_inverse_tol=10)
        with pytest.raises(ArgumentError, match="projection_dim must be a whole number"):
            kind(flat, data, loss_fn=Squares(), projection_dim=0)
        with pytest.raises(ArgumentError, match="hessian_reg must be at least 0"):
            kind(flat, data, loss_fn=Squares(), hessian_reg=-1.0)
        function = kind(flat, data, loss_fn=Squares(), show_progress=True)
        assert kind.__name__ in capsys.readouterr().err
        function.influence(data[:1], show_progress=True)
        assert "influence: 100%" in capsys.readouterr().err
        with pytest.raises(ArgumentError, match="self_influence"):
            function.influence(None)


def regression(x: Tensor, y: Tensor, penalty: float) -> nn.Linear:
    """The exact ridge regression, without a bias."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(x.T @ x + penalty / 2 * torch.eye(x.shape[1]), x.T @ y).T)
    return model


def test_linear_regression_by_the_hat_matrix():
    """Leaving i out moves the weights by ``A^-1 x_i e_i / (1 - h_ii)``; to first order, without ``h_ii``."""
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    tests = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    penalty = 0.5
    model = regression(x, y, penalty)
    naive = NaiveInfluenceFunction(
        model, TensorDataset(x, y), loss_fn=Squares(), projection_dim=None, hessian_reg=penalty, batch_size=20
    )
    found = naive.influence(tests)
    inverse = torch.linalg.inv(x.T @ x + penalty / 2 * torch.eye(3))
    error, leverage = (y - model(x)).detach()[:, 0], (x @ inverse * x).sum(1)
    slope = -2 * (tests[1] - model(tests[0])).detach() * tests[0]  # of the test losses
    assert_close(found, slope @ -(inverse @ x.T) * error)
    kept = torch.arange(20) != 7
    again = regression(x[kept], y[kept], penalty)
    moved = (again.weight - model.weight).detach()[0]
    assert_close(found[:, 7] / (1 - leverage[7]), slope @ moved)


Fit = namedtuple("Fit", "model data tests losses changes penalty")


@pytest.fixture(scope="module")
def fit() -> Fit:
    """Logistic regression on cell samples, and what leaving each of 60 examples out does to each test loss."""
    train, test = breast_cancer("train"), breast_cancer("test")
    x, y, penalty = train.x[:60].double(), train.y[:60], 1.0
    tests = test.x[:40].double(), test.y[:40]

    def solve(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> np.ndarray:
        signs = 2.0 * y - 1

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            m = signs * (x @ w)
            return np.logaddexp(0, -m).sum() + penalty / 2 * w @ w, x.T @ (-signs / (1 + np.exp(m))) + penalty * w

        return minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}).x

    def tested(w: np.ndarray) -> Tensor:
        return F.binary_cross_entropy_with_logits(tests[0] @ torch.tensor(w), tests[1].double(), reduction="none")

    xs, ys = x.numpy(), y.numpy()
    best = solve(xs, ys, np.zeros(30))
    left = [tested(solve(np.delete(xs, i, 0), np.delete(ys, i), best)) for i in range(60)]
    model = nn.Sequential(nn.Linear(30, 1, bias=False), nn.Flatten(0)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(best)[None])
    losses = tested(best)
    return Fit(
        model,
        TensorDataset(x, y.double()),
        (tests[0], tests[1].double()),
        losses,
        torch.stack(left, 1) - losses[:, None],
        penalty,
    )


def agreement(found: Tensor, truth: Tensor) -> float:
    """The lowest rank correlation of any test example's influences."""
    return min(float(spearmanr(a, b).statistic) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize(
    ("kind", "more"), [(NaiveInfluenceFunction, {}), (ArnoldiInfluenceFunction, {"arnoldi_tol": 1e-6})]
)
def test_influence_is_what_leaving_out_and_training_again_does(fit, kind, more):
    options = {"loss_fn": nn.BCEWithLogitsLoss(), "batch_size": 60, "projection_dim": None, "hessian_reg": fit.penalty}
    found = kind(fit.model, fit.data, **options, **more).influence(fit.tests)
    assert agreement(found, fit.changes) >= 0.95
    assert agreement(found.sum(0, keepdim=True), fit.changes.sum(0, keepdim=True)) >= 0.95
    assert float(found.flatten() @ fit.changes.flatten() / fit.changes.square().sum()) == pytest.approx(0.9, abs=0.15)


def test_self_influence_finds_mislabelled_digits():
    """Among the tenth with the highest self influence at least seven in ten are mislabelled; chance finds one."""
    data = digits("train")
    x, y = data.x[:400].flatten(1), data.y[:400].clone()
    flipped = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:40]
    y[flipped] = (y[flipped] + 1 + torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(1))) % 10
    model = nn.Linear(64, 10)
    step = torch.optim.LBFGS(model.parameters(), max_iter=60)

    def loss() -> Tensor:
        step.zero_grad()
        value = F.cross_entropy(model(x), y, reduction="sum") + 0.5 * model.weight.square().sum()
        value.backward()
        return value

    step.step(loss)
    options = {"loss_fn": CrossEntropy(), "batch_size": 400, "hessian_reg": 1.0, "arnoldi_dim": 60}
    found = ArnoldiInfluenceFunction(model.eval(), TensorDataset(x, y), **options).self_influence()
    assert torch.isin(found.topk(40).indices, flipped).float().mean() >= 0.7
