"""TRAK: projections that keep products, least squares in closed form, training again on halves of the data."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution.influence.trak import TRAK, Sketch, log_odds, log_odds_slope
from robustx.engine import ArgumentError, OutputError
from robustx.zoo.embedded import digits


def test_a_sketch_keeps_inner_products_in_the_mean_and_is_drawn_by_key():
    rows = torch.randn(4, 300, dtype=torch.float64)
    truth = rows @ rows.T
    found = []
    for seed in range(300):
        short = Sketch.draw(300, 64, seed, rows)(rows)
        found.append(short @ short.T)
    found = torch.stack(found)
    spread = found.std(0)
    assert ((found.mean(0) - truth).abs() <= 4 * spread / 300**0.5).all()
    length = truth.diagonal()
    bound = (length[:, None] * length + truth**2) / 64  # the variance of a Gaussian projection
    assert (spread**2 <= 1.3 * bound).all()
    state = torch.get_rng_state()
    one, same, other = (Sketch.draw(300, 64, 0, rows, name)(rows) for name in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ArgumentError, match="dim must be a multiple of 4, got 63"):
        Sketch.draw(300, 63, 0, rows)


def test_log_odds_and_the_slope_of_the_loss_along_them():
    out = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (6,))
    p = out.softmax(1).gather(1, labels[:, None])[:, 0]
    margin = log_odds(out, labels)
    assert_close(margin, (p / (1 - p)).log())
    assert_close(F.cross_entropy(out, labels, reduction="none"), F.softplus(-margin))
    leaf = margin.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.softplus(-leaf).sum(), leaf)
    assert_close(log_odds_slope(out, labels), -slope)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def states(model: nn.Module, n: int) -> list[dict[str, Tensor]]:
    return [{name: t + 0.2 * torch.randn_like(t) for name, t in model.state_dict().items()} for _ in range(n)]


def reference(trak: TRAK, model: nn.Module, checkpoints, train, tests) -> Tensor:
    """From the formula, with the sketches and one gradient after the other."""
    products, slopes = [], []
    model = copy.deepcopy(model)
    for i, state in enumerate(checkpoints):
        model.load_state_dict(state)
        sides = []
        for x, y in (train, tests):
            rows = []
            for one, label in zip(x, y, strict=True):
                margin = log_odds(model(one[None]), label[None])[0]
                grads = torch.autograd.grad(margin, list(model.parameters()))
                rows.append(torch.cat([g.flatten() for g in grads]))
            rows = torch.stack(rows)
            sides.append(Sketch.draw(rows.shape[1], trak.projection_dim, trak.seed, rows, f"TRAK {i}")(rows))
        g, t = sides
        kernel = g.T @ g
        kernel += trak.damping * kernel.trace() / len(kernel) * torch.eye(len(kernel)).double()
        products.append(t @ torch.linalg.inv(kernel) @ g.T)
        p = model(train[0]).softmax(1).detach()
        slopes.append(1 - p[torch.arange(len(p)), train[1]])
    return torch.stack(products).mean(0) * torch.stack(slopes).mean(0)


def test_influence_is_that_of_the_formula():
    model = Network().double().eval()
    train = torch.randn(20, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    tests = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    checkpoints = states(model, 3)
    before = copy.deepcopy(model.state_dict())
    trak = TRAK(model, TensorDataset(*train), checkpoints, batch_size=7, projection_dim=16, damping=0.1, seed=3)
    truth = reference(trak, model, checkpoints, train, tests)
    assert_close(trak.influence(tests), truth)
    assert_close(trak.influence(DataLoader(TensorDataset(*tests), batch_size=2)), truth)
    for proponents in (True, False):
        assert_close(trak.influence(tests, 4, proponents).influence_scores, truth.topk(4, largest=proponents).values)
    assert_close(trak.self_influence(), reference(trak, model, checkpoints, train, train).diagonal())
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    model.load_state_dict(checkpoints[0])
    own, first = (TRAK(model, TensorDataset(*train), c, projection_dim=16) for c in (None, checkpoints[:1]))
    assert_close(own.influence(tests), first.influence(tests))


def test_least_squares_are_told_as_by_the_hat_matrix():
    """Of a linear model with more places than parameters nothing is lost: the influence is ``x (X'X)^-1 x_i e_i``."""
    x, y = torch.randn(15, 3, dtype=torch.float64), torch.randn(15, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.lstsq(x, y[:, None]).solution.T)
    parts = {"margin": lambda out, y: out, "slope": lambda out, y: y - out}
    trak = TRAK(model, TensorDataset(x, y), projection_dim=64, damping=0.0, **parts)
    tests = torch.randn(4, 3, dtype=torch.float64)
    error = (y - model(x)).detach()
    truth = tests @ torch.linalg.inv(x.T @ x) @ x.T * error
    assert_close(trak.influence((tests, torch.zeros(4))), truth)


def test_training_again_on_halves_of_the_data_changes_what_was_told():
    """The linear datamodeling score (Park et al., 2023, definition 2.3), a rank correlation of summed influences with
    the margins of models that see half of the data, is at least 0.25 in the mean over tests; by chance it is zero."""
    train, test = digits("train"), digits("test")
    x, y = train.x[:200].flatten(1), train.y[:200]
    tests = test.x[:40].flatten(1), test.y[:40]
    halves = [torch.randperm(200, generator=torch.Generator().manual_seed(i))[:100] for i in range(48)]

    def trained(chosen: list[Tensor]) -> nn.Module:
        """All models of a list of subsets at once."""
        models = [nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)) for _ in chosen]
        weights, _ = torch.func.stack_module_state(models)
        xs, ys = torch.stack([x[c] for c in chosen]), torch.stack([y[c] for c in chosen])

        def run(w: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(models[0], w, (x,))

        step = torch.optim.Adam(weights.values(), 0.02, weight_decay=1e-3)
        for _ in range(80):
            loss = F.cross_entropy(torch.vmap(run)(weights, xs).flatten(0, 1), ys.flatten())
            step.zero_grad()
            (loss * len(chosen)).backward()
            step.step()
        return models[0], [{n: t[i].detach() for n, t in weights.items()} for i in range(len(chosen))]

    model, retrained = trained(halves)
    with torch.no_grad():
        truth = torch.stack([log_odds(torch.func.functional_call(model, w, tests[:1]), tests[1]) for w in retrained])
    _, whole = trained([torch.arange(200)] * 5)
    trak = TRAK(model.eval(), TensorDataset(x, y), whole, batch_size=200, projection_dim=128)
    found = trak.influence(tests)
    summed = torch.stack([found[:, half].sum(1) for half in halves])
    scores = torch.tensor([spearmanr(a, b).statistic for a, b in zip(summed.T, truth.T, strict=True)])
    assert scores.mean() >= 0.25


def test_what_cannot_be_asked_is_refused():
    model = nn.Linear(3, 2)
    data = TensorDataset(torch.randn(6, 3), torch.randint(0, 2, (6,)))
    with pytest.raises(ArgumentError, match="margin and slope belong together"):
        TRAK(model, data, margin=log_odds)
    with pytest.raises(ArgumentError, match="projection_dim must be a whole number of at least 4"):
        TRAK(model, data, projection_dim=2)
    with pytest.raises(ArgumentError, match="projection_dim must be a multiple of 4"):
        TRAK(model, data, projection_dim=6)
    with pytest.raises(OutputError, match=r"margin must be one number for each of .* examples, got \(\d, 2\)"):
        TRAK(model, data, margin=lambda out, y: out, slope=lambda out, y: y)
    with pytest.raises(OutputError, match=r"logits must be \[N, K\], got \(\d,\); hand in margin= and slope="):
        TRAK(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), data)
    trak = TRAK(model, data, projection_dim=8)
    with pytest.raises(ArgumentError, match="self_influence"):
        trak.influence(None)
    with pytest.raises(TypeError, match="labels must be a tensor, got list"):
        trak.influence((torch.randn(2, 3), [0, 1]))
