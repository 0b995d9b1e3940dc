"""Attribution over a data loader: captum's numbers in the same run, and as if the loader were one batch."""

import captum.attr
import pytest
import torch
from captum.attr._core.dataloader_attr import InputRole as TheirRole
from told import told
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from robustx.attribution import (
    DataLoaderAttribution,
    FeatureAblation,
    FeaturePermutation,
    InputRole,
    IntegratedGradients,
    KernelShap,
    LayerFeatureAblation,
    Lime,
    ShapleyValues,
    ShapleyValueSampling,
)

A, F, N = InputRole.need_attr, InputRole.need_forward, InputRole.no_forward


class Net(nn.Module):
    """[B, 4], something in between, [B, 2, 3] -> [B, 3]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(10, 6), nn.Linear(6, 3)
        self.double()
        self.rows = []

    def forward(self, a, scale, b):
        self.rows.append(len(a))
        return self.head(torch.tanh(self.first(torch.cat([a, b.flatten(1)], 1)) * scale))


def loader(size=3, rows=8):
    torch.manual_seed(1)
    parts = torch.randn(rows, 4), torch.rand(rows, 1), torch.randint(0, 3, (rows,)), torch.randn(rows, 2, 3)
    return DataLoader(TensorDataset(*(t.double() if t.is_floating_point() else t for t in parts)), batch_size=size)


ROLES = (A, F, N, A)
MASKS = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[[3, 3, 0], [4, 4, 1]]])


def confusion(total, out, batch):
    """Hits of each class, by labels that the model does not see; and the attributed elements count."""
    hits = torch.stack([((batch[2] == k) * out.softmax(1)[:, k]).sum() for k in range(3)])
    weight = 1 + batch[0].mean() + batch[3].mean()
    return hits * weight if total is None else total + hits * weight


METRICS = {
    "of three numbers": {"reduce": confusion},
    "made in the end": {"reduce": confusion, "to_metric": lambda total: total.sum()},
    "all outputs": {},
    "of all outputs": {"to_metric": lambda out: out[:, 0].std()},
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mask", [None, MASKS], ids=["elements", "across"])
@pytest.mark.parametrize("per_pass", [1, 3, 64])
def test_it_says_what_captum_says(metric, mask, per_pass):
    model, found = Net(), []
    for room in (DataLoaderAttribution, captum.attr.DataLoaderAttribution):
        ablation = FeatureAblation if room is DataLoaderAttribution else captum.attr.FeatureAblation
        ask = room(ablation(model)).attribute
        options = {"baselines": (0.5, torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).double())}
        options |= {"feature_mask": mask, "perturbations_per_pass": per_pass, **METRICS[metric]}
        found.append((ask(loader(), ROLES, **options), ask(loader(), ROLES, return_input_shape=False, **options)))
    (ours, flat), (theirs, their_flat) = found
    assert type(ours) is type(theirs) is tuple
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # captum's are there in float32
    assert_close(flat, their_flat, rtol=1e-6, atol=1e-6)


def test_roles_are_captums():
    """By what it does, which its documentation tells otherwise."""
    assert (TheirRole.need_attr, TheirRole.need_forward, TheirRole.no_forward) == (A, F, N)


def test_batches_of_one_element():
    """In a list; or as they are, which captum's takes for their rows."""
    x = torch.randn(7, 3).double()
    score, reduce = (lambda x: x.square().sum(1)), (lambda total, out, _: (total or 0) + out.sum())
    lists, tensors = DataLoader(TensorDataset(x), batch_size=2), DataLoader(x, batch_size=2)
    (found,) = DataLoaderAttribution(FeatureAblation(score)).attribute(lists, reduce=reduce)
    (theirs,) = captum.attr.DataLoaderAttribution(captum.attr.FeatureAblation(score)).attribute(lists, reduce=reduce)
    assert_close(found, theirs)
    assert_close(found, x.square().sum(0, keepdim=True))
    assert_close(DataLoaderAttribution(FeatureAblation(score)).attribute(tensors, reduce=reduce), found)


SHARES = {
    "exact": (ShapleyValues, {}),
    "sampled": (ShapleyValueSampling, {"n_samples": 4, "seed": 0}),
    "kernel": (KernelShap, {"n_samples": 200, "seed": 0}),
}


