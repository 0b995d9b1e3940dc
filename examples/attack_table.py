"""How far are the rows of a table from another answer, in numbers that people read?

    python examples/attack_table.py
    python examples/attack_table.py people.csv --label approved --keep age sex --norm L1

Without a file it takes scikit-learn's wines. A small network learns the label from the other columns, and an attack
looks for the nearest row that gets another answer: the fewest columns (L0), the smallest sum of changes (L1), or the
smallest largest change (Linf), where one unit is a column's whole range. Columns named by --keep do not move.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sklearn.datasets import load_wine
from torch import nn

from robustx import attacks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="CSV with a line of names; every column a number")
    parser.add_argument("--label", help="the column to be learnt; the last one unless given")
    parser.add_argument("--keep", nargs="*", default=[], help="columns that do not change")
    parser.add_argument("--norm", default="L1", choices=("L0", "L1", "L2", "Linf"))
    parser.add_argument("--attack", default="fmn", help="any that looks for the nearest point in that norm")
    parser.add_argument("--rows", type=int, default=8, help="how many rows to show")
    asked = parser.parse_args()

    names, x, y = table(asked.file, asked.label)
    unknown = [name for name in asked.keep if name not in names]
    if unknown:
        raise SystemExit(f"--keep names {', '.join(unknown)}, but the columns are {', '.join(names)}")
    low, high = x.amin(0), x.amax(0)
    unit = torch.where(high > low, high - low, 1)
    model = train((x - low) / unit, y)

    # Inputs run from 0 to 1, so one budget means the same in every column; the mask says which columns may move.
    attack = attacks.make(asked.attack, model, bounds=(0, 1), norm=asked.norm)
    mask = torch.tensor([name not in asked.keep for name in names])
    result = attack.run((x[: asked.rows] - low) / unit, mask=mask)
    print(result)
    with torch.inference_mode():
        before, after = model(result.inputs).argmax(1), model(result.adversarial).argmax(1)
    moved = result.adversarial * unit + low
    for i, (row, new) in enumerate(zip(x, moved, strict=False)):
        if not result.success[i]:
            print(f"row {i}: no way from {int(before[i])} to another answer was found")
            continue
        changed = (result.adversarial[i] != result.inputs[i]).nonzero().flatten().tolist()
        changed.sort(key=lambda j: -abs(float(new[j] - row[j]) / float(unit[j])))
        told = ", ".join(f"{names[j]} {row[j]:.4g} -> {new[j]:.4g}" for j in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        print(
            f"row {i}: {int(before[i])} becomes {int(after[i])} at {asked.norm} {result.distance[i]:.3g}: {told}{more}"
        )


def table(file: Path | None, label: str | None) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Names of the columns, their values [B, D] and classes [B]."""
    if file is None:
        wine = load_wine()
        return list(wine.feature_names), torch.tensor(wine.data, dtype=torch.float32), torch.tensor(wine.target)
    header, *lines = file.read_text().splitlines()
    names = header.split(",")
    values = torch.tensor([[float(v) for v in line.split(",")] for line in lines if line])
    own = names.index(label or names[-1])
    rest = [j for j in range(len(names)) if j != own]
    return [names[j] for j in rest], values[:, rest], values[:, own].unique(return_inverse=True)[1]


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A small network, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, int(y.max()) + 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    print(f"learnt {(model(x).argmax(1) == y).double().mean():.0%} of {len(x)} rows")
    return model.eval()


if __name__ == "__main__":
    main()
