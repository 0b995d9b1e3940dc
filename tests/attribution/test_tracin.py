"""TracIn: captum's numbers in the same run, gradients one by one, checkpoints that cannot harm, mislabelled digits."""

import copy
import pickle
import sys
from collections import namedtuple

import captum.influence
import pytest
import torch
from captum.influence._utils.nearest_neighbors import NearestNeighbors as CaptumNeighbors
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robustx.attribution import TracInCP, TracInCPFast, TracInCPFastRandProj
from robustx.attribution.influence.base import most_influential
from robustx.attribution.influence.checkpoints import load_checkpoint
from robustx.attribution.influence.neighbours import AnnoyNearestNeighbors, ExactNearestNeighbors
from robustx.engine import ArgumentError, OutputError
from robustx.zoo.embedded import digits

pytestmark = pytest.mark.filterwarnings(
    "ignore:WARNING. Using this implementation stores",
    "ignore:Since `(test_)?loss_fn` has no",
    "ignore:Input Tensor . did not already require gradients",
)

CrossEntropy, Squares = nn.CrossEntropyLoss, nn.MSELoss
RATES = (0.5, 0.1)

Case = namedtuple("Case", "model data tests files")


def cnn() -> nn.Module:
    body = (nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))


def words() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)
    )


def pictures(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 6, 6, dtype=torch.float64), torch.randint(0, 3, (n,))


def sentences(n: int) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.randperm(9)[:3] for _ in range(n)]), torch.randint(0, 3, (n,))


def load(model: nn.Module, file: str) -> float:
    model.load_state_dict(torch.load(file, weights_only=True))
    return RATES[int(file.split("-")[-1].removesuffix(".pt"))]


@pytest.fixture
def case(request, tmp_path) -> Case:
    make, draw = {"cnn": (cnn, pictures), "words": (words, sentences)}[getattr(request, "param", "cnn")]
    model = make().double().eval()
    files = []
    for i in range(len(RATES)):
        state = {n: t + 0.1 * torch.randn_like(t) for n, t in model.state_dict().items()}
        files.append(str(tmp_path / f"net-{i}.pt"))
        torch.save(state, files[-1])
    return Case(model, TensorDataset(*draw(7)), draw(4), files)


both = pytest.mark.parametrize("case", ["cnn", "words"], indirect=True)


def gradients(case: Case, batch: tuple[Tensor, Tensor], loss, layers=None) -> list[Tensor]:
    """At each checkpoint, of one example after the other [n, P]."""
    found = []
    model = copy.deepcopy(case.model)
    for file in case.files:
        load(model, file)
        modules = [model] if layers is None else [model.get_submodule(n) for n in layers]
        parameters = [p for m in modules for p in m.parameters()]
        rows = []
        for x, y in zip(*batch, strict=True):
            rows.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(x[None]), y[None]), parameters)])
            )
        found.append(torch.stack(rows))
    return found


def reference(case: Case, loss, test_loss=None, layers=None) -> Tensor:
    one, two = (gradients(case, b, f, layers) for b, f in ((case.tests, test_loss or loss), (case.data.tensors, loss)))
    return sum(rate * a @ b.T for rate, a, b in zip(RATES, one, two, strict=True))


@both
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_influence_is_the_product_of_gradients_summed_over_checkpoints(case, batch_size):
    loss = CrossEntropy()
    tracin = TracInCP(case.model, case.data, case.files, load, loss_fn=loss, batch_size=batch_size)
    truth = reference(case, loss)
    assert_close(tracin.influence(case.tests), truth)
    assert_close(tracin.influence(DataLoader(TensorDataset(*case.tests), batch_size=3)), truth)
    assert_close(tracin.influence(case.tests, aggregate=True), truth.sum(0, keepdim=True))
    alone = TracInCP(case.model, case.data, case.files, load, ["2"], loss, test_loss_fn=CrossEntropy(reduction="none"))
    assert_close(alone.influence(case.tests), reference(case, loss, layers=["2"]))


