"""Change the pictures in a folder, as files of 8 bits, until a torchvision model takes them for something else.

    python examples/attack_folder.py holidays --model resnet18
    python examples/attack_folder.py holidays --model resnet18 --weights none --attack apgd-ce --eps 0.01

Without a folder it takes a few pictures that come with scikit-image, and without a network it takes random weights
(`--weights none`): nothing is fetched then. No labels are needed: what the model says of a picture is what it is to
leave. The changed pictures are written as PNG files, read back, and judged once more as they were read.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image
from skimage import data as pictures
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from robustx import attacks, zoo
from robustx.plot import TIGHT
from robustx.zoo.images import bounded_images, open_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with files that Pillow can read")
    parser.add_argument("--model", default="resnet18", help="a classifier of torchvision")
    parser.add_argument("--weights", default="none", help="a name of torchvision's (IMAGENET1K_V1), none, or a file")
    parser.add_argument("--attack", default="pgd", help=", ".join(attacks.names("Linf")))
    parser.add_argument("--eps", type=float, default=8 / 255, help="the largest change of any pixel, from 0 to 1")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=224, help="pictures are cropped to this many pixels a side")
    parser.add_argument("--out", type=Path, default=Path("changed"), help="folder for what is found")
    asked = parser.parse_args()

    names, x = read(asked.folder, asked.size)
    torch.manual_seed(0)  # for random weights
    # A model of the zoo takes pictures in [0, 1]; its normalisation is a part of it, so budgets are those of pixels.
    model = zoo.model(f"torchvision:{asked.model}@{asked.weights}")

    # 256 levels: only what a file of 8 bits can hold counts as found.
    attack = attacks.make(asked.attack, model, bounds=(0, 1), eps=asked.eps, steps=asked.steps, levels=256)
    result = attack.run(x)
    print(result)

    asked.out.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, result.adversarial, strict=True):
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(asked.out / f"{name}.png")
    _, again = read(asked.out, asked.size, names)
    with torch.inference_mode():
        before, after = model(x).argmax(1), model(again).argmax(1)
    for name, was, now, far in zip(names, before.tolist(), after.tolist(), result.distance.tolist(), strict=True):
        told = f"becomes {now}" if now != was else "stays"
        print(f"  {name}: class {was} {told}, pixels moved up to {far * 255:.0f} / 255")
    print(f"read back, {int((before != after).sum())} of {len(x)} are taken for something else")
    result.plot(title=f"{asked.model} under {asked.attack}").savefig(asked.out / "contact_sheet.png", **TIGHT)
    print(f"written to {asked.out}/")


def read(folder: Path | None, size: int, names: list[str] | None = None) -> tuple[list[str], torch.Tensor]:
    """Names and pictures [B, 3, size, size] in [0, 1]."""
    if folder is None:
        found = {
            name: Image.fromarray(getattr(pictures, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
        }
    else:
        files = [folder / f"{n}.png" for n in names] if names else sorted(p for p in folder.iterdir() if p.is_file())
        with bounded_images():
            found = {p.stem: open_image(p).convert("RGB") for p in files}
    if not found:
        raise SystemExit(f"{folder} holds no files")
    ready = [center_crop(resize(pil_to_tensor(p), size, antialias=True), size) for p in found.values()]
    return list(found), torch.stack(ready) / 255


if __name__ == "__main__":
    main()
