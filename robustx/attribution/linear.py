"""Linear models that stand in for another one near an example: by least squares, scikit-learn or SGD."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from math import inf
from pkgutil import resolve_name
from time import perf_counter
from types import MappingProxyType
from typing import Any, ClassVar
from warnings import warn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(labels [n, K], predictions [n, K], weights [n, 1]) -> what is made small."""

FAINTEST = 1e-6  # of the strongest direction of the data, as in scikit-learn: what is fainter is not told from rounding


def least_squares(x: Tensor, y: Tensor, penalty: float = 0.0) -> Tensor:
    """The smallest b [B, F, T] that minimises ``|y - x b|² + penalty |b|²``, for x [B, S, F] and y [B, S, T].

    By the normal equations of the shorter side.
    """
    tall = x.shape[1] >= x.shape[2]
    gram = x.mT @ x if tall else x @ x.mT
    gram = gram + penalty * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.pinv(gram, rtol=FAINTEST**2, hermitian=True)
    return inverse @ (x.mT @ y) if tall else x.mT @ (inverse @ y)


def ridge(
    x: Tensor, y: Tensor, weights: Tensor, alpha: float = 0.0, fit_intercept: bool = True
) -> tuple[Tensor, Tensor]:
    """Coefficients [B, T, F] and intercepts [B, T] by weighted least squares; x [B, S, F], y [B, S, T], weights [B, S].

    ``alpha`` times their squares is added, but not the intercept's (Hoerl, Kennard, Technometrics 1970).
    """
    centred = _Centred(x, y, weights, fit_intercept)
    return centred.solution(least_squares(centred.x, centred.y, alpha).mT)


def lasso(
    x: Tensor, y: Tensor, weights: Tensor, alpha: float, fit_intercept: bool, max_iter: int, tol: float
) -> tuple[Tensor, Tensor]:
    """The same where the mean of squares is halved and ``alpha`` times the coefficients' sizes is added.

    Tibshirani (J. R. Stat. Soc. B, 1996); by scikit-learn's coordinate descent, without its checks of each call.
    """
    from sklearn import config_context
    from sklearn.linear_model import lasso_path

    centred = _Centred(x, y, weights * (weights.shape[1] / weights.sum(1, keepdim=True)), fit_intercept)
    columns, labels = centred.x.mT.contiguous().cpu().numpy(), centred.y.mT.contiguous().cpu().numpy()
    how: dict[str, Any] = {"alphas": [alpha], "max_iter": max_iter, "tol": tol, "check_input": False}
    slopes = x.new_empty(len(x), y.shape[2], x.shape[2])
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for i, j in np.ndindex(*slopes.shape[:2]):
            _, found, _ = lasso_path(columns[i].T, labels[i, j], precompute=False, **how)
            slopes[i, j] = torch.from_numpy(found[:, 0])
    return centred.solution(slopes)


