"""The architectures of the embedded models, and what goes around the models of others."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .images import Prepare


def digits_cnn() -> nn.Sequential:
    """A convolutional network for 8x8 digits: [N, 1, 8, 8] in [0, 1] to logits [N, 10]; 21,546 parameters.

    No dropout and no batch normalisation, so it computes the same in train and in eval mode.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * 4 * 4, 32),
            relu3=nn.ReLU(),
            fc2=nn.Linear(32, 10),
        )
    )


def table_mlp(columns: int = 30, hidden: int = 16, classes: int = 2) -> nn.Sequential:
    """A network with two hidden layers for a table: [N, columns] in [0, 1] to logits [N, classes]."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(columns, hidden),
            relu1=nn.ReLU(),
            fc2=nn.Linear(hidden, hidden),
            relu2=nn.ReLU(),
            fc3=nn.Linear(hidden, classes),
        )
    )


class Normalized(nn.Module):
    """A model of normalised inputs as a model of inputs in [0, 1]: ``model((x - mean) / std)``.

    x is [N, C, ...]; mean and std hold one number per channel, as in torchvision's ``Normalize``. With the
    normalisation inside the model, perturbations are measured in pixels and the bounds are (0, 1). `prepare` is how
    the model wants its pictures, where it is known.

    >>> float(Normalized(nn.Identity(), [0.5], [0.25])(torch.ones(1, 1, 1, 1)))
    2.0

    Raises ValueError for another number of means than of deviations or of channels, and for no positive deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], prepare: Prepare | None = None
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"mean and std must hold one number per channel, those of std positive, got {mean} and {std}"
            )
        self.model = model
        self.prepare = prepare
        # beside the model, not in its state_dict: the weights stay the wrapped model's own
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.mean):  # one channel would else become as many as there are means
            raise ValueError(
                f"the model is normalised for {len(self.mean)} channels, got inputs of shape {tuple(x.shape)}; convert "
                "them, or give mean and std with one number per channel"
            )
        shape = (-1, *[1] * (x.dim() - 2))  # one number per channel, whatever follows
        mean, std = self.mean.to(x.dtype).view(shape), self.std.to(x.dtype).view(shape)
        logits: Tensor = self.model((x - mean) / std)
        return logits


class Logits(nn.Module):
    """A Hugging Face classifier as a model that returns its logits [N, K] alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits
