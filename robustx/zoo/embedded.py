"""The embedded default: two real data sets and three models trained on them, with nothing to download.

Both data sets come with scikit-learn. Their splits are fixed, and no model has seen a test row in training.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .checkpoints import load_weights, read_metadata
from .dataset import Column, Data
from .networks import digits_cnn, table_mlp

Rows = npt.NDArray[np.int64]

WEIGHTS = Path(__file__).parent / "weights"
TEST_SHARE = 0.25

MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {  # name: (architecture, its data)
    "digits": (digits_cnn, "digits"),
    "digits-robust": (digits_cnn, "digits"),
    "breast-cancer": (table_mlp, "breast-cancer"),
}


def model(name: str) -> nn.Module:
    """The embedded model of that name, with its weights."""
    build, _ = MODELS[name]
    return load_weights(build(), WEIGHTS / f"{name}.safetensors")


def metadata(name: str) -> dict[str, str]:
    """What the weight file of an embedded model says of itself: script, seed, accuracies."""
    return read_metadata(WEIGHTS / f"{name}.safetensors")


def split_rows(y: Rows, always_train: Rows | None = None) -> tuple[Rows, Rows]:
    """Train and test rows of a data set with labels y, stratified, in a fixed shuffled order.

    The rows are shuffled by ``numpy.random.RandomState(0)``, whose stream never changes; the first quarter of
    each class in that order is tested. Rows in `always_train` stand last in the order. Any prefix of the test
    rows is itself a fair sample.
    """
    order = np.random.RandomState(0).permutation(len(y))
    if always_train is not None:
        pinned = np.isin(order, always_train)
        order = np.concatenate([order[~pinned], order[pinned]])
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        test[members[: round(TEST_SHARE * len(members))]] = True
    return order[~test[order]], order[test[order]]


def digits(split: str) -> Data:
    """1,797 handwritten digits, grey images [N, 1, 8, 8] in [0, 1] (17 levels), 10 classes.

    1,347 train and 450 test images. The images of one writer may stand in both. Alpaydin and Kaynak (UCI,
    1998).
    """
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)  # [1797, 64], whole numbers 0..16
    rows = _rows_of(split, *split_rows(y))
    return Data(
        name="digits",
        x=torch.from_numpy(pixels[rows] / 16).float().view(-1, 1, 8, 8),
        y=torch.from_numpy(y[rows]).long(),
        index=torch.from_numpy(rows),
        classes=tuple(str(k) for k in range(10)),
        kind="image",
        split=split,
    )


def breast_cancer(split: str) -> Data:
    """569 cell samples with 30 measurements, scaled per column by the training range to [0, 1], 2 classes.

    427 train and 142 test rows. The first row with the least and the first with the greatest value of each
    column always train, so the training range is the whole range and every test row lies in [0, 1]. `columns`
    holds the range in units, and ``Data.to_units`` goes back. Wolberg, Street and Mangasarian (UCI, 1995).
    """
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    values, y = table.data, table.target  # [569, 30] float64, [569]
    extremes = np.concatenate([values.argmin(axis=0), values.argmax(axis=0)])
    train, test = split_rows(y, always_train=extremes)
    low, high = values[train].min(axis=0), values[train].max(axis=0)
    rows = _rows_of(split, train, test)
    names = [str(n) for n in table.feature_names]
    return Data(
        name="breast-cancer",
        x=torch.from_numpy((values[rows] - low) / (high - low)).float(),
        y=torch.from_numpy(y[rows]).long(),
        index=torch.from_numpy(rows),
        classes=tuple(str(n) for n in table.target_names),
        kind="table",
        columns=tuple(Column(n, _unit(n), float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)),
        split=split,
    )


DATA: dict[str, Callable[[str], Data]] = {"digits": digits, "breast-cancer": breast_cancer}


def _rows_of(split: str, train: Rows, test: Rows) -> Rows:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return train if split == "train" else test


def _unit(column: str) -> str:
    """The unit of a column of the breast-cancer table, as far as its documentation goes.

    It measures radius and perimeter on the picture without naming a unit of length, and defines texture as a
    standard deviation of grey-scale values; the other measurements are ratios and have no dimension.
    """
    words = column.split()
    if "radius" in words or "perimeter" in words:
        return "length units"
    if "area" in words:
        return "square length units"
    if "texture" in words:
        return "grey levels"
    return ""