@pytest.mark.parametrize("name", SHARES)
def test_any_method_of_coalitions(name):
    """Shares of a mean over all examples are the means of their own shares; and they add up."""
    of, options = SHARES[name]
    model, given = Net(), loader()
    a, scale, _, b = next(iter(loader(8)))
    mean = {"to_metric": lambda out: out[:, 1].mean()}
    found = DataLoaderAttribution(of(model)).attribute(given, ROLES, feature_mask=MASKS, **mean, **options)
    flat = DataLoaderAttribution(of(model)).attribute(
        given, ROLES, feature_mask=MASKS, return_input_shape=False, **mean, **options
    )
    rise = model(a, scale, b)[:, 1].mean() - model(a * 0, scale, b * 0)[:, 1].mean()
    assert_close(flat.double().sum(), rise.detach(), rtol=1e-5, atol=1e-5)
    if name == "exact":
        own = ShapleyValues(lambda a, b, scale: model(a, scale, b)).attribute(
            (a, b), target=1, additional_forward_args=scale, feature_mask=MASKS
        )
        assert_close(found, tuple(t.mean(0, keepdim=True) for t in own))


def test_lime_over_a_loader():
    found = DataLoaderAttribution(Lime(Net())).attribute(
        loader(), ROLES, to_metric=lambda out: 50 * out[:, 1].mean(), feature_mask=MASKS, n_samples=40, seed=0
    )
    assert [t.shape for t in found] == [(1, 4), (1, 2, 3)] and found[0].abs().sum() > 0


@pytest.mark.parametrize("per_pass, passes", [(1, 11), (4, 4), (64, 2)])
def test_traversals(per_pass, passes):
    """One as it is, then as few as may be; every perturbation sees each batch once."""
    model, traversals, data = Net(), [], loader()

    class Counted:
        def __iter__(self):
            traversals.append(1)
            return iter(data)

    DataLoaderAttribution(FeatureAblation(model)).attribute(
        Counted(), ROLES, to_metric=lambda out: out.mean(), perturbations_per_pass=per_pass
    )
    assert len(traversals) == passes + 1  # the first batch is looked at before
    assert sum(model.rows) == 8 * (1 + 10)


def test_heavy_batches_do_not_split_traversals():
    """What a pass over the loader makes is no weight of a perturbation's."""
    traversals = []

    class Heavy:
        def __iter__(self):
            traversals.append(1)
            return iter([torch.ones(4, 40) for _ in range(3)])

    def heavy(x):
        return (x[:, :1] * torch.ones(1, 1 << 18)).mean(1) + x.sum(1)

    DataLoaderAttribution(FeatureAblation(heavy)).attribute(Heavy(), to_metric=lambda out: out.sum())
    assert len(traversals) == 1 + 2


def test_the_method_stays_as_it_is():
    model = Net()
    method = FeatureAblation(model)
    wrapped = DataLoaderAttribution(method)
    wrapped.attribute(loader(), ROLES, to_metric=lambda out: out.mean())
    assert method.forward_func is model and wrapped.forward_func is model
    assert repr(wrapped) == "DataLoaderAttribution(FeatureAblation(Net))"
    with pytest.raises(NotImplementedError, match="attribute_future is not implemented for DataLoaderAttribution"):
        wrapped.attribute_future()


def test_a_model_in_train_mode_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    with pytest.raises(ValueError, match="train mode"):
        DataLoaderAttribution(FeatureAblation(model)).attribute([torch.rand(2, 3)], to_metric=lambda out: out.mean())


def test_progress_is_told_on_standard_error(capsys):
    DataLoaderAttribution(FeatureAblation(lambda x: x)).attribute(
        [torch.rand(2, 3)], to_metric=lambda out: out.mean(), show_progress=True
    )
    assert "Feature Ablation attribution: 100%" in capsys.readouterr().err


WRONG = {
    "too few roles": ({"input_roles": (A, F)}, "input_roles", "4 elements", "(0, 1)"),
    "none to attribute": ({"input_roles": (F, F, N, F)}, "input_roles", "be attributed (0)"),
    "a mask for each example": ({"feature_mask": (torch.zeros(3, 4).long(), MASKS[1])}, "feature_mask", "one row"),
    "baselines for each example": ({"baselines": (torch.zeros(3, 4), 0)}, "baselines", "one row", "3"),
    "no metric": ({"to_metric": lambda out: "good"}, "to_metric", "tensor or a number", "str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit(case):
    wrong, *words = WRONG[case]
    with pytest.raises(AssertionError) as caught:
        DataLoaderAttribution(FeatureAblation(Net())).attribute(loader(), **{"input_roles": ROLES} | wrong)
    told(caught.value, words)
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    "method", [IntegratedGradients(Net()), LayerFeatureAblation(Net(), Net().head), FeaturePermutation(Net())], ids=repr
)
def test_methods_that_cannot_be_asked_so(method):
    with pytest.raises(AssertionError, match="attr_method must be a method of features that give way at the inputs"):
        DataLoaderAttribution(method)
