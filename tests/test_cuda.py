"""What holds on the CPU holds on a GPU: same answers, same starts, nothing left behind, memory within its budget."""

import pandas as pd
import pytest
import torch
from attribution_cases import CASES, Net, Pair, inputs_of, parts
from torch import nn
from torch.utils.data import TensorDataset

from robustx.attacks import ATTACKS, PGD, MinParamPerturbation, make
from robustx.attribution import (
    TRAK,
    ArnoldiInfluenceFunction,
    EKFACInfluence,
    IntegratedGradients,
    IterativeInfluenceFunction,
    LayerIntegratedGradients,
    NaiveInfluenceFunction,
    Saliency,
    compare_methods,
)
from robustx.attribution.metrics import METRICS, parameter_randomisation
from robustx.counterfactual import CounterfactualExplainer, evaluate
from robustx.engine import Noise, identities
from robustx.perturb import nearest_unlike

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Convolutions without TF32, so that both devices compute in the same precision."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def cnn(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))
    return net.eval().to(device, dtype)


def batch(device="cpu", dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 8, 8, generator=g, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attributions_agree_with_the_cpu(case):
    for model in (Net(), Pair()):
        given = inputs_of(model)
        here, there = parts(case(model, given)), parts(case(model.cuda(), tuple(t.cuda() for t in given)))
        for one, other in zip(here, there, strict=True):
            assert other.is_cuda
            torch.testing.assert_close(other.cpu(), one, atol=1e-9, rtol=1e-7)


def test_convolutions_agree_with_the_cpu():
    nets = [cnn(d) for d in ("cpu", "cuda")]
    here, there = (LayerIntegratedGradients(n, n[0]).attribute(batch(n[0].weight.device), target=2) for n in nets)
    torch.testing.assert_close(there.cpu(), here, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name, norm", [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms])
def test_attacks_agree_with_the_cpu(name, norm):
    eps = {"L0": 6, "L1": 1.5, "L2": 0.3, "Linf": 0.03}[norm]
    here, there = (
        make(name, cnn(d), loss_func="margin", bounds=(0, 1), norm=norm, eps=eps).run(batch(d)) for d in ("cpu", "cuda")
    )
    assert torch.equal(there.success.cpu(), here.success)
    torch.testing.assert_close(there.distance.cpu(), here.distance, atol=1e-4, rtol=1e-3)
    assert torch.equal(there.forwards.cpu(), here.forwards)


def test_random_starts_are_the_same_points():
    z = batch().flatten(1)
    for draw in ("uniform", "normal", "exponential"):
        here, there = (getattr(Noise(3, "x", identities(z.to(d))), draw)(7, z.to(d)) for d in ("cpu", "cuda"))
        assert torch.equal(there.cpu(), here)


def test_counterfactuals_agree_with_the_cpu():
    mask = torch.arange(64).reshape(1, 1, 8, 8) // 8
    here, there = (
        CounterfactualExplainer(cnn(d), bounds=(0, 1)).generate(batch(d), feature_mask=mask.to(d))
        for d in ("cpu", "cuda")
    )
    assert torch.equal(there.changed.cpu(), here.changed)
    assert there.proved == here.proved


@pytest.mark.parametrize("name", ["blur", "inpaint", "noise", "nearest unlike"])
def test_what_gives_way_agrees_with_the_cpu(name):
    mask = torch.arange(64).reshape(1, 1, 8, 8) // 4

    def told(device):
        reference = nearest_unlike(1 - batch(device)) if name == "nearest unlike" else name
        explainer = CounterfactualExplainer(cnn(device), reference=reference)
        return explainer.generate(batch(device), feature_mask=mask.to(device))

    here, there = told("cpu"), told("cuda")
    assert torch.equal(there.changed.cpu(), here.changed) and there.proved == here.proved
    torch.testing.assert_close(there.counterfactual.cpu(), here.counterfactual)


def test_measures_of_counterfactuals_agree_with_the_cpu():
    def told(device):
        x = batch(device)
        x_cf = torch.stack([x.flip(0), 1 - x.roll(1, 3)], 1)
        x_cf[4, 1] = torch.nan
        repair = {**{c: lambda x, c=c: x * c / 9 for c in range(5)}, "all": lambda x: x}
        others = {"autoencoders": repair, "ensemble": [lambda x: x.flatten(1)[:, :5]]}
        return evaluate(cnn(device), x, x_cf, data=1 - x, sigma=0.1, draws=5, method=lambda x: 1 - x, **others)

    pd.testing.assert_frame_equal(told("cuda"), told("cpu"), rtol=1e-6)


def test_metrics_of_explanations_agree_with_the_cpu():
    names = [name for name in METRICS if name != "randomisation"]  # each device initialises parameters in its own way
    tables = []
    for device in ("cpu", "cuda"):
        model, x = cnn(device), batch(device)
        tables.append(
            compare_methods(model, x, 1, [Saliency(model), IntegratedGradients(model)], names, steps=6, samples=9)
        )
        forgetful = parameter_randomisation(Saliency(model), x, target=1)
        assert forgetful.similarity.isfinite().all()
    torch.testing.assert_close(*(t.values for t in tables))


def test_influence_functions_agree_with_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        x, y = batch(device), torch.arange(6, device=device) % 5
        data = TensorDataset(x[:, :, :4, :4], y)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 5)).double().eval().to(device)
        options = {"loss_fn": nn.CrossEntropyLoss(), "batch_size": 6}
        functions = [
            NaiveInfluenceFunction(net, data, hessian_inverse_tol=1e-3, **options),
            ArnoldiInfluenceFunction(net, data, projection_dim=5, arnoldi_tol=1e-6, **options),
            IterativeInfluenceFunction(net, data, hessian_reg=50.0, **options),
            EKFACInfluence(net, data, samples=2, **options),
            TRAK(net, data, batch_size=6, projection_dim=8),
        ]
        found.append([f.influence(data[:3]).cpu() for f in functions])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_stay_in_ball_and_box(dtype):
    x = batch("cuda", dtype)
    for norm, eps in (("Linf", 8 / 255), ("L2", 0.5), ("L1", 2.0), ("L0", 5)):
        result = PGD(cnn("cuda", dtype), "margin", bounds=(0, 1), norm=norm, eps=eps, restarts=2, seed=1).run(x)
        move = (result.adversarial.double() - x.double()).flatten(1)
        size = {"Linf": move.abs().amax(1), "L1": move.abs().sum(1), "L0": (move != 0).sum(1)}.get(
            norm, move.norm(dim=1)
        )
        assert (size <= eps * (1 + 1e-6)).all()
        assert result.adversarial.dtype == dtype
        assert ((result.adversarial >= 0) & (result.adversarial <= 1)).all()