@pytest.mark.parametrize(
    ("case", "samplewise", "layers"),
    [("cnn", False, None), ("cnn", True, None), ("cnn", True, ["2", "4"]), ("words", False, ["1", "5"])],
    indirect=["case"],
    ids=["cnn", "cnn by samples", "two layers by samples", "two layers of words"],
)
def test_the_same_as_captum(case, samplewise, layers):
    args = (case.model, case.data, case.files, load, layers, CrossEntropy(reduction="sum" if samplewise else "none"))
    theirs = captum.influence.TracInCP(*args, batch_size=3, sample_wise_grads_per_batch=samplewise)
    ours = TracInCP(*args, batch_size=3, sample_wise_grads_per_batch=samplewise)
    for options in ({}, {"aggregate": True}):
        assert_close(ours.influence(case.tests, **options), theirs.influence(case.tests, **options))
    for proponents in (True, False):
        mine, other = (t.influence(case.tests, k=3, proponents=proponents) for t in (ours, theirs))
        assert type(mine).__name__ == type(other).__name__
        assert mine._fields == other._fields
        assert torch.equal(mine.indices, other.indices)
        assert_close(mine.influence_scores, other.influence_scores)
    for inputs in (None, case.tests):
        for by_checkpoints in (False, True):
            options = {"inputs": inputs, "outer_loop_by_checkpoints": by_checkpoints}
            assert_close(ours.self_influence(**options), theirs.self_influence(**options))


def test_the_same_as_captum_with_means_and_another_loss_for_tests(case):
    args = (case.model, case.data, case.files, load, None, CrossEntropy(reduction="mean"))
    options = {"test_loss_fn": nn.MultiMarginLoss(), "sample_wise_grads_per_batch": True, "batch_size": 3}
    theirs, ours = captum.influence.TracInCP(*args, **options), TracInCP(*args, **options)
    assert_close(ours.influence(case.tests), theirs.influence(case.tests))


def test_intermediate_quantities_have_influences_for_products(case):
    loss = CrossEntropy(reduction="none")
    ours = TracInCP(case.model, case.data, case.files, load, None, loss)
    tests, train = (
        ours.compute_intermediate_quantities(case.tests),
        ours.compute_intermediate_quantities(ours.train_dataloader),
    )
    assert_close(tests @ train.T, ours.influence(case.tests))
    assert_close(ours.compute_intermediate_quantities(case.tests, aggregate=True), tests.sum(0, keepdim=True))

    def plain(model: nn.Module, file: str) -> float:
        load(model, file)
        return 1.0  # at this rate captum's are the same

    args = (case.model, case.data, case.files, plain, None, loss)
    theirs, ours = captum.influence.TracInCP(*args), TracInCP(*args)
    assert_close(ours.compute_intermediate_quantities(case.tests), theirs.compute_intermediate_quantities(case.tests))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_fast_way_is_captums_and_that_of_the_last_weight(case, reduction):
    args = (case.model, "6", case.data, case.files, load, CrossEntropy(reduction=reduction), 3)
    args_theirs = (case.model, case.model[6], *args[2:])
    theirs, ours = captum.influence.TracInCPFast(*args_theirs), TracInCPFast(*args)
    assert_close(ours.influence(case.tests), theirs.influence(case.tests))
    assert_close(ours.self_influence(), theirs.self_influence())
    assert_close(ours.self_influence(case.tests), theirs.self_influence(case.tests))
    for proponents in (True, False):
        mine, other = (t.influence(case.tests, 4, proponents) for t in (ours, theirs))
        assert torch.equal(mine.indices, other.indices)
        assert_close(mine.influence_scores, other.influence_scores)
    with pytest.raises(ArgumentError, match="must be a Linear, got Conv2d; TracInCP"):
        TracInCPFast(case.model, "0", case.data, case.files, load, CrossEntropy())


class Matrix(CaptumNeighbors):
    """An index for captum, which else asks for a package."""

    def setup(self, data):
        self.data = data

    def get_nearest_neighbors(self, query, k):
        found = (query @ self.data.T).topk(k, dim=1)
        return found.indices, found.values


@pytest.mark.parametrize("dim", [None, 4, 1000])
def test_random_projections_are_captums_where_the_same_are_drawn(case, dim):
    args = (case.model, "6", case.data, case.files, load, CrossEntropy(reduction="sum"), 3)
    ours = TracInCPFastRandProj(*args, projection_dim=dim)
    args = (case.model, case.model[6], *args[2:])
    theirs = captum.influence.TracInCPFastRandProj(*args, nearest_neighbors=Matrix(), projection_dim=dim)
    assert (theirs.projection_quantities is None) == (ours.projection_quantities is None) == (dim != 4)
    theirs.projection_quantities = ours.projection_quantities
    vectors = theirs.compute_intermediate_quantities(theirs.train_dataloader)
    theirs.src_intermediate_quantities = vectors
    theirs.nearest_neighbors.setup(vectors)
    assert_close(ours.src_intermediate_quantities, vectors)
    assert_close(ours.compute_intermediate_quantities(case.tests), theirs.compute_intermediate_quantities(case.tests))
    assert_close(ours.influence(case.tests, k=None), theirs.influence(case.tests, k=None))
    assert torch.equal(ours.influence(case.tests).indices, theirs.influence(case.tests).indices)  # five each
    for proponents in (True, False):
        mine, other = (t.influence(case.tests, 4, proponents) for t in (ours, theirs))
        assert torch.equal(mine.indices, other.indices)
        assert_close(mine.influence_scores, other.influence_scores)
    if dim != 4:
        fast = TracInCPFast(case.model, "6", case.data, case.files, load, CrossEntropy(reduction="sum"))
        assert_close(ours.influence(case.tests, k=None), fast.influence(case.tests))


def test_random_projections_are_right_in_the_mean_and_drawn_by_key(case):
    args = (case.model, "6", case.data, case.files, load, CrossEntropy())
    exact = TracInCPFast(*args).influence(case.tests)
    state = torch.get_rng_state()
    drawn = [TracInCPFastRandProj(*args, projection_dim=9, seed=s).influence(case.tests, k=None) for s in range(30)]
    assert torch.equal(torch.get_rng_state(), state)
    mean, spread = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 30**0.5
    assert ((mean - exact).abs() <= 4 * spread + 1e-9).all()
    assert spread.max() > 0
    assert torch.equal(drawn[0], TracInCPFastRandProj(*args, projection_dim=9).influence(case.tests, k=None))
    with pytest.raises(NotImplementedError, match="TracInCPFast"):
        TracInCPFastRandProj(*args).self_influence()


def test_training_examples_come_once_in_any_form_of_loader(case):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*case.data.tensors, strict=True))

    loss = CrossEntropy()
    truth = reference(case, loss)
    stream = TracInCP(case.model, DataLoader(Stream(), batch_size=2), case.files, load, loss_fn=loss)
    assert_close(stream.influence(case.tests), truth)
    assert_close(
        stream.self_influence(), TracInCP(case.model, case.data, case.files, load, loss_fn=loss).self_influence()
    )
    order = torch.Generator().manual_seed(3)
    shuffled = DataLoader(case.data, batch_size=2, shuffle=True, generator=order)
    found = TracInCP(case.model, shuffled, case.files, load, loss_fn=loss).influence(case.tests)
    assert_close(found.sort(1).values, truth.sort(1).values)  # every example at all checkpoints, in the loader's order


def test_inputs_of_several_kinds_and_lengths():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor, times: float = 1.0) -> Tensor:
            return times * self.a(x).sum(1) + self.b(y)

    model, state = Two().double(), None
    state = copy.deepcopy(model.state_dict())

    def batch(n: int, length: int) -> tuple:
        x = torch.randn(n, length, 3, dtype=torch.float64)
        return x, torch.randn(n, 4, dtype=torch.float64), 2.0, torch.randint(0, 2, (n,))

    batches = [batch(2, 3), batch(3, 5)]
    loader = DataLoader(batches, batch_size=None)
    tracin = TracInCP(model, loader, [state], loss_fn=CrossEntropy())

    def truth(times: float) -> Tensor:
        rows = []
        for x, y, _, label in batches:
            for i in range(len(x)):
                loss = F.cross_entropy(model(x[i : i + 1], y[i : i + 1], times), label[i : i + 1])
                rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        return torch.stack(rows)

    assert_close(tracin.influence(loader), truth(2.0) @ truth(2.0).T)
    assert_close(tracin.self_influence(), truth(2.0).square().sum(1))
    named = DataLoader([({"x": b[0], "y": b[1]}, b[3]) for b in batches], batch_size=None)
    by_name = TracInCP(model, named, [state], loss_fn=CrossEntropy())
    assert_close(by_name.self_influence(), truth(1.0).square().sum(1))


def own_sum(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="sum")


def rounded(out: Tensor, y: Tensor) -> Tensor:  # cannot be done for all rows at once
    return out[0, int(y[0])] * (2.0 if float(out.detach().sum()) > 0 else 1.0)


def each(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


each.reduction = "none"


@pytest.mark.parametrize(
    "loss",
    [own_sum, rounded, each, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5, 9]).double()), nn.MultiMarginLoss()],
    ids=["sum", "rounded", "each", "weighted", "other"],
)
def test_a_loss_is_that_of_a_batch_of_one(case, loss):
    tracin = TracInCP(case.model, case.data, case.files, load, loss_fn=loss, batch_size=4)
    assert_close(tracin.influence(case.tests), reference(case, lambda o, y: loss(o, y).sum()))


def test_outputs_of_several_kinds_and_labels_that_are_no_tensors(case):
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = case.model

        def forward(self, x: Tensor) -> dict:
            return {"logits": self.body(x), "name": "cnn"}

    def loss(out: dict, labels: list[str]) -> Tensor:
        return F.cross_entropy(out["logits"], torch.tensor(["abc".index(label) for label in labels]))

    x, y = case.data.tensors
    batches = [(x[i : i + 4], ["abc"[label] for label in y[i : i + 4]]) for i in (0, 4)]
    model = Told().eval()
    named = [{f"body.{n}": t for n, t in torch.load(f, weights_only=True).items()} for f in case.files]
    told = TracInCP(model, DataLoader(batches, batch_size=None), named, loss_fn=loss).self_influence()
    plain = TracInCP(case.model, case.data, case.files, lambda *a: load(*a) and 1.0, loss_fn=CrossEntropy())
    assert_close(told, plain.self_influence())


def test_outputs_are_the_losses_where_none_is_given(case):
    tracin = TracInCP(case.model, case.data, case.files, load, batch_size=4)
    assert_close(tracin.influence(case.tests), reference(case, lambda o, _: o.sum()))


def test_elements_of_outputs_are_summed_or_averaged_as_the_loss_says():
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    data = TensorDataset(x, y)
    found = {
        r: TracInCP(model, data, [model.state_dict()], loss_fn=Squares(reduction=r)).self_influence()
        for r in ("none", "sum", "mean")
    }
    slope = 2 * (model(x) - y).detach()
    truth = slope.square().sum(1) * (x.square().sum(1) + 1)  # of the weight and of the bias
    assert_close(found["none"], truth)
    assert_close(found["sum"], truth)
    assert_close(found["mean"], truth / 4)


def test_losses_that_cannot_be_are_refused(case):
    args = (case.model, case.data, case.files, load, None)
    assert repr(TracInCP(*args, CrossEntropy())) == f"TracInCP({type(case.model).__name__})"
    odd = Squares()
    odd.reduction = "median"
    with pytest.raises(ArgumentError, match="must be 'none', 'sum' or 'mean', got 'median'"):
        TracInCP(*args, odd)
    with pytest.raises(ArgumentError, match="must be 'none', 'sum' or 'mean', got 'median'"):
        TracInCP(*args, CrossEntropy(), test_loss_fn=odd)
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        TracInCP(*args, "cross entropy")
    with pytest.raises(OutputError, match=r"one number of a batch, got \(3,\)"):
        TracInCP(*args, lambda out, y: out.sum(0)).self_influence()
    total = lambda out, y: F.cross_entropy(out, y)  # to give it a reduction
    total.reduction = "none"
    with pytest.raises(OutputError, match="one row for each of"):
        TracInCP(*args, total).self_influence()


def test_checkpoints_in_folders_lists_and_objects(case, tmp_path):
    model = case.model
    state = {n: t + 1 for n, t in model.state_dict().items()}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"learning_rate": 0.5, **state}, folder / "net-2.pt")
    torch.save({"module." + n: t for n, t in model.state_dict().items()}, folder / "net-10.pt")
    torch.save({"model_state_dict": state, "learning_rate": 0.25, "epoch": 3}, folder / "net-30.pt")
    save_file(state, folder / "net-4.safetensors", {"learning_rate": "0.125"})
    options = {"loss_fn": CrossEntropy()}
    whole = TracInCP(model, case.data, str(folder), **options)
    assert [c.rpartition("/")[2] for c in whole.checkpoints] == [
        "net-2.pt",
        "net-4.safetensors",
        "net-10.pt",
        "net-30.pt",
    ]
    one = TracInCP(model, case.data, [state], **options).self_influence()
    plain = TracInCP(model, case.data, iter([model.state_dict()]), **options).self_influence()
    assert_close(whole.self_influence(), (0.5 + 0.125 + 0.25) * one + plain)
    other = copy.deepcopy(model)
    assert load_checkpoint(other, folder / "net-4.safetensors") == 0.125
    assert_close(other.state_dict(), state)
    for nothing in ([], str(tmp_path / "none"), [None]):
        with pytest.raises(ArgumentError, match="checkpoints must be"):
            TracInCP(model, case.data, nothing, **options)


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_checkpoints_that_could_do_harm_or_do_not_fit_are_refused(case, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    torch.save({"w": Evil()}, tmp_path / "worse.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    torch.save({"0.weight": torch.ones(1)}, tmp_path / "other.pt")
    torch.save({"weights": {"0.weight": 1}, "epoch": 3}, tmp_path / "notes.pt")
    for name, told in {
        "bad.pt": "pickle can run code|not a whole",
        "worse.pt": "pickle can run code",
        "broken.safetensors": "not a whole safetensors",
        "other.pt": "do not fit Sequential",
        "notes.pt": "'weights', 'epoch' in .* are none",
    }.items():
        with pytest.raises(ArgumentError, match=told):
            load_checkpoint(case.model, tmp_path / name)
    assert not Evil.ran
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(case.model, "nowhere.pt")
    with pytest.raises(TypeError, match="file or a state_dict, got int"):
        load_checkpoint(case.model, 3)


def test_the_model_is_given_back_as_it_was_also_after_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    model[0].requires_grad_(False)
    model[2].weight.grad = torch.ones(2, 4)
    before = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in model.parameters()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    other = {n: t + 1 for n, t in model.state_dict().items()}

    def harmful(model: nn.Module, fail: bool) -> float:
        model.load_state_dict(other, assign=True)
        model.train().requires_grad_()
        model.eval()
        if fail:
            raise KeyError("the learning rate")
        return 1.0

    data = TensorDataset(torch.randn(4, 3), torch.randint(0, 2, (4,)))
    for fail in (False, True):
        tracin = TracInCP(model, data, [False, fail], harmful, loss_fn=CrossEntropy())
        if fail:
            with pytest.raises(KeyError):
                tracin.self_influence()
        else:
            tracin.influence(data[:2], aggregate=True)
        for p, (q, value, wanted, grad) in zip(model.parameters(), before, strict=True):
            assert p is q
            assert torch.equal(p, value)
            assert p.requires_grad is wanted
            assert p.grad is grad
        assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
        assert not any(m.training for m in model.modules())


def test_what_cannot_be_asked_is_refused(case):
    args = (case.model, case.data, case.files, load)
    with pytest.raises(ArgumentError, match="has no layer 'last'; its layers are 0, 1"):
        TracInCP(*args, ["last"])
    with pytest.raises(ArgumentError, match="batch_size must be an int"):
        TracInCP(*args, batch_size=None)
    tracin = TracInCP(*args, loss_fn=CrossEntropy())
    with pytest.raises(ArgumentError, match="self_influence"):
        tracin.influence(None)
    with pytest.raises(ArgumentError, match="k must be a whole number of at least 1, got 0"):
        tracin.influence(case.tests, k=0)
    with pytest.raises(TypeError, match="tuple of the model's inputs and, last, the labels, got Tensor"):
        tracin.influence(case.tests[0])
    with pytest.raises(TypeError, match="first of the model's inputs must be a tensor, got list"):
        tracin.influence(([1, 2], torch.tensor([0, 1])))
    nothing = tuple(t[:0] for t in case.tests)
    for empty in (nothing, DataLoader(TensorDataset(*nothing))):
        for ask in (tracin.influence, tracin.self_influence, tracin.compute_intermediate_quantities):
            with pytest.raises(ArgumentError, match="there are no examples"):
                ask(empty)
    assert tracin.influence(case.tests, k=99).indices.shape == (4, 7)


def test_progress_is_told_in_examples_and_checkpoints(case, capsys):
    tracin = TracInCP(case.model, case.data, case.files, load, loss_fn=CrossEntropy())
    tracin.influence(case.tests, show_progress=True)
    assert "TracInCP influence: 100%" in (told := capsys.readouterr().err)
    assert "14/14" in told
    tracin.self_influence(show_progress=True)
    assert "TracInCP self influence: 100%" in capsys.readouterr().err
    tracin.self_influence()
    assert not capsys.readouterr().err


def test_self_influence_finds_mislabelled_digits():
    """Among the tenth with the highest self influence at least six in ten are mislabelled, where chance finds one."""
    data = digits("train")
    x, y = data.x[:500].flatten(1), data.y[:500].clone()
    flipped = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:50]
    y[flipped] = (y[flipped] + 1 + torch.randint(0, 9, (50,), generator=torch.Generator().manual_seed(1))) % 10
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    checkpoints = []
    for epoch in range(100):
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.5 * g
        if epoch % 25 == 24:
            checkpoints.append(copy.deepcopy(model.state_dict()))
    found = TracInCP(model.eval(), TensorDataset(x, y), checkpoints, loss_fn=CrossEntropy()).self_influence()
    highest = found.topk(50).indices
    assert torch.isin(highest, flipped).float().mean() >= 0.6
    fast = TracInCPFast(model, "2", TensorDataset(x, y), checkpoints, loss_fn=CrossEntropy()).self_influence()
    assert torch.isin(fast.topk(50).indices, flipped).float().mean() >= 0.6


@pytest.mark.parametrize("proponents", [True, False])
def test_of_equal_influences_the_first_come_first_in_any_pieces(proponents):
    scores = torch.randint(0, 4, (3, 20)).float()
    truth = scores.sort(dim=1, descending=proponents, stable=True)
    for size in (1, 6, 20):
        indices, highest = most_influential(scores.split(size, 1), 7, proponents)
        assert torch.equal(indices, truth.indices[:, :7])
        assert torch.equal(highest, truth.values[:, :7])


def test_nearest_neighbours_are_exact_in_any_number_of_parts():
    data, query = torch.randn(50, 2, 3), torch.randn(4, 2, 3)
    truth = (query.flatten(1) @ data.flatten(1).T).topk(6)
    for batch in (7, 50, 100):
        nearest = ExactNearestNeighbors(batch)
        nearest.setup(data)
        indices, products = nearest.get_nearest_neighbors(query, 6)
        assert torch.equal(indices, truth.indices)
        assert_close(products, truth.values)
    with pytest.raises(ArgumentError, match="call setup"):
        ExactNearestNeighbors().get_nearest_neighbors(query, 1)


def test_trees_of_annoy_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "annoy", None)
    with pytest.raises(ImportError, match="pip install annoy, or take ExactNearestNeighbors"):
        AnnoyNearestNeighbors()

    class AnnoyIndex:  # the part of the package's own interface that is used
        def __init__(self, size: int, metric: str) -> None:
            assert metric == "dot"
            self.size, self.rows, self.trees = size, {}, 0

        def set_seed(self, seed: int) -> None:
            pass

        def add_item(self, i: int, row) -> None:
            assert len(row) == self.size
            self.rows[i] = torch.as_tensor(row)

        def build(self, trees: int, n_jobs: int) -> None:
            self.trees = trees

        def get_nns_by_vector(self, row, k: int, include_distances: bool):
            assert self.trees
            best = (torch.stack(list(self.rows.values())) @ torch.as_tensor(row)).topk(k)
            return best.indices.tolist(), best.values.tolist()

    monkeypatch.setitem(sys.modules, "annoy", namedtuple("Module", "AnnoyIndex")(AnnoyIndex))
    data, query = torch.randn(20, 5), torch.randn(3, 5)
    exact, trees = ExactNearestNeighbors(), AnnoyNearestNeighbors(3)
    for nearest in (exact, trees):
        nearest.setup(data)
    for one, two in zip(exact.get_nearest_neighbors(query, 4), trees.get_nearest_neighbors(query, 4), strict=True):
        assert_close(one, two)
