"""How much a counterfactual is like the data."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.packing import flat
from ...engine.randomness import Noise
from ...engine.scores import Everything, Output
from ...perturb.goals import as_logits
from .case import Case, Floats, told

MANY = 100  # rows of the target class that implausibility looks at
STRAIGHT = 20  # points on the way to a neighbour


def knn(case: Case) -> Tensor:
    """The mean Euclidean distance to the nearest rows of the data that are meant, in the space chosen."""
    return _by_side(case, lambda here, crowd: _near(here, crowd, case.neighbours).mean(1))


def knn_ratio(case: Case) -> Tensor:
    """:func:`knn` over its mean for those rows of the data themselves: about 1 for what is like the data."""

    def ratio(here: Floats, crowd: Floats) -> Floats:
        if len(crowd) < 2:
            return np.full(len(here), np.nan)
        usual = float(_near(None, crowd, case.neighbours).mean())
        return np.asarray(_near(here, crowd, case.neighbours).mean(1) / (usual or np.nan))

    return _by_side(case, ratio)


def implausibility(case: Case) -> Tensor:
    """The mean L1 distance to the 100 nearest rows of the data that are meant, in the space chosen.

    Altmeyer et al. (AAAI 2024), for the nearest ones.
    """
    return _by_side(case, lambda here, crowd: _near(here, crowd, MANY, "manhattan").mean(1))


def lof(case: Case) -> Tensor:
    """The local outlier factor among the data, of 20 neighbours: about 1 inside, more outside.

    Breunig et al. (SIGMOD 2000), by scikit-learn, in the space chosen.
    """
    from sklearn.neighbors import LocalOutlierFactor

    assert case.data is not None
    if len(case.data) < 2:
        return torch.full((len(case.z),), torch.nan, dtype=torch.float64)
    known = LocalOutlierFactor(min(20, len(case.data) - 1), novelty=True).fit(case.scaled(case.data))
    return torch.from_numpy(-known.score_samples(case.scaled(case.z)))


def isolation(case: Case) -> Tensor:
    """The isolation forest's decision: above 0 inside the data, below outside.

    Liu, Ting, Zhou (ICDM 2008), by scikit-learn, drawn from the seed.
    """
    from sklearn.ensemble import IsolationForest

    assert case.data is not None
    known = IsolationForest(random_state=case.seed).fit(case.scaled(case.data))
    return torch.from_numpy(known.decision_function(case.scaled(case.z)))


def ynn(case: Case) -> Tensor:
    """The share of the nearest rows of the whole data that the model takes for what is meant.

    Pawelczyk et al. (NeurIPS Datasets 2021); here also for more than two classes.
    """
    from sklearn.neighbors import NearestNeighbors

    assert case.data is not None
    crowd = NearestNeighbors(n_neighbors=min(case.neighbours, len(case.data))).fit(case.scaled(case.data))
    near = torch.from_numpy(crowd.kneighbors(case.scaled(case.z), return_distance=False))
    return case.alike(by_model=True).gather(1, near).double().mean(1)


def gower_knn(case: Case) -> Tensor:
    """The mean Gower distance to the nearest rows of the whole data. Dandl et al. (PPSN 2020), fourth objective."""
    near = _near(_gower_space(case, case.after), _gower_space(case, case.crowd), case.neighbours, "manhattan")
    return torch.from_numpy(near.mean(1)) / len(case.numeric)


def trust(case: Case) -> Tensor:
    """The distance to the nearest row of the data that is not meant, over that to the nearest one that is.

    Jiang et al. (NeurIPS 2018), without their filter of outliers; Euclidean, in the space chosen.
    """
    meant = case.alike()
    to, of = (_by_side(case, lambda here, crowd: _near(here, crowd, 1)[:, 0], a) for a in (~meant, meant))
    return to / of.clamp(min=torch.finfo(torch.float64).tiny)


def connected(case: Case) -> Tensor:
    """Whether the straight way to the nearest row of the data that is meant reaches the goal all along, on 20 points.

    Enough for what Laugel et al. (IJCAI 2019) call justified; the row's label and the model's answer are both as meant.
    """
    assert case.data is not None
    meant = case.alike() & case.alike(by_model=True)
    end = torch.full((len(case.z),), -1)
    for here, crowd, these in case.sides(meant):
        if len(crowd):
            members = meant[these[0]].nonzero().squeeze(1)
            end[these] = members[torch.from_numpy(_near(here, crowd, 1, which=True)[:, 0])]
    some = (end >= 0).nonzero().squeeze(1)

    def query(part: slice) -> tuple[Tensor, Tensor]:
        n = torch.arange(part.start, part.stop)
        at = some[n // STRAIGHT]
        t = ((n % STRAIGHT + 1) / STRAIGHT).to(case.z)[:, None]
        at_z, to = at.to(case.z.device), end[at].to(case.z.device)
        return torch.lerp(case.z[at_z], case.data[to], t), case.rows[at_z]  # type: ignore[index]  # there are data

    out = torch.full((len(case.z),), torch.nan, dtype=torch.float64)
    reached = [(v > 0).cpu() for _, v in case.f.values(len(some) * STRAIGHT, query)]
    if reached:
        out[some] = (torch.cat(reached).reshape(-1, STRAIGHT).all(1) & (case.margin[some] > 0)).double()
    return out


def log_density(case: Case) -> Tensor:
    """The logarithm of a density: of scikit-learn's kernels around the data, or of what is handed in.

    The kernels are Gaussian and of Scott's width, in units in which each element of the data has deviation 1.
    """
    if case.density != "kde":
        scores = getattr(case.density, "score_samples", None)
        if scores is not None:
            return torch.as_tensor(scores(told(case.z).numpy()), dtype=torch.float64)
        return told(torch.as_tensor(case.density(*case.f.packing.unpack(case.z)))).reshape(-1)
    from sklearn.neighbors import KernelDensity

    assert case.data is not None
    crowd = told(case.data)
    unit = crowd.std(0, correction=0)
    unit = torch.where(unit > 0, unit, 1)
    known = KernelDensity(bandwidth="scott").fit((crowd / unit).numpy())
    return torch.from_numpy(known.score_samples((told(case.z) / unit).numpy()))


def im1(case: Case) -> Tensor:
    """How much better the target class' autoencoder repairs it than that of the class it came from: less is better.

    Van Looveren, Klaise (ECML 2021): ``|x - AE_t(x)|^2 / |x - AE_o(x)|^2``.
    """
    of_target, of_own = (_repaired(case, classes) for classes in (case.target.tolist(), case.own.tolist()))
    z = told(case.z)
    return (z - of_target).square().sum(1) / ((z - of_own).square().sum(1) + 1e-10)


def im2(case: Case) -> Tensor:
    """How much the target class' autoencoder and that of all classes differ about it, relative to its size.

    Van Looveren, Klaise (ECML 2021): ``|AE_t(x) - AE(x)|^2 / |x|_1``.
    """
    of_target, of_all = (_repaired(case, classes) for classes in (case.target.tolist(), ["all"] * len(case.z)))
    return (of_target - of_all).square().sum(1) / (told(case.z).abs().sum(1) + 1e-10)


def unfaithfulness(case: Case) -> Tensor:
    """The mean L1 distance to what the model itself takes for the target class, in the space chosen.

    Altmeyer et al. (AAAI 2024); the points are drawn by :class:`Langevin`, by key.
    """
    assert case.data is not None
    low, high = case.data.amin(0), case.data.amax(0)
    out = torch.empty(len(case.z), dtype=torch.float64)
    for t in case.target.unique().tolist():
        these = (case.target == t).nonzero().squeeze(1)
        f = case.f.to(of=Output(partial(_logit, y=t)))
        rows = case.rows[these[:1].to(case.rows.device)].expand(case.sampler.count)
        noise = Noise(case.seed, "langevin", [f"{t}/{i}" for i in range(case.sampler.count)])
        drawn = torch.from_numpy(case.scaled(case.sampler.draw(f, rows, low, high, noise)))
        out[these] = torch.cdist(torch.from_numpy(case.scaled(case.z))[these], drawn, p=1).mean(1)
    return out


def energy(case: Case) -> Tensor:
    """By how much the model's energy of the target class, ``E_t(x) = -f_t(x)``, is higher than at the input.

    The energy is that of Altmeyer et al. (AAAI 2024); below 0, the model takes it more for the target than the input.
    """
    of = case.target[:, None]
    return (case.logits(case.x, case.rows).gather(1, of) - case.scores.gather(1, of)).squeeze(1)


def _logit(out: Tensor, y: int) -> Tensor:
    return as_logits(out, out)[:, y]


def _near(here: Floats | None, crowd: Floats, k: int, metric: str = "euclidean", which: bool = False) -> Any:
    """Distances to the k nearest of the crowd [n, k] (or which these are); without ``here``, of the crowd itself."""
    from sklearn.neighbors import NearestNeighbors

    known = NearestNeighbors(n_neighbors=min(k, len(crowd) - (here is None)), metric=metric).fit(crowd)
    return known.kneighbors(here)[1 if which else 0]


def _by_side(case: Case, measure: Callable[[Floats, Floats], Floats], alike: Tensor | None = None) -> Tensor:
    """What a function makes of counterfactuals and the rows of the data that they are meant for; NaN without any."""
    out = torch.full((len(case.z),), torch.nan, dtype=torch.float64)
    for here, crowd, these in case.sides(case.alike() if alike is None else alike):
        if len(crowd):
            out[these] = torch.from_numpy(measure(here, crowd))
    return out


def _gower_space(case: Case, columns: Tensor) -> Floats:
    """Columns [n, J] where the L1 distance to rows of the data is J times Gower's."""
    parts = []
    for j, (column, number, span) in enumerate(zip(columns.T, case.numeric, case.span, strict=True)):
        if number and span > 0:
            parts.append(column[:, None] / span)
        elif number:
            parts.append((column != case.crowd[0, j]).double()[:, None])
        else:
            assert case.schema is not None
            parts.append(F.one_hot(column.long(), len(case.schema.features[j].categories)) / 2)
    return np.asarray(torch.cat(parts, 1).numpy())


def _repaired(case: Case, classes: list[Any]) -> Tensor:
    """What the autoencoder of each one's class makes of it [R, D]; NaN where there is none."""
    out = torch.full(case.z.shape, torch.nan, dtype=torch.float64)
    for c in set(classes) & set(case.autoencoders):
        these = torch.tensor([i for i, of in enumerate(classes) if of == c], device=case.z.device)
        f = case.f.to(model=case.autoencoders[c], of=Everything(), args=(), kwargs={}, meter=None)
        out[these.cpu()] = told(flat(f.value(case.z[these], case.rows[these])))
    return out