def test_nothing_is_left_behind_and_searches_run():
    net, x = cnn("cuda"), batch("cuda")
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.cuda.get_rng_state()
    with torch.inference_mode():
        PGD(net, bounds=(0, 1), eps=0.05, restarts=2)(x.clone())
    search = MinParamPerturbation(net, PGD(net, bounds=(0, 1)).perturb, "radius", 0.0, 0.2, 0.02, mode="binary")
    y = net(x).argmax(1)
    moved, values = search.evaluate(x, target=y, attack_kwargs={"step_size": 0.02, "step_num": 10, "target": y})
    found = ~values.isnan().to(x.device)
    assert found.any()
    assert (net(moved).argmax(1) != y)[found].all()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.cuda.get_rng_state())


def test_memory_is_bounded_without_tuning():
    """2,000 steps for 64 examples would hold some 40 GiB at once."""
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.GELU(), nn.Flatten(), nn.LazyLinear(2)).cuda().eval()
    x = torch.rand(64, 3, 32, 32, device="cuda")
    net(x[:1])
    torch.cuda.reset_peak_memory_stats()
    IntegratedGradients(net).attribute(x, target=0, n_steps=2000)
    budget = torch.cuda.get_device_properties(0).total_memory / 4
    assert torch.cuda.max_memory_allocated() < budget
