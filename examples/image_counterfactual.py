"""Which parts of your own pictures must give way for a torchvision model to see something else?

    python examples/image_counterfactual.py holidays --model resnet18 --weights IMAGENET1K_V1
    python examples/image_counterfactual.py holidays --model resnet18 --weights mine.pt --reference blur --segments 80

A part is a superpixel. It gives way to what is painted in from around it (`inpaint`), to a blur, to the picture's mean
colour, to noise, or to the nearest picture of the folder that the model takes for what is wanted (`folder`). Without a
folder it takes a few pictures that come with scikit-image, and without a network it takes random weights
(`--weights none`): nothing is fetched then. For each picture it writes one with the parts that changed.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from skimage import data as pictures
from torchvision.models import get_model_weights
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer
from robustx.perturb import nearest_unlike, superpixels
from robustx.plot import TIGHT
from robustx.zoo.images import bounded_images, open_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with files that Pillow can read")
    parser.add_argument("--model", default="resnet18", help="a classifier of torchvision")
    parser.add_argument("--weights", default="none", help="a name of torchvision's (IMAGENET1K_V1), none, or a file")
    parser.add_argument("--reference", default="inpaint", choices=("inpaint", "blur", "mean", "noise", "folder"))
    parser.add_argument("--wanted", type=int, help="a class by its number; default: the second likeliest")
    parser.add_argument("--segments", type=int, default=40, help="about how many superpixels")
    parser.add_argument("--budget", type=int, default=128, help="how many sets of them may be tried side by side")
    parser.add_argument("--size", type=int, default=224, help="pictures are cropped to this many pixels a side")
    parser.add_argument("--out", type=Path, default=Path("counterfactual"), help="folder for what is found")
    asked = parser.parse_args()

    names, x = read(asked.folder, asked.size)
    torch.manual_seed(0)  # for random weights
    # A model of the zoo takes pictures in [0, 1]; its normalisation is a part of it.
    model = zoo.model(f"torchvision:{asked.model}@{asked.weights}")
    classes = get_model_weights(asked.model).DEFAULT.meta["categories"]

    parts = superpixels(x, segments=asked.segments)
    reference = nearest_unlike(x) if asked.reference == "folder" else asked.reference
    explainer = CounterfactualExplainer(model, reference=reference, budget=asked.budget)
    result = explainer.generate(x, "runner-up" if asked.wanted is None else asked.wanted, feature_mask=parts)
    print(result)

    asked.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        was, now = (model(z).argmax(1).tolist() for z in (x, result.counterfactual))
    for i, name in enumerate(names):
        then = f", then {zoo.class_name(classes, now[i])}" if result.valid[i] else ""
        print(f"  {name}: {zoo.class_name(classes, was[i])}; {result.status[i]}{then}")
        title = f"{name}: {int(result.n_changed[i])} of {int(parts[i].max()) + 1} parts give way ({asked.reference})"
        figure = result.plot("image", i, title=title, classes=classes, bounds=(0, 1))
        figure.savefig(asked.out / f"{name}.png", **TIGHT)
    print(f"{int(result.valid.sum())} of {len(x)} become something else; written to {asked.out}/")


def read(folder: Path | None, size: int) -> tuple[list[str], torch.Tensor]:
    """Names and pictures [B, 3, size, size] in [0, 1]."""
    if folder is None:
        found = {
            name: Image.fromarray(getattr(pictures, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
        }
    else:
        with bounded_images():
            found = {p.stem: open_image(p).convert("RGB") for p in sorted(folder.iterdir()) if p.is_file()}
    if not found:
        raise SystemExit(f"{folder} holds no files")
    ready = [center_crop(resize(pil_to_tensor(p), size, antialias=True), size) for p in found.values()]
    return list(found), torch.stack(ready) / 255


if __name__ == "__main__":
    main()
