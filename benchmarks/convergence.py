"""Sampled Shapley values in robustx and in Captum: how far off, after how many evaluations?

    python benchmarks/convergence.py [--seeds 10] [--digits 6] [--draw docs/pictures/shapley_convergence.png]

The scores of the digits' CNN for its own class, over a grid of 4 x 3 regions that give way to zero; exact values come
from all 4,096 sets. Each row tells the root of the mean squared error, over digits, regions and seeds, as a share of
the root of the mean squared value; columns are rows that go through the model for each digit, counted by a hook.
"""

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.attr as theirs
import torch
from contest import count
from matplotlib.figure import Figure
from torch import Tensor

from robustx import attribution as ours
from robustx import zoo
from robustx.perturb import superpixels

WALKS = [8, 16, 32, 64, 128]
Estimate = Callable[[int, int], Tensor]


def estimators(model: torch.nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Estimate]:
    """(how many walks, or as many evaluations; a seed) -> attributions."""
    asked = {"target": y, "feature_mask": mask}
    features = len(mask.unique())

    def walked(sampling: str) -> Estimate:
        method = ours.ShapleyValueSampling(model)
        return lambda walks, seed: method.attribute(x, n_samples=walks, seed=seed, sampling=sampling, **asked)

    def captum(name: str, each: int) -> Estimate:
        def run(walks: int, seed: int) -> Tensor:
            torch.manual_seed(seed)
            alone = [
                getattr(theirs, name)(model).attribute(
                    x[i : i + 1], target=y[i : i + 1], feature_mask=mask, n_samples=walks * each,
                    perturbations_per_eval=64,
                )
                for i in range(len(x))
            ]  # fmt: skip
            return torch.cat(alone)

        return run

    kernel = ours.KernelShap(model)
    return {
        "Captum ShapleyValueSampling": captum("ShapleyValueSampling", 1),
        "Captum KernelShap": captum("KernelShap", features),
        'ShapleyValueSampling, "permutation"': walked("permutation"),
        'ShapleyValueSampling, "antithetic"': walked("antithetic"),
        'ShapleyValueSampling, "stratified"': walked("stratified"),
        "KernelShap": lambda walks, seed: kernel.attribute(x, n_samples=walks * features, seed=seed, **asked),
    }


def converge(seeds: int, digits: int) -> dict[str, tuple[list[float], list[float]]]:
    """Evaluations and errors of each estimator."""
    model, data = zoo.load("digits")
    x, y = data.x[:digits], data.y[:digits]
    mask = superpixels(x[:1], "grid", 12)
    truth = ours.ShapleyValues(model).attribute(x, target=y, feature_mask=mask)
    size = truth.square().mean().sqrt()
    found: dict[str, tuple[list[float], list[float]]] = {}
    print(f"{len(mask.unique())} regions, {digits} digits, {seeds} seeds")
    for name, run in estimators(model, x, y, mask).items():
        asked, errors = [], []
        for walks in WALKS:
            counted, first = count(model, lambda run=run, walks=walks: run(walks, 0))
            far = torch.stack([first - truth, *(run(walks, seed) - truth for seed in range(1, seeds))])
            asked.append(counted.forward / digits)
            errors.append((far.square().mean().sqrt() / size).item())
        found[name] = asked, errors
        told = (f"{n:.0f}: {e:.4f}" for n, e in zip(asked, errors, strict=True))
        print(f"{name:38}", *told, sep="  ", flush=True)
    return found


def draw(found: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = {"permutation": "tab:blue", "antithetic": "tab:green", "stratified": "tab:orange"}
    for name, (asked, errors) in found.items():
        captum, kernel = name.startswith("Captum"), "Kernel" in name
        colour = next((c for word, c in colours.items() if word in name), "tab:purple")
        axes.plot(
            asked, errors, ":" if captum and kernel else "--" if captum else "-", marker="s" if captum else "o",
            markersize=4, color="0.45" if captum else colour, label=name,
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="evaluations of the model for each digit", ylabel="error, of the values"
    )
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--digits", type=int, default=6)
    parser.add_argument("--draw", type=Path, help="also draw a picture into this file")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Captum warns about what it does with batches
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores")
    found = converge(asked.seeds, asked.digits)
    if asked.draw:
        draw(found, asked.draw)


if __name__ == "__main__":
    main()
