"""What the laws of attributions are asked of: every method of the room, on models with a layer to name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import isabstract, isclass, signature
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from robustx import attribution
from robustx.attribution import Attribution, LayerAttribution, LayerGradCam, NeuronAttribution

METHODS = [c for c in vars(attribution).values() if isclass(c) and issubclass(c, Attribution) and not isabstract(c)]
METHODS.remove(attribution.DataLoaderAttribution)  # it is asked about data loaders
METHODS = [c for c in METHODS if not c.__module__.startswith("robustx.attribution.text")]  # these, about prompts
METHODS.remove(attribution.LimeBase)  # it is made of a user's functions, and explains one example


def attended(here):
    """Positions [B, C, ...] that attend to one another, as one row [B, C * P]."""
    tokens = here.flatten(2).mT
    return torch.tanh((tokens @ tokens.mT).softmax(-1) @ tokens).flatten(1)


class Pair(nn.Module):
    """Two inputs, [B, 1, 5] and [B, 2, 3], and a number for each example; smooth, [B, 4]; its layer is [B, 2, 3]."""

    shapes = (1, 5), (2, 3)

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.layer, self.next = nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3))), nn.Identity()
        self.scale = scale
        self.double()

    def forward(self, a, b, more=0.0, *, shift=0.0):
        here = self.layer(torch.tanh(self.a(a.flatten(1))) * torch.tanh(self.b(b.flatten(1))) * (1 + more))
        return self.head(attended(self.next(here))) * self.scale + shift


class Net(nn.Module):
    """One input [B, 2, 3, 3]; smooth, [B, 4]; its layer is [B, 2, 3, 1], and does not see the input's last column."""

    shapes = ((2, 3, 3),)

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.head = nn.Linear(12, 8), nn.Linear(6, 4)
        self.layer, self.next = nn.Sequential(nn.Linear(8, 6), nn.Unflatten(1, (2, 3, 1))), nn.Identity()
        self.double().to(dtype)

    def forward(self, x):
        return self.head(attended(self.next(self.layer(torch.tanh(self.first(x[..., :2].flatten(1)))))))


class FlatPair(Pair):
    """With a layer [B, 6]."""

    def __init__(self, *args):
        super().__init__(*args)
        self.layer, self.next = self.layer


class FlatNet(Net):
    """With a layer [B, 6]."""

    def __init__(self, *args):
        super().__init__(*args)
        self.layer, self.next = self.layer


def unit(here):
    """Neuron 2 of either model's layer."""
    return here.flatten(1)[:, 2]


def some(inputs):
    """A distribution of three baselines, in the form of the inputs."""

    def rows(t):
        return torch.linspace(-0.9, 1.0, 3 * t.shape[1:].numel(), device=t.device).reshape(3, *t.shape[1:]).to(t)

    return tree_map(rows, inputs)


def columns(inputs):
    """A feature for each place on the last axis of each input, in the form of the inputs."""
    if isinstance(inputs, Mapping):
        return dict(zip(sorted(inputs), columns([inputs[n] for n in sorted(inputs)]), strict=True))
    if isinstance(inputs, torch.Tensor):
        return columns([inputs])[0] if inputs.ndim else None
    if not isinstance(inputs, tuple | list) or not all(isinstance(t, torch.Tensor) for t in inputs):
        return None  # these are no inputs
    ends = torch.tensor([t.shape[-1] for t in inputs]).cumsum(0).tolist()
    return tuple(torch.arange(end - t.shape[-1], end) for t, end in zip(inputs, ends, strict=True))


