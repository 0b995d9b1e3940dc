"""Find inputs that fool a model, and look at them: in Python what `robustx attack` does.

    python examples/generate_adversarial.py
    python examples/generate_adversarial.py --model digits-robust --norm L2 --eps 1.0
    python examples/generate_adversarial.py --model mine:net --data mine:test --eps 0.03 --out adversarial

`mine:net` is a torch.nn.Module, or a function that returns one, in mine.py; `mine:test` a pair of tensors
(x, y), a Dataset, a DataLoader, or a function that returns one of them.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: a second thread only waits

import torch
from safetensors.torch import save_file

from robustx import zoo
from robustx.attacks import PGD
from robustx.plot import TIGHT, contact_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help="a model of the zoo, or package.module:name")
    parser.add_argument("--data", help="its data; models of the zoo bring theirs")
    parser.add_argument("--norm", default="Linf", help="Linf, L2, L1 or L0")
    parser.add_argument("--eps", type=float, default=0.1, help="the budget, in input units")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--limit", type=int, default=32, help="how many samples")
    parser.add_argument("--out", type=Path, default=Path("adversarial"), help="folder for what is found")
    asked = parser.parse_args()

    # The model is left as it is. Data come with their bounds: the least and the greatest value of an input.
    model, data = zoo.load(asked.model, asked.data, limit=asked.limit)

    # The attack is bound to the model once; then attack(x, y) gives tensors, attack.run(x, y) the whole story.
    attack = PGD(model, bounds=data.bounds, norm=asked.norm, eps=asked.eps, steps=asked.steps)
    result = attack.run(data.x, data.y)

    # `success` was asked of the model once more, on the very tensors that are returned.
    with torch.inference_mode():
        before, after = model(data.x).argmax(1), model(result.adversarial).argmax(1)
    right, fooled = before == data.y, (before == data.y) & result.success
    print(result)
    print(f"right before: {right.sum()} of {len(data)}; after: {(right & ~fooled).sum()} of {len(data)}")
    chosen, told = fooled.nonzero().flatten().tolist()[:10], []
    for i in chosen:
        was, now = (zoo.class_name(data.classes, int(answer[i])) for answer in (before, after))
        told.append(f"{was} becomes {now}")
        print(f"  sample {data.index[i]}: {told[-1]} at {asked.norm} distance {result.distance[i]:.4f}")

    asked.out.mkdir(parents=True, exist_ok=True)
    tensors = {"x": data.x, "adversarial": result.adversarial, "label": data.y, "success": result.success}
    save_file(tensors, str(asked.out / "adversarial.safetensors"))
    if data.kind == "image" and chosen:
        title = f"{asked.model} under {asked.norm} changes up to {asked.eps:g}"
        sheet = contact_sheet(data.x[chosen], result.adversarial[chosen], told, [True] * len(told), data.bounds, title)
        sheet.savefig(asked.out / "adversarial.png", **TIGHT)
    print(f"written to {asked.out}/")


if __name__ == "__main__":
    main()