class _Centred:
    """Weighted data about their mean, which leaves no intercept: x [B, S, F] and y [B, S, T]."""

    def __init__(self, x: Tensor, y: Tensor, weights: Tensor, intercept: bool) -> None:
        share = weights[:, None] / weights.sum(1)[:, None, None] * intercept
        root = weights[..., None].sqrt()
        self.at_x, self.at_y = share @ x, share @ y
        self.x, self.y = root * (x - self.at_x), root * (y - self.at_y)

    def solution(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes [B, T, F], and the intercepts [B, T] that belong to them."""
        return slopes, self.at_y[:, 0] - (slopes @ self.at_x.mT)[..., 0]


class LinearModel(nn.Module):
    """A linear model that is made when it is fitted: weight @ norm(x) + bias.

    Args:
        train_fn: fits it: called with the model, ``dataloader``, ``construct_kwargs`` and what else :meth:`fit` is
            given, it calls :meth:`construct`.
        kwargs: the ``construct_kwargs``.
    """

    NORMS = (None, "batch_norm", "layer_norm")

    def __init__(self, train_fn: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__()
        self.train_fn, self.construct_kwargs = train_fn, kwargs
        self.norm: nn.Module | None = None
        self.linear: nn.Linear | None = None
        self._classes: Tensor | None = None

    def construct(
        self,
        in_features: int,
        out_features: int = 1,
        norm_type: str | None = None,
        affine_norm: bool = False,
        bias: bool = True,
        weight: Tensor | None = None,
        bias_value: Tensor | None = None,
        classes: Tensor | None = None,
        like: Tensor | None = None,
    ) -> None:
        """Makes the parameters anew, with the dtype and device of ``like``; ``weight`` [out, in] and ``bias_value``
        [out] are taken if given.

        Raises:
            ValueError: no such norm.
        """
        if norm_type not in self.NORMS:
            raise ValueError(f"norm_type must be one of {', '.join(map(repr, self.NORMS))}, got {norm_type!r}")
        self.norm = None
        if norm_type == "batch_norm":
            self.norm = nn.BatchNorm1d(in_features, eps=1e-8, affine=affine_norm)
        elif norm_type == "layer_norm":
            self.norm = nn.LayerNorm(in_features, eps=1e-8, elementwise_affine=affine_norm)
        self.linear, self._classes = nn.utils.skip_init(nn.Linear, in_features, out_features, bias), classes
        if weight is None:
            self.linear.reset_parameters()  # it draws
        if like is not None:
            self.to(like.device, like.dtype)
        with torch.no_grad():
            if weight is not None:
                self.linear.weight.copy_(weight)
            if bias_value is not None:
                self.linear.bias.copy_(bias_value)

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> Any:
        """Fits it anew to batches (x [n, F], labels [n] or [n, K]) or (x, labels, weights [n])."""
        return self.train_fn(self, dataloader=train_data, construct_kwargs=self.construct_kwargs, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        return nn.functional.linear(x, self._made.weight, self._made.bias)

    def representation(self) -> Tensor:
        """The coefficients [K, F]."""
        return self._made.weight.detach()

    def bias(self) -> Tensor | None:
        """The intercepts [K]."""
        return None if self._made.bias is None else self._made.bias.detach()

    def classes(self) -> Tensor | None:
        """The labels of the columns, of a classifier."""
        return self._classes

    @property
    def _made(self) -> nn.Linear:
        if self.linear is None:
            raise RuntimeError(f"{type(self).__name__} has not been fitted; call fit first")
        return self.linear


# --- by scikit-learn, or as it would ----------------------------------------------------------------------


def sklearn_train_linear_model(
    model: LinearModel,
    dataloader: DataLoader[Any],
    construct_kwargs: Mapping[str, Any],
    sklearn_trainer: str = "linear_model.Lasso",
    **fit_kwargs: Any,
) -> dict[str, float]:
    """Fits a linear model of scikit-learn to all batches together, and takes its coefficients over.

    Args:
        sklearn_trainer: its name within ``sklearn``.
        construct_kwargs, fit_kwargs: for its constructor and its ``fit``.
    """
    batches = [list(map(_widened, batch)) for batch in dataloader]
    x, y, *w = map(torch.cat, zip(*batches, strict=True))
    start = perf_counter()
    found = _learned(sklearn_trainer, construct_kwargs, x, y, *w, **fit_kwargs)
    taken = perf_counter() - start
    weight = torch.from_numpy(found.coef_).reshape(-1, x.shape[1]).to(x)
    classes = torch.as_tensor(found.classes_) if hasattr(found, "classes_") else None
    intercept = torch.as_tensor(found.intercept_).reshape(-1).expand(len(weight)).to(x)
    model.construct(x.shape[1], len(weight), weight=weight, bias_value=intercept, classes=classes, like=x)
    return {"train_time": taken}


def _learned(name: str, options: Mapping[str, Any], x: Tensor, y: Tensor, w: Tensor | None = None, **more: Any) -> Any:
    """An estimator of scikit-learn, fitted."""
    from sklearn.utils.validation import has_fit_parameter

    estimator = resolve_name(f"sklearn.{name}")(**options)
    if w is not None and has_fit_parameter(estimator, "sample_weight"):
        more["sample_weight"] = w.cpu().numpy()
    elif w is not None:
        warn(f"{name} of scikit-learn takes no sample weights: all samples count alike", stacklevel=2)
    return estimator.fit(x.cpu().numpy(), y.cpu().numpy(), **more)


def _widened(t: Tensor) -> Tensor:
    """In single precision at least, which scikit-learn can take."""
    return t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t


class SkLearnLinearModel(LinearModel):
    """A linear model of scikit-learn.

    Args:
        sklearn_module: its name within ``sklearn``, such as ``"linear_model.Lasso"``.
        kwargs: for its constructor.
    """

    formula: ClassVar[Callable[..., tuple[Tensor, Tensor]] | None] = None  # of many fits at once
    usual: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # what it takes, and scikit-learn's defaults

    def __init__(self, sklearn_module: str, **kwargs: Any) -> None:
        super().__init__(sklearn_train_linear_model, **kwargs)
        self.sklearn_module = sklearn_module

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> Any:
        return super().fit(train_data, sklearn_trainer=self.sklearn_module, **kwargs)

    def solve(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [B, T, F] and intercepts [B, T] of B * T fits, to x [B, S, F], y [B, S, T], weights [B, S].

        The model keeps the last one's.
        """
        slopes, intercepts = self._solved(x, y, weights)
        if len(x):
            self.construct(x.shape[2], weight=slopes[-1, -1:], bias_value=intercepts[-1, -1:], like=x)
        return slopes, intercepts

    def _solved(self, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        options = {**self.usual, **self.construct_kwargs}
        if self.formula is not None and options.keys() == self.usual.keys():
            return self.formula(x, y, weights, **options)
        slopes, intercepts = x.new_empty(len(x), y.shape[2], x.shape[2]), x.new_empty(len(x), y.shape[2])
        for i, j in np.ndindex(*intercepts.shape):
            found = _learned(self.sklearn_module, self.construct_kwargs, x[i], y[i, :, j], weights[i])
            slopes[i, j], intercepts[i, j] = torch.from_numpy(found.coef_).to(x), float(found.intercept_)
        return slopes, intercepts


class SkLearnLasso(SkLearnLinearModel):
    """``sklearn.linear_model.Lasso``: few coefficients that are not zero."""

    formula = staticmethod(lasso)
    usual = MappingProxyType({"alpha": 1.0, "fit_intercept": True, "max_iter": 1000, "tol": 1e-4})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("linear_model.Lasso", **kwargs)


class SkLearnRidge(SkLearnLinearModel):
    """``sklearn.linear_model.Ridge``: small coefficients."""

    formula = staticmethod(ridge)
    usual = MappingProxyType({"alpha": 1.0, "fit_intercept": True})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("linear_model.Ridge", **kwargs)


class SkLearnLinearRegression(SkLearnLinearModel):
    """``sklearn.linear_model.LinearRegression``: least squares."""

    formula = staticmethod(ridge)
    usual = MappingProxyType({"fit_intercept": True})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("linear_model.LinearRegression", **kwargs)


# --- by gradient descent ----------------------------------------------------------------------------------


def l2_loss(x1: Tensor, x2: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half the mean squared error, weighted."""
    off = (x1 - x2).square()
    return (off.mean() if weights is None else (weights / weights.norm(p=1) * off).sum()) / 2


def sgd_train_linear_model(
    model: LinearModel,
    dataloader: DataLoader[Any],
    construct_kwargs: Mapping[str, Any],
    max_epoch: int = 100,
    reduce_lr: bool = True,
    initial_lr: float = 0.01,
    alpha: float = 1.0,
    loss_fn: Loss = l2_loss,
    reg_term: int | None = 1,
    patience: int = 10,
    threshold: float = 1e-4,
    running_loss_window: int | None = None,
    device: str | None = None,
    init_scheme: str | None = "zeros",
) -> dict[str, float]:
    """Fits a linear model by stochastic gradient descent until its mean loss falls no more.

    Args:
        dataloader: batches as for :meth:`LinearModel.fit`.
        construct_kwargs: for :meth:`LinearModel.construct`.
        max_epoch: the most passes through the data.
        reduce_lr: halve the learning rate where the loss stands still.
        initial_lr: the first learning rate.
        alpha: weight of the penalty.
        loss_fn: what is made small, with the penalty.
        reg_term: p of the penalty's norm of the coefficients (1: lasso); None: no penalty.
        patience: batches in a row without progress that end it.
        threshold: what counts as progress.
        running_loss_window: batches over which the loss is averaged; None: as many as there are examples.
        device: where it happens; None: where the data are.
        init_scheme: ``"zeros"`` or ``"xavier"`` at the start; None: as PyTorch draws.

    Raises:
        ValueError: no such ``init_scheme``.
    """
    if init_scheme not in (None, "zeros", "xavier"):
        raise ValueError(f"init_scheme must be 'zeros', 'xavier' or None, got {init_scheme!r}")
    steps = _steps(dataloader, max_epoch, device)
    _, x, y, _ = first = next(steps)
    model.construct(x.shape[1], y.shape[1], **construct_kwargs, like=x)
    model.train()
    linear = model.linear
    assert linear is not None
    if init_scheme is not None:
        nn.init.xavier_uniform_(linear.weight) if init_scheme == "xavier" else nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    losses: deque[float] = deque(maxlen=running_loss_window or len(x) * len(dataloader))
    start, least, stale = perf_counter(), inf, 0
    with torch.enable_grad():
        optimiser = torch.optim.SGD(model.parameters(), lr=initial_lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, factor=0.5, patience=patience, threshold=threshold
        )
        for taken, (epoch, x, y, w) in enumerate(chain([first], steps), 1):
            loss = loss_fn(y, model(x), w)
            if reg_term is not None:
                loss = loss + alpha * linear.weight.norm(p=reg_term)
            losses.append(loss.item())
            mean = sum(losses) / len(losses)
            stale = stale + 1 if mean > least - threshold else 0
            least = min(least, mean)
            told = {"train_loss": mean, "train_iter": taken, "train_epoch": epoch}
            if stale >= patience:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if reduce_lr:
                schedule.step(mean)
    model.eval()
    return {"train_time": perf_counter() - start, **told}


def _steps(
    loader: DataLoader[Any], epochs: int, device: str | None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
    """The epoch, x [n, F], labels [n, K] and weights [n, 1], if there are any."""
    for epoch in range(epochs):
        for batch in loader:
            x, y, *w = (_widened(t).to(device or t.device).reshape(len(t), -1) for t in batch)
            yield epoch, x, y, w[0] if w else None


class SGDLinearModel(LinearModel):
    """A linear model fitted by gradient descent; see :func:`sgd_train_linear_model` for what ``fit`` takes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sgd_train_linear_model, **kwargs)


class SGDLasso(SGDLinearModel):
    """Squared loss, and the sum of the coefficients' sizes."""

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> Any:
        return super().fit(train_data, loss_fn=l2_loss, reg_term=1, **kwargs)


class SGDRidge(SGDLinearModel):
    """Squared loss, and the coefficients' length."""

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> Any:
        return super().fit(train_data, loss_fn=l2_loss, reg_term=2, **kwargs)


class SGDLinearRegression(SGDLinearModel):
    """Squared loss alone."""

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> Any:
        return super().fit(train_data, loss_fn=l2_loss, reg_term=None, **kwargs)
