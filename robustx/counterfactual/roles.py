"""What some features are to counterfactuals: whether they are enough to change, and whether they have to."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, stack

from .explainer import CounterfactualExplainer
from .spelling import fixed


def necessity(
    explainer: CounterfactualExplainer, x: Any, features: Iterable[int | str] | int | str, n: int = 1, **asked: Any
) -> Tensor:
    """The share of counterfactuals that are found if only these features may change [B]; its mean is over all.

    Mothilal et al. (AIES 2021): of n that are asked for, for each example. Further ones of an example differ in which
    features change, so that of a single feature there is one at most; DiCE counts several values of it.

    Args:
        explainer: what finds them.
        x: as for its ``generate``.
        features: by id or name.
        n: how many are asked for, of each example.
        asked: what else ``generate`` takes, such as ``target``; what is ``immutable`` stays so.

    Raises:
        ArgumentError: there are no such features.

    >>> import torch
    >>> explainer = CounterfactualExplainer(lambda x: x @ torch.tensor([1.0, 2.0, 4.0]) - 3.5, bounds=(0, 1))
    >>> x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> necessity(explainer, x, 2), necessity(explainer, x, [0, 1])  # the third is enough, the other two are not
    (tensor([1., 1.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
    """
    names = explainer.schema.names if explainer.schema is not None else asked.get("names")
    others = fixed(_several(features), names, x, asked.get("feature_mask"), "features")
    return _found(explainer, x, others, n, asked)


def sufficiency(
    explainer: CounterfactualExplainer, x: Any, features: Iterable[int | str] | int | str, n: int = 1, **asked: Any
) -> Tensor:
    """The share of counterfactuals that are found, less the share if these features may not change [B].

    Mothilal et al. (AIES 2021); arguments and errors as for :func:`necessity`. 1: nothing can be changed without them.

    >>> import torch
    >>> explainer = CounterfactualExplainer(lambda x: x @ torch.tensor([1.0, 2.0, 4.0]) - 2.5, bounds=(0, 1))
    >>> x = torch.zeros(1, 3)
    >>> (
    ...     sufficiency(explainer, x, 2).item(),
    ...     sufficiency(explainer, x, [1, 2]).item(),
    ... )  # without the third 1 + 2 is enough
    (0.0, 1.0)
    """
    return _found(explainer, x, [], n, asked) - _found(explainer, x, _several(features), n, asked)


def _several(features: Iterable[int | str] | int | str) -> list[int | str]:
    return [features] if isinstance(features, int | str) else list(features)


def _found(
    explainer: CounterfactualExplainer, x: Any, frozen: Iterable[int | str], n: int, asked: dict[str, Any]
) -> Tensor:
    """The share of n counterfactuals that are found while some features may not change [B]."""
    immutable = [*_several(asked.get("immutable", ())), *frozen]
    result = explainer.generate(x, n=n, **asked | {"immutable": immutable})
    return stack([r.valid for r in (result, *result.alternatives)]).double().mean(0)


__all__ = ["necessity", "sufficiency"]
