"""How models take common corruptions, and what these look like.

    python examples/corruptions.py
    python examples/corruptions.py --models digits digits-robust --samples 200 --severity 5

For each corruption the mean error over five severities, and at the end the mean corruption error relative to the first
model's. Writes all nineteen, at one severity, as one sheet of a photograph that comes with scikit-image.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.figure import Figure
from skimage import data as pictures
from torchvision.transforms.functional import resize

from robustx import zoo
from robustx.evaluation import Block, Spec, clean_block
from robustx.evaluation.corruptions import Baseline, corruption_block, summarise_corruptions
from robustx.perturb.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from robustx.plot import TIGHT, draw_image

ACROSS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits", "digits-robust"], help="of the zoo, for digits")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--severity", type=int, default=3, choices=SEVERITIES, help="of the sheet")
    parser.add_argument("--size", type=int, default=224, help="pixels a side, of the sheet's photograph")
    parser.add_argument("--out", type=Path, default=Path("corruptions"), help="folder for the sheet")
    asked = parser.parse_args()

    told, baseline = [], None
    for name in asked.models:
        model, data = zoo.load(name, limit=asked.samples)
        block = Block(data.x, data.y, range(len(data.x)), data.bounds)
        spec = Spec(models=(name,), data="digits", norm="L2")
        clean = clean_block(model, block).rows
        rows = {c: corruption_block(model, block, c, SEVERITIES, spec).rows for c in (*CORRUPTIONS, *EXTRA)}
        baseline = baseline or Baseline.of(name, clean, rows)
        told.append(summarise_corruptions(clean, rows, baseline))
    print(f"{'error':20}" + "".join(f"{name:>15}" for name in asked.models))
    print(f"{'as they are':20}" + "".join(f"{t.clean.value:15.1%}" for t in told))
    for each in zip(*(t.each for t in told), strict=True):
        print(f"{each[0].name:20}" + "".join(f"{c.error:15.1%}" for c in each))
    print(f"{'mean of fifteen':20}" + "".join(f"{t.error:15.1%}" for t in told))
    print(f"{'mCE':20}" + "".join(f"{t.mce:15.1%}" for t in told) + f"   relative to {asked.models[0]}")
    print(f"{'relative mCE':20}" + "".join(f"{t.relative_mce:15.1%}" for t in told))
    print(f"both without {', '.join(told[0].without) or 'none'}, where {asked.models[0]} makes no error")

    asked.out.mkdir(parents=True, exist_ok=True)
    sheet(asked.size, asked.severity).savefig(asked.out / "corruptions.jpg", pil_kwargs={"quality": 85}, **TIGHT)
    print(f"written to {asked.out}/corruptions.jpg")


def sheet(size: int, severity: int) -> Figure:
    """A photograph as it is, and in all corruptions."""
    cut = torch.from_numpy(pictures.astronaut()[:400, 40:440]).permute(2, 0, 1)
    x = resize(cut, [size, size], antialias=True)[None].float() / 255
    names = (*CORRUPTIONS, *EXTRA)
    figure = Figure(figsize=(1.9 * ACROSS, 2.1 * (len(names) + 1) / ACROSS), dpi=80, layout="constrained")
    grid = figure.subplots((len(names) + 1) // ACROSS, ACROSS).flat
    for axes, name in zip(grid, ("as it is", *names), strict=True):
        draw_image(axes, x[0] if name == "as it is" else corrupt(x, name, severity)[0], (0, 1))
        axes.set_title(name.replace("_", " "), fontsize=9)
    figure.suptitle(f"severity {severity}, {size} pixels", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
