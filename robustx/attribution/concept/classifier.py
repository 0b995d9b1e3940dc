"""Classifiers: what tells the activations of concepts apart, by one direction for each."""

from abc import ABC, abstractmethod
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from ...engine.checks import ArgumentError, at_least
from ...engine.packing import finest
from ...engine.randomness import Noise, identities


class Classifier(ABC):
    """Tells activations of several concepts apart by one direction for each."""

    @abstractmethod
    def train_and_eval(self, dataloader: DataLoader[Any], **kwargs: Any) -> dict[str, Any] | None:
        """Learns from batches (activations [N, D], concepts' numbers [N]), and tells how well, by name.

        Args:
            kwargs: what was given to :class:`TCAV` as ``classifier_kwargs``.
        """

    @abstractmethod
    def weights(self) -> Tensor:
        """One direction for each concept [C, D]."""

    @abstractmethod
    def classes(self) -> list[int]:
        """The numbers of the concepts, in the order of the weights."""


class DefaultClassifier(Classifier):
    """A linear support vector machine, learned by stochastic gradient descent (scikit-learn's ``SGDClassifier``).

    Its settings are Captum's. All activations are held at once. Which of them are for training, and in which order, is
    drawn by key from their content.

    Args:
        seed: of the draws.

    >>> here = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.1, 0.0]])
    >>> classifier = DefaultClassifier()
    >>> classifier.train_and_eval(DataLoader([(here, torch.tensor([5, 5, 7, 7]))], batch_size=None), test_split_ratio=0)
    {}
    >>> classifier.classes(), (classifier.weights()[1] > 0).tolist()
    ([5, 7], [True, False])
    """

    def __init__(self, *, seed: int = 0) -> None:
        from sklearn.linear_model import SGDClassifier

        self.seed = seed
        self.lm = SGDClassifier(alpha=0.01, max_iter=1000, tol=1e-3, random_state=seed)

    def train_and_eval(
        self, dataloader: DataLoader[Any], test_split_ratio: float = 0.33, **kwargs: Any
    ) -> dict[str, Any]:
        """Learns from batches (activations [N, D], concepts' numbers [N]).

        Args:
            test_split_ratio: the share that is kept back; ``"accs"`` is how much of it is told right.

        Raises:
            ValueError: the share is no share, or leaves fewer than two concepts to learn from.
        """
        at_least("test_split_ratio", test_split_ratio, 0)
        x, y = (torch.cat(parts).cpu() for parts in zip(*dataloader, strict=True))
        order = Noise(self.seed, "DefaultClassifier", identities(x)).uniform(1, torch.empty(0))[:, 0].argsort()
        test, train = order.tensor_split([int(test_split_ratio * len(x))])
        if len(y[train].unique()) < 2:
            raise ArgumentError(
                f"test_split_ratio {test_split_ratio} of {len(x)} examples leaves {len(train)}, of fewer than two "
                "concepts; give more examples, or keep fewer back"
            )
        self.lm.fit(x[train].numpy(), y[train].numpy())
        if not len(test):
            return {}
        right = torch.from_numpy(self.lm.predict(x[test].numpy())) == y[test]
        return {"accs": right.float().mean()}

    def weights(self) -> Tensor:
        """One direction for each concept [C, D]; of two concepts, one leads away from where the other leads."""
        found = torch.from_numpy(self.lm.coef_)
        return torch.cat([-found, found]) if len(found) == 1 else found

    def classes(self) -> list[int]:
        """The numbers of the concepts, in the order of the weights."""
        return [int(c) for c in self.lm.classes_]


class FastCAV(Classifier):
    """Directions from the mean of all activations to each concept's own mean, of length one.

    Schmalwasser, Penzel, Denzler, Niebling (ICML 2025), arXiv 2505.17883: what a linear support vector machine finds
    where the concepts scatter alike in all directions, without a search. Batches are never held together.

    >>> here = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 2.0], [4.0, 2.0]])
    >>> classifier = FastCAV()
    >>> classifier.train_and_eval(DataLoader([(here, torch.tensor([5, 5, 7, 7]))], batch_size=None))
    {'accs': tensor(1.)}
    >>> classifier.weights()
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """

    def __init__(self) -> None:
        self._weights = torch.empty(0, 0)
        self._classes: list[int] = []

    def train_and_eval(self, dataloader: DataLoader[Any], **kwargs: Any) -> dict[str, Any]:
        """Learns from batches (activations [N, D], concepts' numbers [N]), which it goes through twice.

        ``"accs"`` is how many are told right by the means of all others (leave-one-out; the only one of its concept is
        not).

        Raises:
            ValueError: there are fewer than two concepts, or one whose mean is that of all.
        """
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        for x, y in dataloader:
            for c in y.unique().tolist():
                mine = x[y == c]
                sums[c] = sums.get(c, 0) + finest(mine).sum(0)
                counts[c] = counts.get(c, 0) + len(mine)
        if len(sums) < 2:
            raise ArgumentError(f"concepts are told apart from one another: two at least, got {list(sums)}")
        self._classes = sorted(sums)
        total, count = sum(sums.values(), torch.zeros(())), sum(counts.values())
        ways = torch.stack([sums[c] / counts[c] for c in self._classes]) - total / count
        if not ways.any(1).all():
            raise ArgumentError("a concept's mean activation is that of all examples: nothing leads towards it")
        self._weights = normalize(ways).to(x.dtype)

        def told_right(x: Tensor, y: Tensor) -> Tensor:
            """Whether each row would be told by the means of all the others [n]."""
            centre = (total - x) / (count - 1)
            scores = []
            for c in self._classes:
                mine = (y == c).to(x)[:, None]
                mean = (sums[c] - mine * x) / (counts[c] - mine)
                scores.append((normalize(mean - centre) * (x - centre)).sum(1).nan_to_num(nan=-inf))
            return torch.tensor(self._classes)[torch.stack(scores).argmax(0).cpu()] == y.cpu()

        right = [told_right(finest(x), y.to(x.device)) for x, y in dataloader]
        return {"accs": torch.cat(right).float().mean()}

    def weights(self) -> Tensor:
        """One direction for each concept [C, D]."""
        return self._weights

    def classes(self) -> list[int]:
        """The numbers of the concepts, in ascending order."""
        return self._classes
