"""Any function of the output as target: masks, boxes and spans of tokens; models of dicts; several targets at once."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from told import told
from torch import nn
from torch.testing import assert_close

from robustx.attribution import (
    IDGI,
    LRP,
    AttnLRP,
    BlurIG,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    GradientShap,
    GuidedIG,
    InputXGradient,
    IntegratedGradients,
    LayerConductance,
    LayerDeepLift,
    LayerGradCam,
    LayerGradientXActivation,
    LayerGuidedIG,
    LayerIDGI,
    LayerIntegratedGradients,
    NeuronDeepLift,
    NoiseTunnel,
    Saliency,
)
from robustx.engine import Each
from robustx.engine.rules import RuleError


class Segmenter(nn.Module):
    """Pictures [B, 2, 6, 6] -> logits of each pixel [B, 3, 6, 6]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.double()

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)))


class Detector(nn.Module):
    """Pictures [B, 2, 6, 6] -> four boxes with their corners and the logits of three classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.boxes, self.classes = nn.Conv2d(2, 5, 3), nn.Linear(80, 16), nn.Linear(80, 12)
        self.double()

    def forward(self, x):
        here = torch.relu(self.layer(x)).flatten(1)
        corner, size = self.boxes(here).unflatten(1, (4, 4)).split(2, -1)
        return {
            "boxes": torch.cat([corner, corner + 1 + size.square()], -1),
            "logits": self.classes(here).view(-1, 4, 3),
        }


class Reader(nn.Module):
    """Embedded tokens [B, 4, 7] -> where an answer starts and ends [B, 7] each, with a mask of what is no token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.head = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 2, 1)
        self.double()

    def forward(self, embeddings, attention_mask=None):
        start, end = self.head(torch.nn.functional.gelu(self.layer(embeddings))).unbind(1)
        if attention_mask is not None:
            start, end = (t.masked_fill(attention_mask == 0, -1e4) for t in (start, end))
        return SimpleNamespace(start=start, end=end)


MASK = torch.zeros(6, 6, dtype=torch.float64)
MASK[1:4, 2:5] = 1
BOX = torch.tensor([0.0, 0.1, 1.2, 1.0], dtype=torch.float64)


def overlap(boxes, box):
    """Intersection over union of corners [N, 4] with one box."""
    sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0)
    both = sides[:, 0] * sides[:, 1]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return both / (area + (box[2] - box[0]) * (box[3] - box[1]) - both)


@dataclass(frozen=True)
class Task:
    """A model, the shape of its input, and two functions of what it returns."""

    model: type[nn.Module]
    shape: tuple[int, ...]
    targets: tuple

    def inputs(self, count=4):
        torch.manual_seed(3)
        return torch.randn(count, *self.shape, dtype=torch.float64)

    def __str__(self):
        return self.model.__name__


TASKS = [
    Task(
        Segmenter,
        (2, 6, 6),
        (
            lambda out: (out[:, 1] * MASK).sum((1, 2)),
            lambda out: out.log_softmax(1)[:, 2, 2:4].mean((1, 2)),
        ),
    ),
    Task(
        Detector,
        (2, 6, 6),
        (
            lambda out: overlap(out["boxes"][:, 1], BOX),
            lambda out: out["logits"].softmax(-1)[:, :, 1].amax(1),
        ),
    ),
    Task(
        Reader,
        (4, 7),
        (
            lambda out: out.start.log_softmax(1)[:, 2] + out.end.log_softmax(1)[:, 4],
            lambda out: out.start[:, 1:4].mean(1) - out.end[:, 5],
        ),
    ),
]
every = pytest.mark.parametrize("task", TASKS, ids=str)
which = pytest.mark.parametrize("k", [0, 1])


class Composed(nn.Module):
    """A function of the output as the model's last layer."""

    def __init__(self, model, target):
        super().__init__()
        self.model, self.target, self.layer = model, target, model.layer

    def forward(self, *args, **kwargs):
        return self.target(self.model(*args, **kwargs))


METHODS = [
    (Saliency, {}),
    (InputXGradient, {}),
    (IntegratedGradients, {"n_steps": 5}),
    (GradientShap, {"seed": 0}),
    (DeepLift, {}),
    (DeepLiftShap, {}),
    (GuidedIG, {"n_steps": 5}),
    (IDGI, {"n_steps": 5}),
    (BlurIG, {"n_steps": 5}),
    (FeatureAblation, {}),
    (LayerGradCam, {}),
    (LayerGradientXActivation, {}),
    (LayerIntegratedGradients, {"n_steps": 5}),
    (LayerDeepLift, {}),
    (LayerConductance, {"n_steps": 5}),
    (LayerGuidedIG, {"n_steps": 5}),
    (LayerIDGI, {"n_steps": 5}),
]


def name(value):
    return getattr(value, "__name__", "")


method_and_options = pytest.mark.parametrize("method, options", METHODS, ids=name)


def bound(method, model):
    return method(model, model.layer) if name(method).startswith("Layer") else method(model)


def asked(method, model, x, **options):
    if method in (GradientShap, DeepLiftShap):
        options["baselines"] = torch.linspace(-1, 1, 3 * x[0].numel()).to(x).view(3, *x.shape[1:])
    return bound(method, model).attribute(x, **options)


# --- what a function of the output means --------------------------------------------------------------------


@every
@which
@method_and_options
def test_a_function_of_the_output_is_a_last_layer(task, method, options, k):
    model, x, target = task.model(), task.inputs(), task.targets[k]
    found = asked(method, model, x, target=target, **options)
    assert_close(found, asked(method, Composed(model, target), x, **options), rtol=0, atol=1e-12)
    assert found.abs().max() > 0


@every
@pytest.mark.parametrize("method, options", [m for m in METHODS if m[0] is not FeatureAblation], ids=name)
def test_several_functions_at_once(task, method, options):
    model, x = task.model(), task.inputs()
    found = asked(method, model, x, target=Each(task.targets), **options)
    alone = [asked(method, model, x, target=t, **options) for t in task.targets]
    assert_close(found, torch.stack(alone, 1), rtol=0, atol=1e-12)


@every
@which
def test_saliency_is_the_gradient(task, k):
    model, x = task.model(), task.inputs().requires_grad_()
    (g,) = torch.autograd.grad(task.targets[k](model(x)).sum(), x)
    assert_close(Saliency(model).attribute(x.detach(), task.targets[k], abs=False), g, rtol=0, atol=1e-12)


@every
@which
def test_differences_add_up(task, k):
    """Of the function, not of the logits: sums of attributions are its rise from the baseline."""
    model, x, target = task.model(), task.inputs(), task.targets[k]
    start = 0.3 * x.flip(0)
    rise = (target(model(x)) - target(model(start))).detach()
    integrated = IntegratedGradients(model).attribute(x, start, target, n_steps=3000, method="riemann_middle")
    for found, within in (
        (DeepLift(model).attribute(x, start, target), 1e-10),
        (LayerDeepLift(model, model.layer).attribute(x, start, target), 1e-10),
        (IDGI(model).attribute(x, start, target, n_steps=4), 1e-10),
        (integrated, 2e-3),
    ):
        assert_close(found.flatten(1).sum(1), rise, rtol=0, atol=within)


@every
@which
def test_activation_maps(task, k):
    """Grad-CAM written out: channels weigh the mean of their gradient."""
    model, x, seen = task.model(), task.inputs(), []
    with model.layer.register_forward_hook(lambda _, __, out: seen.append(out)):
        out = task.targets[k](model(x))
    (g,) = torch.autograd.grad(out.sum(), seen[0])
    weights = g.flatten(2).mean(2)
    expected = torch.einsum("bc,bc...->b...", weights, seen[0].detach())[:, None]
    assert_close(LayerGradCam(model, model.layer).attribute(x, task.targets[k]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [LRP, AttnLRP])
def test_relevance_passes_functions_of_the_output(method):
    """What is explained is the function's value, and all of it comes back where nothing has a bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    for target in (lambda out: out[:, 0] * out[:, 1], lambda out: torch.maximum(out[:, 0], 2 * out[:, 1]) - out[:, 2]):
        found = method(model).attribute(x, target=target)
        assert_close(found.sum(1), target(model(x)).detach(), rtol=0, atol=1e-9)


# --- functions that rules have to pass ---------------------------------------------------------------------


def test_a_function_of_a_neuron_adds_up():
    model, x = Segmenter(), TASKS[0].inputs()
    power = lambda here: here.square().sum((1, 2, 3))
    found = NeuronDeepLift(model, model.layer).attribute(x, power, baselines=0.5)
    rise = power(model.layer(x)) - power(model.layer(torch.full_like(x, 0.5)))
    assert_close(found.flatten(1).sum(1), rise.detach(), rtol=0, atol=1e-10)


def test_what_has_no_rule_is_named():
    model, x = Segmenter(), TASKS[0].inputs()
    target = lambda out: torch.cumprod(out[:, :, 0, 0], 1)[:, -1]
    with pytest.raises(RuleError) as caught:
        DeepLift(model).attribute(x, target=target)
    told(caught.value, ["no rule", "cumprod", "otherwise='gradient'"])
    plain = DeepLift(model, otherwise="gradient").attribute(x, target=target)
    assert torch.isfinite(plain).all()


def test_several_functions_share_the_passes():
    model, x, passes = Segmenter(), TASKS[0].inputs(), []
    model.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    DeepLift(model).attribute(x, target=TASKS[0].targets[0])
    one = sum(passes)
    passes.clear()
    DeepLift(model).attribute(
        x, target=Each([*TASKS[0].targets, (1, 2, 3), [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 5, 5)]])
    )
    assert sum(passes) == one


# --- what belongs to each example ---------------------------------------------------------------------------


@method_and_options
def test_a_mask_for_each_example_is_a_further_argument(method, options):
    """It follows its example wherever that goes, which no function of the output alone could do."""
    model, x = Segmenter(), TASKS[0].inputs()
    masks = (torch.rand(4, 6, 6) > 0.5).double()

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.layer = model, model.layer

        def forward(self, x, mask):
            return (self.model(x)[:, 1] * mask).sum((1, 2))

    found = asked(method, Masked(), x, additional_forward_args=masks, **options)
    for i in range(4):
        alone = asked(
            method, model, x[i : i + 1], target=lambda out, i=i: (out[:, 1] * masks[i]).sum((1, 2)), **options
        )
        assert_close(found[i : i + 1], alone, rtol=0, atol=1e-10)


def test_noise_keeps_masks_with_their_examples():
    x, masks = TASKS[0].inputs(), (torch.rand(4, 6, 6) > 0.5).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 36), nn.Unflatten(1, (6, 6))).double()
    wrapped = lambda x, mask: (model(x) * mask).sum((1, 2))
    found = NoiseTunnel(Saliency(wrapped)).attribute(
        x, nt_samples=3, stdevs=0.1, seed=0, additional_forward_args=masks, abs=False
    )
    expected = (masks.flatten(1) @ model[1].weight.detach()).view_as(x)  # a linear model has the same gradient anywhere
    assert_close(found, expected, rtol=0, atol=1e-12)


# --- models that take and return dicts ----------------------------------------------------------------------


class Tower(nn.Module):
    """As language models are called: token ids and a mask by keyword; an object comes back."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(6)
        self.embedding, self.mix, self.head = nn.Embedding(12, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.form = form
        self.double()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        here = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        mask = torch.ones(here.shape[:2]).to(here) if attention_mask is None else attention_mask.to(here)
        pooled = (torch.tanh(self.mix(here)) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.form(self.head(pooled))


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


FORMS = {
    "dict": (lambda out: {"logits": out}, lambda out: out["logits"][:, 1]),
    "nested": (lambda out: {"last": [None, {"logits": out}]}, lambda out: out["last"][1]["logits"][:, 1]),
    "object": (lambda out: Answer(out), lambda out: out.logits[:, 1]),
    "namespace": (lambda out: SimpleNamespace(logits=out), lambda out: out.logits[:, 1]),
    "tuple": (lambda out: (out, None), lambda out: out[0][:, 1]),
}
every_form = pytest.mark.parametrize("form, target", FORMS.values(), ids=FORMS)
IDS = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8], [9, 0, 0]])
PRESENT = (IDS != 0).long()


@every_form
@pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerDeepLift, LayerIDGI, LayerGuidedIG])
def test_token_ids_by_keyword(form, target, method):
    """At the embedding layer, padding left alone: attributions add up to the rise from nothing but padding."""
    model, plain = Tower(form), Tower(lambda out: out)
    method, bare = method(model, model.embedding), method(plain, plain.embedding)
    found, delta = method.attribute(
        {"input_ids": IDS},
        {"input_ids": 0},
        target,
        return_convergence_delta=True,
        additional_forward_kwargs={"attention_mask": PRESENT},
    )
    assert_close(found, bare.attribute(IDS, 0, 1, additional_forward_args=PRESENT))
    rise = plain(IDS, PRESENT)[:, 1] - plain(torch.zeros_like(IDS), PRESENT)[:, 1]
    assert_close(found.sum((1, 2)) - delta, rise.detach())
    assert delta.abs().max() < 1e-4
    assert (found[PRESENT == 0] == 0).all()


@every_form
@pytest.mark.parametrize("method", [Saliency, IntegratedGradients, DeepLift, GuidedIG, IDGI, FeatureAblation])
def test_embeddings_by_keyword(form, target, method):
    model, plain = Tower(form), Tower(lambda out: out)
    x = {"inputs_embeds": plain.embedding(IDS).detach()}
    kwargs = {"attention_mask": PRESENT}
    found = method(model).attribute(x, target=target, additional_forward_kwargs=kwargs)
    expected = method(plain).attribute(x, target=1, additional_forward_kwargs=kwargs)
    assert list(found) == ["inputs_embeds"] and found["inputs_embeds"].shape == (4, 3, 4)
    assert_close(found["inputs_embeds"], expected["inputs_embeds"])


@pytest.mark.parametrize("rows", [1, 3, None])
def test_what_an_object_hides_does_not_start_from_the_layer(rows):
    """The way around a layer shows in what the model returns: where that cannot be seen, all of it runs."""

    class Around(nn.Module):
        def __init__(self, form):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head, self.form = nn.Linear(4, 4).double(), nn.Linear(4, 3).double(), form

        def forward(self, x):
            return self.form(self.head(torch.tanh(self.layer(x)) + x))

    x = torch.randn(3, 4, dtype=torch.float64)
    expected = asked(LayerIntegratedGradients, Around(lambda out: out), x, target=1)
    for form, target in FORMS.values():
        found = asked(LayerIntegratedGradients, Around(form), x, target=target, internal_batch_size=rows)
        assert_close(found, expected, rtol=0, atol=1e-12)
