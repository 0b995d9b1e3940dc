"""Inside a network: which channels carry an answer, and which pixels speak through them.

    python examples/layers_and_neurons.py
    python examples/layers_and_neurons.py --model digits-robust --row 36

A layer's conductance says how much of the logit's rise passes each of its units, so it adds up to the rise at every
layer that nothing leads around. A neuron's conductance says which pixels send it there.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch

from robustx import zoo
from robustx.attribution import (
    InternalInfluence,
    LayerActivation,
    LayerConductance,
    NeuronConductance,
    NeuronGradient,
)
from robustx.plot import TIGHT, attribution_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", choices=["digits", "digits-robust"])
    parser.add_argument("--row", type=int, default=3, help="which sample")
    parser.add_argument("--out", type=Path, default=Path("explanation"), help="folder for the picture")
    asked = parser.parse_args()

    model, data = zoo.load(asked.model)
    x = data[asked.row].x  # still with its first axis: [1, 1, 8, 8]
    with torch.inference_mode():
        answer = int(model(x).argmax())
        rise = float((model(x) - model(torch.zeros_like(x)))[0, answer])
    print(f"answer {answer}; its logit rises by {rise:.4f} from a picture without ink")

    # Several layers at once come from one pass: a list of layers gives a list of attributions.
    layers = {name: model.get_submodule(name) for name in ("conv1", "relu2", "fc1")}
    path = {"n_steps": 200, "method": "riemann_trapezoid"}  # reaches both ends, so that the steps are all of the way
    passed = LayerConductance(model, list(layers.values())).attribute(x, target=answer, **path)
    for name, a in zip(layers, passed, strict=True):
        print(f"  {name:6} {a.numel():5} units, conductances add up to {a.sum():.4f}")

    # The channels of the last convolution that carry most.
    carried = passed[1][0].sum((1, 2))
    influence = InternalInfluence(model, model.relu2).attribute(x, target=answer)[0].sum((1, 2))
    channels = carried.abs().topk(4).indices.tolist()
    print(f"\n{'':12} {'conductance':>12} {'influence':>10}   (what one more everywhere in the channel would do)")
    for k in channels:
        print(f"channel {k:<4} {carried[k]:12.4f} {influence[k]:10.4f}")
    print(f"{'the others':12} {carried.sum() - carried[channels].sum():12.4f}")

    # The other way: a channel's units are neurons, and the inputs are asked what they send through them.
    active = LayerActivation(model, model.relu2).attribute(x)[0]
    through, looks_for = [], []
    for k in channels:
        units = (k, slice(None), slice(None))  # all of the channel's: what they let pass is added up
        through.append(NeuronConductance(model, model.relu2).attribute(x, units, target=answer, **path))
        strongest = (k, *divmod(int(active[k].argmax()), active.shape[2]))
        looks_for.append(NeuronGradient(model, model.conv2).attribute(x, strongest))
    sums = ", ".join(f"{a.sum():.4f}" for a in through)
    print(f"pixels send through these channels: {sums}")

    asked.out.mkdir(parents=True, exist_ok=True)
    maps = {
        "activation": active[channels],
        "conductance": passed[1][0, channels],
        "pixels through it": torch.cat(through).sum(1),
        "slope of its\nstrongest unit": torch.cat(looks_for).sum(1),
    }
    figure = attribution_maps(
        x.expand(len(channels), -1, -1, -1),
        maps,
        data.bounds,
        f"The channels that carry the {answer}, at the last convolution of {asked.model}",
        "each column on its own scale; conductances in logits",
        [f"channel {k}" for k in channels],
        one_scale=False,
    )
    figure.savefig(asked.out / "layers_and_neurons.png", **TIGHT)
    print(f"written to {asked.out}/layers_and_neurons.png")


if __name__ == "__main__":
    main()
