"""Attribution in robustx and in Captum: the same answers, in how many passes, how much time and memory?

    python benchmarks/attribution.py [--rounds 7] [--models mlp cnn resnet32 resnet224 vit] [--only Integrated Shap ...]
    python benchmarks/attribution.py --grow docs/pictures/memory.png

The contestants take turns in one process, each with its own defaults, on models with random weights. Each row tells
how far the answers are apart (as a share of the largest number; "drawn" where both draw at random), the rows that
went forward and backward for each sample (counted by hooks on the model), the processor's time as a share of Captum's
in the same round (median and quartiles), and the most memory that tensors took at once (counted by a mode that sees
every operation).
"""

import argparse
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as theirs
import torch
from contest import Run, apart, count, peak, shares, spread
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from robustx import attribution as ours


class Net(nn.Module):
    """A model with a layer deep in it, and how many samples it is asked about.

    ``lifts``: all its ReLUs are modules of their own and nothing else is curved, which Captum's DeepLift asks for.
    """

    def __init__(
        self, body: nn.Module, layer: nn.Module, shape: tuple[int, ...], batch: int = 8, lifts: bool = False
    ) -> None:
        super().__init__()
        self.body, self.layer, self.shape, self.batch, self.lifts = body, layer, shape, batch, lifts
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def mlp() -> Net:
    body = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 10))
    return Net(body, body[2], (64,), lifts=True)