@dataclass(frozen=True, eq=False)
class Case:
    """A method; ``case(model, inputs, ...)`` is its attribution of output 2, or of neuron 2 of the layer.

    Args:
        method: the class.
        usual: arguments that are given unless others are.
        over: the method that it wraps.
        exact: arguments with which it adds up to the score's rise, ``within`` so much; None: it never does.
        coarse: arguments with which it does not, but where it says by how much; None: it does not say.
        lacks: the laws that it cannot meet, and why.
        note: what tells it from another case of the method.
        made: with what else it is made.
    """

    method: type[Attribution]
    usual: Mapping[str, Any] = field(default_factory=dict)
    over: "Case | None" = None
    exact: Mapping[str, Any] | None = None
    within: float = 1e-6
    coarse: Mapping[str, Any] | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, model):
        if self.over is not None:
            return self.method(self.over.bind(model))
        return self.method(model, *([model.layer] if self.layered else []), **self.made)

    def __call__(self, model, inputs, target=..., **options):
        return self.ask(self.bind(model), inputs, target, **options)

    def ask(self, bound, inputs, target=..., /, **options):
        """What a method that :meth:`bind` made says."""
        if target is ...:
            target = unit if self.neuron else 2
        aim = {} if self.target is None or self.target in options else {self.target: target}
        usual = self.usual if self.over is None else {**self.over.usual, **self.usual}
        given = {**usual, **aim, **options}
        if given.get("feature_mask") is columns:
            given["feature_mask"] = columns(inputs)
        return bound.attribute(inputs, **given)

    def takes(self, name):
        own = name in signature(self.method.attribute).parameters
        return own or (self.over is not None and self.over.takes(name))

    def meets(self, law):
        return law not in self.lacks

    @property
    def layered(self):
        """Whether it is made with a layer of the model."""
        return "layer" in signature(self.method).parameters

    @property
    def target(self):
        """The argument that says what is attributed, if any does."""
        return next((n for n in ("target", "neuron_selector") if self.takes(n)), None)

    @property
    def neuron(self):
        return self.target == "neuron_selector"

    @property
    def distribution(self):
        """Whether baselines are a distribution."""
        return self.usual.get("baselines") is some

    @property
    def drawn(self):
        """Whether it draws at random, by key."""
        return "seed" in self.usual

    @property
    def at_input(self):
        return self._stands() == "input"

    @property
    def chunk(self):
        """The argument that caps what goes through the model at once."""
        return next(n for n in ("internal_batch_size", "perturbations_per_eval") if self.takes(n))

    def shapes(self, model, inputs):
        """Of the attributions."""
        b = len(inputs[0])
        layer = {Pair: (2, 3), Net: (2, 3, 1)}[type(model)]
        match self._stands():
            case "input":
                return [t.shape for t in inputs]
            case "map":
                return [torch.Size((b, 1, *layer[1:]))]
            case "layer":
                return [torch.Size((b, *layer))]
            case "tokens":
                return [torch.Size((b, 2))]  # three, without the first
            case "pairs":
                return [torch.Size((b, *2 * (sum(t.shape[-1] for t in inputs),)))]

    def _stands(self):
        method = self.method if self.over is None else self.over.method
        if method in (attribution.AttentionRollout, attribution.TransformerRelevance):
            return "tokens"
        if method is attribution.ShapleyInteractions:
            return "pairs"
        if issubclass(method, LayerAttribution) and not issubclass(method, NeuronAttribution):
            return "map" if issubclass(method, LayerGradCam) else "layer"
        return "input"

    def __str__(self):
        return " ".join(filter(None, (self.method.__name__, self.note)))


ROUGH = {"n_steps": 1, "method": "riemann_left"}
DRAWN = {"baselines": some, "seed": 0}
MEAN = "it adds up in the mean over many draws only"
RULED = {"plain": "rules say how gradients pass an operation"}
KEPT = RULED | {
    "complete": "it keeps the score itself, less what biases take",
    "words": "it says in its own words what no relevance passes",
}
FEW = {"n_steps": 8}
OWN_PATH = {"linear": "each score has a path of its own", "idle": "what the model does not use moves first"}
RIDGE = attribution.SkLearnRidge(alpha=0.01)  # lasso, which is usual, takes the scores of these models for noise
FITTED = {"gradient": "it needs values only", "unused": "chance leaves something to every feature"}
VALUES = {"gradient": "it needs values only", "one": "several numbers, several maps"}
COLUMNS = {"feature_mask": columns}
MASKED = "every place shows a mean score"
WIDE = {"unused": "a window covers more than one element"}
OTHERS = {"alone": "features take their values from other examples", "idle": "draws follow the number of features"}
SQUARES = {"linear": "squares of gradients share out what happens"}

TABLE = [
    Case(attribution.FeatureAblation, lacks=VALUES),
    Case(attribution.LayerFeatureAblation, lacks=VALUES),
    Case(attribution.NeuronFeatureAblation, lacks=VALUES),
    Case(attribution.Occlusion, {"sliding_window_shapes": 1}, lacks=VALUES),
    Case(attribution.Occlusion, {"sliding_window_shapes": 2}, lacks=VALUES | WIDE, note="by pairs"),
    Case(attribution.FeaturePermutation, {"seed": 0}, lacks=VALUES | OTHERS),
    Case(attribution.LayerFeaturePermutation, {"seed": 0}, lacks=VALUES | OTHERS),
    Case(attribution.KernelShap, {"n_samples": 300, "seed": 0}, exact={}, lacks=FITTED),
    Case(attribution.Lime, {"n_samples": 60, "seed": 0}, made={"interpretable_model": RIDGE}, lacks=FITTED),
    Case(attribution.ShapleyValueSampling, {"n_samples": 4, "seed": 0}, exact={}, lacks=VALUES),
    *(
        Case(
            attribution.ShapleyValueSampling, COLUMNS | {"n_samples": 4, "seed": 0, "sampling": s}, lacks=VALUES, note=s
        )
        for s in ("antithetic", "stratified")
    ),
    Case(attribution.ShapleyValues, COLUMNS, lacks=VALUES),
    Case(attribution.OwenValues, COLUMNS, lacks=VALUES),
    Case(attribution.OwenValues, {"n_samples": 4, "seed": 1}, exact={}, lacks=VALUES, note="drawn"),
    Case(attribution.BanzhafValues, COLUMNS, lacks=VALUES),
    Case(attribution.BanzhafValues, {"n_samples": 8, "seed": 1}, lacks=FITTED | VALUES, note="drawn"),
    Case(attribution.ShapleyInteractions, COLUMNS, lacks=VALUES),
    Case(attribution.ShapleyInteractions, COLUMNS | {"n_samples": 2, "seed": 1}, lacks=VALUES, note="drawn"),
    Case(
        attribution.RISE,
        {"n_samples": 40, "seed": 0},
        lacks=VALUES | dict.fromkeys(("start", "unused", "shift"), MASKED),
    ),
    Case(
        attribution.SobolAttribution, {"n_samples": 8, "seed": 0}, lacks=VALUES | {"linear": "variances have no sign"}
    ),
    Case(
        attribution.ExtremalPerturbation,
        {"n_steps": 30, "area": 0.5},
        lacks=dict.fromkeys(("linear", "start", "unused"), "masks have an area, and no scale"),
    ),
    Case(attribution.Saliency, lacks={"linear": "sizes have no sign"}),
    Case(attribution.Saliency, {"abs": False}, note="signed"),
    Case(attribution.InputXGradient),
    Case(attribution.IntegratedGradients, exact={}, coarse=ROUGH),
    Case(attribution.LayerIntegratedGradients, exact={}, coarse=ROUGH),
    Case(attribution.NeuronIntegratedGradients, exact={}),
    *(
        Case(m, FEW, exact={"n_steps": 300}, within=1e-3, coarse={"n_steps": 1}, lacks=OWN_PATH)
        for m in (attribution.GuidedIG, attribution.LayerGuidedIG)
    ),
    *(Case(m, FEW, exact={"n_steps": 3}, lacks=SQUARES) for m in (attribution.IDGI, attribution.LayerIDGI)),
    Case(attribution.BlurIG, FEW, lacks={"complete": "it starts from its own inputs, blurred"}),
    Case(attribution.GradientShap, DRAWN | {"stdevs": 0.1}, coarse={"stdevs": 0.0}, lacks={"complete": MEAN}),
    Case(attribution.LayerGradientShap, DRAWN | {"stdevs": 0.1}, coarse={"stdevs": 0.0}, lacks={"complete": MEAN}),
    Case(attribution.NeuronGradientShap, DRAWN | {"stdevs": 0.1}),
    Case(attribution.ExpectedGradients, DRAWN | {"n_samples": 20}, coarse={}, lacks={"complete": MEAN}),
    Case(attribution.DeepLift, exact={}, lacks=RULED),
    Case(attribution.LayerDeepLift, exact={}),
    Case(attribution.NeuronDeepLift, exact={}),
    Case(attribution.DeepLiftShap, {"baselines": some}, exact={}, lacks=RULED),
    Case(attribution.LayerDeepLiftShap, {"baselines": some}, exact={}),
    Case(attribution.NeuronDeepLiftShap, {"baselines": some}, exact={}),
    *(
        Case(m, lacks=KEPT)
        for m in (attribution.LRP, attribution.LayerLRP, attribution.AttnLRP, attribution.LayerAttnLRP)
    ),
    Case(attribution.GuidedBackprop, lacks=RULED),
    Case(attribution.Deconvolution, lacks=RULED),
    Case(attribution.NeuronGuidedBackprop),
    Case(attribution.NeuronDeconvolution),
    Case(attribution.GuidedGradCam, lacks=RULED | {"linear": "it is a product of gradients"}),
    Case(
        attribution.NoiseTunnel,
        {"nt_samples": 3, "stdevs": 0.1, "seed": 0},
        over=Case(attribution.IntegratedGradients),
        coarse=ROUGH | {"stdevs": 0.0},
        lacks={"complete": "noise moves the inputs", "start": "noise moves the inputs"},
    ),
    Case(
        attribution.NoiseTunnel,
        {"nt_samples": 3, "stdevs": 0.1, "seed": 0},
        over=Case(attribution.LayerGradientXActivation),
        note="at a layer",
    ),
    Case(
        attribution.NoiseTunnel,
        {"nt_samples": 3, "stdevs": 0.1, "seed": 0, "nt_type": "vargrad"},
        over=Case(attribution.NeuronGradient),
        note="of a neuron",
    ),
    Case(attribution.LayerActivation, lacks={"gradient": "it needs values only"}),
    Case(attribution.LayerGradientXActivation),
    Case(attribution.LayerGradCam),
    Case(attribution.LayerGradCamPlusPlus, lacks={"linear": "gradients stand in the denominator too"}),
    Case(attribution.LayerHiResCam),
    Case(attribution.LayerCam, lacks={"linear": "only positive gradients count"}),
    Case(
        attribution.LayerConductance,
        exact={"n_steps": 400, "method": "riemann_trapezoid"},
        within=5e-3,
        coarse=ROUGH,
        lacks={"ends": "a step lies between two points"},
    ),
    Case(attribution.InternalInfluence, lacks={"start": "gradients are not multiplied by the way"}),
    Case(attribution.NeuronGradient),
    Case(attribution.NeuronConductance, {"neuron_selector": unit}),
    Case(attribution.AttentionRollout, lacks={"gradient": "it needs values only"}),
    Case(attribution.TransformerRelevance, lacks={"linear": "only what is positive counts, and a token counts itself"}),
]
CASES = TABLE + [Case(m) for m in METHODS if m not in {c.method for c in TABLE}]


def inputs_of(model, count=5, dtype=torch.float64, seed=3):
    """Random inputs, as a tuple."""
    torch.manual_seed(seed)
    return tuple(torch.randn(count, *s, dtype=torch.float64).to(dtype) for s in model.shapes)


def parts(attributions):
    return (attributions,) if isinstance(attributions, torch.Tensor) else tuple(attributions)
