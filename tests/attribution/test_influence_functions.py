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
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robustx.attribution.influence.ekfac import EKFACInfluence
from robustx.attribution.influence.functions import ArnoldiInfluenceFunction, NaiveInfluenceFunction
from robustx.attribution.influence.solved import ConjugateGradients, IterativeInfluenceFunction, LiSSA
from robustx.attribution.influence.tracin import TracInCP
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


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


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
        streamed = DataLoader(Stream(data))  # which has no length
        assert_close(function.self_influence(streamed), function.self_influence())
        with pytest.raises(ArgumentError, match="there are no examples"):
            function.self_influence(DataLoader(TensorDataset(*data[:0])))
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


ALL = {"projection_dim": None}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (NaiveInfluenceFunction, ALL),
        (ArnoldiInfluenceFunction, ALL | {"arnoldi_tol": 1e-6}),
        (IterativeInfluenceFunction, {}),
    ],
)
def test_influence_is_what_leaving_out_and_training_again_does(fit, kind, more):
    options = {"loss_fn": nn.BCEWithLogitsLoss(), "batch_size": 60, "hessian_reg": fit.penalty}
    found = kind(fit.model, fit.data, **options, **more).influence(fit.tests)
    assert agreement(found, fit.changes) >= 0.95
    assert agreement(found.sum(0, keepdim=True), fit.changes.sum(0, keepdim=True)) >= 0.95
    assert float(found.flatten() @ fit.changes.flatten() / fit.changes.square().sum()) == pytest.approx(0.9, abs=0.15)


def test_tracin_is_what_leaving_out_of_a_short_training_does(fit):
    """To first order in the length of the training; the optimum, where curvature counts, is another question."""
    (x, y), checkpoints = fit.data.tensors, []
    kept = torch.cat([torch.ones(1, 60), 1 - torch.eye(60)]).double()  # all examples, and without each of them
    w = torch.zeros(61, 30, dtype=torch.float64)
    for _ in range(30):
        checkpoints.append({"0.weight": w[:1]})
        w = w - 1e-3 * ((kept * (torch.sigmoid(w @ x.T) - y)) @ x + fit.penalty * w)
    tests, labels = fit.tests
    losses = F.binary_cross_entropy_with_logits(tests @ w.T, labels[:, None].expand(-1, 61), reduction="none")

    found = TracInCP(fit.model, fit.data, checkpoints, load, loss_fn=nn.BCEWithLogitsLoss()).influence(fit.tests)
    assert agreement(found, losses[:, 1:] - losses[:, :1]) >= 0.95
    assert agreement(found, fit.changes) < 0.5  # which is what influence functions are for


def test_solving_is_the_inverse_hessian(fit):
    options = {"loss_fn": nn.BCEWithLogitsLoss(), "batch_size": 25, "hessian_reg": fit.penalty}
    naive = NaiveInfluenceFunction(fit.model, fit.data, **options, **ALL)
    truth = naive.influence(fit.tests)
    exact = IterativeInfluenceFunction(fit.model, fit.data, **options, solver=ConjugateGradients(1e-10))
    assert_close(exact.influence(fit.tests), truth)
    assert_close(exact.self_influence(), naive.self_influence())
    assert_close(exact.influence(fit.tests, 3).influence_scores, truth.topk(3).values)
    tests, truth = tuple(t[:6] for t in fit.tests), truth[:6]
    found = []
    for solver in (LiSSA(200), LiSSA(200, 30.0), LiSSA(200, 30.0)):
        function = IterativeInfluenceFunction(fit.model, fit.data, **options, solver=solver, sample=20)
        found.append(function.influence(tests))
        assert agreement(found[-1], truth) >= 0.95
        assert (found[-1] - truth).norm() <= 0.2 * truth.norm()
    assert torch.equal(found[1], found[2])


def test_what_cannot_be_solved_is_told(case, fit):
    function = IterativeInfluenceFunction(case.model, case.data, loss_fn=CrossEntropy(), hessian_reg=0.0)
    with pytest.raises(ArgumentError, match="the Hessian is not positive definite"):
        function.influence(case.tests)
    options = {"loss_fn": nn.BCEWithLogitsLoss(), "hessian_reg": fit.penalty}
    few = IterativeInfluenceFunction(fit.model, fit.data, **options, solver=ConjugateGradients(steps=2))
    with pytest.warns(UserWarning, match="of a gradient after 2 steps; allow more"):
        few.influence(fit.tests)
    low = IterativeInfluenceFunction(fit.model, fit.data, **options, solver=LiSSA(100, scale=1e-3))
    with pytest.raises(ArgumentError, match="LiSSA went to infinity: scale=0.001"):
        low.influence(fit.tests)