def cnn() -> Net:
    """Convolutions in a row: Captum's DeepLift fails on residual networks and on a ReLU before max pooling."""
    widths = [3, 64, 64, 128, 128, 256, 256]
    layers = [
        m
        for i, (a, b) in enumerate(pairwise(widths))
        for m in (nn.Conv2d(a, b, 3, 1 + i % 2, 1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    return Net(body, body[10], (3, 32, 32), lifts=True)


def resnet(size: int) -> Net:
    body = resnet18(num_classes=10)
    return Net(body, body.layer3, (3, size, size), batch=8 if size < 100 else 1)


def vit() -> Net:
    body = VisionTransformer(32, 8, 6, 4, 128, 256, num_classes=10)
    nn.init.normal_(body.heads.head.weight)  # zero by default
    return Net(body, body.encoder.layers[3], (3, 32, 32))


MODELS: dict[str, Callable[[], Net]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet32": lambda: resnet(32),
    "resnet224": lambda: resnet(224),
    "vit": vit,
}


def contests(model: Net, x: Tensor, y: Tensor) -> dict[str, tuple[Run, Run]]:
    """What is compared: name -> (robustx, Captum) with the same arguments."""
    torch.manual_seed(1)
    references = torch.rand(10, *x.shape[1:])

    def pair(name: str, *at: object, **options: object) -> tuple[Run, Run]:
        layer = (model.layer,) if name.startswith(("Layer", "Internal", "Neuron")) else ()
        methods = [getattr(room, name)(model, *layer) for room in (ours, theirs)]
        first, second = (lambda m=m: m.attribute(x, *at, **options) for m in methods)
        return first, second

    def noisy() -> tuple[Run, Run]:
        options = {"nt_samples": 5, "stdevs": 0.1, "target": y, "n_steps": 20}
        tunnels = [room.NoiseTunnel(room.IntegratedGradients(model)) for room in (ours, theirs)]
        first, second = (lambda t=t: t.attribute(x, **options) for t in tunnels)
        return first, second

    found = {
        "Saliency": pair("Saliency", target=y),
        "InputXGradient": pair("InputXGradient", target=y),
        "IntegratedGradients": pair("IntegratedGradients", target=y),
        "GradientShap": pair("GradientShap", references, n_samples=20, target=y),
        "NoiseTunnel, 5 x IG": noisy(),
        "GuidedBackprop": pair("GuidedBackprop", target=y),
        "LayerActivation": pair("LayerActivation"),
        "LayerGradientXActivation": pair("LayerGradientXActivation", target=y),
        "LayerGradCam": pair("LayerGradCam", target=y),
        "LayerIntegratedGradients": pair("LayerIntegratedGradients", target=y),
        "LayerGradientShap": pair("LayerGradientShap", references, n_samples=20, target=y),
        "LayerConductance": pair("LayerConductance", target=y),
        "InternalInfluence": pair("InternalInfluence", target=y),
        "NeuronGradient": pair("NeuronGradient", _first_unit),
        "NeuronIntegratedGradients": pair("NeuronIntegratedGradients", _first_unit),
        "NeuronConductance": pair("NeuronConductance", _first_unit, target=y, method="riemann_right"),
    }
    if model.lifts:
        found |= {
            "DeepLift": pair("DeepLift", target=y),
            "DeepLiftShap": pair("DeepLiftShap", references, target=y),
            "LayerDeepLift": pair("LayerDeepLift", target=y),
            "LayerDeepLiftShap": pair("LayerDeepLiftShap", references, target=y),
        }
    return found


DRAWN = ("GradientShap", "NoiseTunnel, 5 x IG", "LayerGradientShap")


def _first_unit(out: Tensor) -> Tensor:
    return out.flatten(1)[:, 0]


def compare(names: list[str], only: list[str], rounds: int) -> None:
    for name in names:
        torch.manual_seed(0)
        model = MODELS[name]()
        batch = model.batch
        x, y = torch.rand(batch, *model.shape), torch.arange(batch) % 10
        print(f"\n{name}: {batch} samples of {'x'.join(map(str, model.shape))}")
        heads = ("difference", "rows forward/backward", "time / Captum", "peak MiB", "share")
        print(f"{'':26}{heads[0]:>11}{heads[1]:>26}{heads[2]:>22}{heads[3]:>18}{heads[4]:>7}")
        for what, runs in contests(model, x, y).items():
            if only and not any(word in what for word in only):
                continue
            (a, one), (b, other) = (count(model, run) for run in runs)
            rows = " ag. ".join(f"{c.forward / batch:g}/{c.backward / batch:g}" for c in (a, b))
            far = "drawn" if what in DRAWN else f"{apart(one, other):.1e}"
            weights = [peak(run) for run in runs]
            memory = " ag. ".join(f"{w:.3g}" for w in weights)
            times = spread(shares(*runs, rounds))
            print(f"{what:26}{far:>11}{rows:>26}{times:>22}{memory:>18}{weights[0] / weights[1]:>7.2f}", flush=True)
        if not model.lifts:
            print(
                "DeepLift and its kin are left out: Captum raises on modules used twice, and takes GELU, LayerNorm and"
            )
            print("attention for linear")


def grow(path: Path) -> None:
    """How peak memory of integrated gradients grows with steps, batch and image size, as a picture."""
    from matplotlib.figure import Figure

    axes_of = {
        "steps of 8 images": ([10, 25, 50, 100, 200], lambda v: (v, 8, 64)),
        "images, 50 steps": ([1, 2, 4, 8, 16, 32], lambda v: (50, v, 64)),
        "pixels a side, 8 images, 50 steps": ([32, 48, 64, 96, 128], lambda v: (50, 8, v)),
    }
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (name, (values, setting)) in zip(panels, axes_of.items(), strict=True):
        for room, label, style in ((theirs, "Captum", "s--"), (ours, "robustx", "o-")):
            told = []
            for v in values:
                steps, batch, size = setting(v)
                ig, x = room.IntegratedGradients(resnet(size)), torch.rand(batch, 3, size, size)
                told.append(peak(lambda ig=ig, x=x, n=steps: ig.attribute(x, target=0, n_steps=n)))
            axes.plot(values, told, style, color="0.45" if room is theirs else "tab:blue", label=label)
            print(f"{name:35}{label:9}", *(f"{v}: {t:.0f}" for v, t in zip(values, told, strict=True)), flush=True)
        axes.set(xlabel=name, xscale="log", yscale="log")
        axes.set_xticks(values, map(str, values))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1000", "3000"])
    panels[0].set(ylabel="MiB of tensors at once")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", nargs="+", default=[], help="methods whose names contain one of these")
    parser.add_argument("--grow", type=Path, help="draw how memory grows into this file instead")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Captum tells that inputs required no gradients, each time
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores")
    if asked.grow:
        grow(asked.grow)
    else:
        compare(asked.models, asked.only, asked.rounds)


if __name__ == "__main__":
    main()
