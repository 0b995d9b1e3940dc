"""Attribution of a number that is made of a whole data set, batch by batch: precision, recall, a mean loss."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..engine.checks import ArgumentError, ArgumentTypeError
from ..engine.memory import unweighed
from ..engine.packing import Packing
from ..engine.probe import Door
from ..perturb.features import features_of
from ..perturb.gates import Gates, gated
from ..perturb.references import through
from .base import Attribution, LayerAttribution, PerturbationAttribution

TOGETHER = 64  # perturbations in one traversal


class InputRole:
    """What an element of a batch is for: to be attributed, to be passed to the model only, or neither (a label)."""

    need_attr = 0
    need_forward = 1
    no_forward = 2


class DataLoaderAttribution(Attribution):
    """A method of coalitions, asked about a metric over a data loader: which features of all examples it is owed to.

    Args:
        attr_method: how the metric is shared out: an instance of ``FeatureAblation``, ``ShapleyValueSampling``,
            ``KernelShap`` or any other that takes a ``feature_mask``.

    Raises:
        TypeError: the method is none of these.

    >>> import torch
    >>> from robustx.attribution import FeatureAblation
    >>> x, y = torch.tensor([[1.0, 5.0], [2.0, 7.0], [3.0, 9.0]]), torch.tensor([1.0, 2.0, 3.0])
    >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    >>> def errors(total, out, batch):
    ...     return (total or 0) + (out - batch[1]).abs().sum()
    >>> method = DataLoaderAttribution(FeatureAblation(lambda x: x[:, 0]))
    >>> method.attribute(loader, (InputRole.need_attr, InputRole.no_forward), reduce=errors)[0]
    tensor([[-6.,  0.]])
    """

    def __init__(self, attr_method: Attribution) -> None:
        gives_way = isinstance(attr_method, PerturbationAttribution) and not isinstance(attr_method, LayerAttribution)
        if not gives_way or "baselines" not in signature(attr_method.attribute).parameters:
            raise ArgumentTypeError(
                "attr_method must be a method of features that give way at the inputs, such as FeatureAblation(model), "
                f"got {type(attr_method).__name__}"
            )
        super().__init__(attr_method.forward_func)
        self.attr_method = attr_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    def attribute(  # type: ignore[override]  # a loader stands for inputs
        self,
        dataloader: Iterable[Any],
        input_roles: Sequence[int] | None = None,
        baselines: Any = None,
        feature_mask: Any = None,
        reduce: Callable[[Any, Any, tuple[Any, ...]], Any] | None = None,
        to_metric: Callable[[Any], Any] | None = None,
        perturbations_per_pass: int = TOGETHER,
        show_progress: bool = False,
        return_input_shape: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Attributions [M, ...] of a metric of M numbers, shaped like the elements that are attributed otherwise.

        Args:
            dataloader: gives batches, all alike: a tensor, or a tuple or list of which some are tensors.
            input_roles: what each element of a batch is for, see :class:`InputRole`. Default: all are attributed.
            baselines: what features give way to, for every batch: see :class:`Attribution`; tensors have one row.
            feature_mask: as for :class:`FeatureAblation`, the same for every example.
            reduce: ``reduce(accumulated, output, batch) -> accumulated``, batch by batch; None comes first, and the
                batch is what the model was given, with the elements that it was not given. Default: all outputs
                together.
            to_metric: makes the metric, a tensor or a number, of what was accumulated. Default: as it is.
            perturbations_per_pass: how many are asked for in each traversal of the loader; as many results are held.
            show_progress: draw a bar on standard error.
            return_input_shape: False gives one number for each feature [M, F], ascending by id.
            kwargs: for the method: ``n_samples``, ``seed``.

        Raises:
            ValueError: roles, baselines or masks do not fit the batches, or there is no batch.
        """
        batch, single = _elements(next(iter(dataloader), ()))
        roles = (InputRole.need_attr,) * len(batch) if input_roles is None else tuple(input_roles)
        if len(roles) != len(batch) or InputRole.need_attr not in roles:
            raise ArgumentError(
                f"input_roles must name one role for each of the {len(batch)} elements of a batch, and one at least to "
                f"be attributed (0), got {roles}"
            )
        first = _attributed(batch, roles).inputs
        features = features_of(feature_mask, first)
        if not features.shared:
            raise ArgumentError("feature_mask must have one row, for the examples of all batches")
        for b in baselines if isinstance(baselines, tuple | list) else (baselines,):
            if isinstance(b, Tensor) and b.ndim and len(b) != 1:
                raise ArgumentError(f"baselines must have one row, for the examples of all batches, got {len(b)}")

        model = self.forward_func

        def metrics(there: Tensor) -> Tensor:
            """What comes of the loader where so much of each feature is there [n, F] -> [n, ...]."""
            totals: list[Any] = [None] * len(there)
            with unweighed():  # a batch's tensors are gone with it
                for batch in dataloader:
                    given, _ = _elements(batch)
                    f = _attributed(given, roles).probe(partial(_called, model, given, roles))
                    site = gated(f, features, through(baselines)).at
                    assert isinstance(site, Gates)
                    for i, gates in enumerate(1 - there):
                        moved = site.blend(gates.expand(f.examples, -1), f.everyone)
                        totals[i] = add(totals[i], f.to(inputs=moved).outputs(), _in_place(moved, given, roles))
            made = totals if to_metric is None else [to_metric(total) for total in totals]
            return torch.stack([_number(m) for m in made])

        add, method = reduce or _together, copy(self.attr_method)
        method.forward_func = metrics
        if "show_progress" in signature(method.attribute).parameters:
            kwargs["show_progress"] = show_progress
        there = torch.ones(1, features.count, device=first[0].device)
        found: Tensor = method.attribute(there, perturbations_per_eval=perturbations_per_pass, **kwargs)
        if not return_input_shape:
            return found
        shown = features.shown(found.reshape(-1, features.count))
        parts = tuple(p.reshape(*found.shape[:-1], *p.shape[1:]) for p in Packing.of(first).split(shown))
        return parts[0] if single else parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attr_method!r})"


def _elements(batch: Any) -> tuple[tuple[Any, ...], bool]:
    """The elements of a batch, and whether it is only one."""
    return (tuple(batch), False) if isinstance(batch, tuple | list) else ((batch,), True)


def _attributed(batch: tuple[Any, ...], roles: tuple[int, ...]) -> Door:
    return Door.open(tuple(v for v, role in zip(batch, roles, strict=True) if role == InputRole.need_attr))


def _in_place(moved: Iterable[Any], batch: tuple[Any, ...], roles: tuple[int, ...]) -> tuple[Any, ...]:
    """The batch with other elements where it is attributed."""
    turn = iter(moved)
    return tuple(next(turn) if role == InputRole.need_attr else v for v, role in zip(batch, roles, strict=True))


def _called(model: Callable[..., Any], batch: tuple[Any, ...], roles: tuple[int, ...], *moved: Tensor) -> Any:
    """The model on a batch, in the order in which its elements stand."""
    elements = zip(_in_place(moved, batch, roles), roles, strict=True)
    return model(*(v for v, role in elements if role != InputRole.no_forward))


def _together(total: Tensor | None, out: Tensor, batch: tuple[Any, ...]) -> Tensor:
    return out if total is None else torch.cat([total, out])


def _number(metric: Any) -> Tensor:
    if not isinstance(metric, Tensor | int | float):
        raise ArgumentTypeError(
            f"what reduce or to_metric make in the end must be a tensor or a number, got {type(metric).__name__}"
        )
    return metric if isinstance(metric, Tensor) else torch.tensor(metric, dtype=torch.float64)