def test_ekfac_of_one_linear_layer_with_squares_is_exact():
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    tests = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    with_one = torch.cat([x, torch.ones(9, 1)], 1)
    inverse = torch.linalg.inv(with_one.T @ with_one + 0.3 * torch.eye(4))  # of the mean of two squares: 2 / 2

    def slopes(x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).detach()[:, :, None] * torch.cat([x, torch.ones(len(x), 1)], 1)[:, None]

    truth = torch.einsum("moi,ij,noj->mn", slopes(*tests), inverse, slopes(x, y))
    function = EKFACInfluence(model, TensorDataset(x, y), loss_fn=Squares(), batch_size=4, damping=0.3)
    assert_close(function.influence(tests), truth)
    assert_close(function.self_influence(tests), torch.einsum("noi,ij,noj->n", slopes(*tests), inverse, slopes(*tests)))


class Mixed(nn.Module):
    """A grouped convolution, a norm, a linear map that is used twice, and a bias that belongs to no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(2, 4, 2, groups=2), nn.LayerNorm(4), nn.Linear(4, 4)
        self.last, self.bias = nn.Linear(4, 3, bias=False), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.twice(torch.tanh(self.twice(self.norm(self.conv(x).flatten(2).mean(2))))))
        return self.last(z) + self.bias


def blocks_of(model: Mixed, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The whole Gauss-Newton matrix, from the Jacobian of the outputs."""
    named = dict(model.named_parameters())

    def out(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        weights = {n: t.view(p.shape) for (n, p), t in zip(named.items(), parts, strict=True)}
        return torch.func.functional_call(model, weights, (x,))

    j = torch.autograd.functional.jacobian(out, torch.cat([p.detach().flatten() for p in named.values()]))
    p = model(x).detach().softmax(1)
    return torch.einsum("ncp,ncd,ndq->pq", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j)


def test_ekfac_is_the_gauss_newton_matrix_along_its_basis():
    """Parts of one side are inverted whole; of two sides, the diagonal of the whole in their basis is."""
    model = Mixed().double().eval()
    x, y = torch.randn(11, 2, 3, 3, dtype=torch.float64), torch.randint(0, 3, (11,))
    function = EKFACInfluence(model, TensorDataset(x, y), loss_fn=CrossEntropy(), batch_size=4, damping=0.1)
    whole = blocks_of(model, x, y)
    names = list(dict(model.named_parameters()))
    sizes = [p.numel() for p in model.parameters()]
    starts = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    joined = [tuple(names[i] for i in part.at) for part in function._parts]
    pairs = [("conv.weight", "conv.bias"), ("twice.weight", "twice.bias")]
    assert joined == [*pairs, ("last.weight",), ("bias",), ("norm.weight",), ("norm.bias",)]
    rows = torch.randn(5, whole.shape[0], dtype=torch.float64)
    solved = function._solve(rows)
    for part, factor in zip(function._parts, function.factors, strict=True):
        g, o, i = part.shape
        places = {n: torch.arange(starts[names[n]], starts[names[n]] + sizes[n])[None] for n in part.at}
        mine = part.gathered(places).reshape(g, -1)
        for group, at in enumerate(mine):
            block = whole[at][:, at]
            basis = torch.kron(factor.left[group], factor.right[group])
            assert_close(basis.T @ basis, torch.eye(o * i).double())
            along = (basis.T @ block @ basis).diagonal()
            assert_close(factor.curvature[group].flatten(), along)
            assert_close(solved[:, at], rows[:, at] @ (basis / (along + 0.1)) @ basis.T)
            if i == 1:
                assert_close(solved[:, at], rows[:, at] @ torch.linalg.inv(block + 0.1 * torch.eye(o)))


def test_ekfac_by_drawn_directions_comes_to_that_of_all(fit, case):
    options = {"loss_fn": CrossEntropy(), "batch_size": 12}
    exact = EKFACInfluence(case.model, case.data, **options)
    many = EKFACInfluence(case.model, case.data, **options, samples=300)
    truth = exact.influence(case.tests)
    assert (many.influence(case.tests) - truth).norm() <= 0.1 * truth.norm()
    one, same, other = (EKFACInfluence(case.model, case.data, **options, samples=1, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.influence(case.tests), same.influence(case.tests))
    assert not torch.allclose(one.influence(case.tests), other.influence(case.tests))
    found = EKFACInfluence(fit.model, fit.data, loss_fn=nn.BCEWithLogitsLoss(), damping=fit.penalty).influence(
        fit.tests
    )
    assert agreement(found, fit.changes) >= 0.9


def test_ekfac_needs_a_loss_that_is_curved_in_the_outputs(case):
    with pytest.raises(ArgumentError, match="nowhere curved in the model's outputs.*return logits"):
        EKFACInfluence(nn.Sequential(case.model, nn.LogSoftmax(1)), case.data, loss_fn=nn.NLLLoss())
    with pytest.raises(ArgumentError, match="damping must be at least 0"):
        EKFACInfluence(case.model, case.data, loss_fn=CrossEntropy(), damping=-1.0)


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
    found = EKFACInfluence(model, TensorDataset(x, y), loss_fn=CrossEntropy(), samples=1).self_influence()
    assert torch.isin(found.topk(40).indices, flipped).float().mean() >= 0.7
