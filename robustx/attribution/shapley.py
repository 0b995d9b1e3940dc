"""Shapley values: every feature's fair share of a change, from the values of coalitions."""

from math import factorial

import torch
from torch import Tensor

from ..engine.probe import Probe
from ..engine.randomness import Noise, identities

EXACT = 10  # players up to whom all 2^k coalitions are asked


def shapley(g: Probe, players: Tensor, orders: int = 8, seed: int = 0) -> Tensor:
    """Each player's share of score(gates open for all players) - score(gates shut) [B, F], in float64; it adds up.

    Lloyd Shapley (1953). ``g`` stands at gates; ``players`` [B, F] says which features take part in each row, the
    others' gates stay shut and their share is 0. Rows with up to ten players are exact (all 2^k coalitions); larger
    ones take the mean over ``orders`` random orders and their reverses, drawn by key (Castro et al., 2009), which
    adds up as well.
    """
    shares = torch.zeros(players.shape, dtype=torch.float64)
    counts = players.sum(1)
    for k in counts.unique().tolist():
        rows = (counts == k).nonzero().squeeze(1)
        who = players[rows].nonzero()[:, 1].reshape(len(rows), k)
        if k == 0 or not len(rows):
            continue
        found = _exact(g, rows, who) if k <= EXACT else _sampled(g, rows, who, orders, seed)
        shares[rows.cpu()[:, None], who.cpu()] = found
    return shares


def _exact(g: Probe, rows: Tensor, who: Tensor) -> Tensor:
    k = who.shape[1]
    corners = (torch.arange(2**k)[:, None] >> torch.arange(k)) & 1  # [2^k, k]
    v = _ask(g, rows, who, corners.expand(len(rows), -1, -1))  # [n, 2^k]
    weight = torch.tensor([factorial(s) * factorial(k - 1 - s) / factorial(k) for s in range(k)], dtype=torch.float64)
    size = corners.sum(1)
    inside = weight[(size - 1).clamp(min=0)][:, None] * corners
    outside = weight[size.clamp(max=k - 1)][:, None] * (1 - corners)
    return v @ (inside - outside)


def _sampled(g: Probe, rows: Tensor, who: Tensor, orders: int, seed: int) -> Tensor:
    n, k = who.shape
    noise = Noise(seed, "shapley", identities(torch.cat([g.inputs[0][rows].reshape(n, -1).float(), who.float()], 1)))
    total = torch.zeros(n, k, dtype=torch.float64)
    for _ in range(orders):
        order = noise.uniform(k, total).argsort(1)
        for walk in (order, order.flip(1)):
            place = walk.argsort(1)  # when each player arrives
            corners = (place[:, None, :] < torch.arange(k + 1)[None, :, None]).long()  # [n, k + 1, k]
            gain = _ask(g, rows, who, corners).diff(dim=1)
            total += gain.gather(1, place) / (2 * orders)
    return total


def _ask(g: Probe, rows: Tensor, who: Tensor, corners: Tensor) -> Tensor:
    """Scores [n, S] of each row at its corners [n, S, k] of the gates of its players [n, k], in float64."""
    n, s, k = corners.shape
    corners = corners.to(g.device)

    def query(part: slice) -> tuple[Tensor, Tensor]:
        q = torch.arange(part.start, part.stop, device=g.device)
        row, corner = q // s, q % s
        gates = torch.zeros(len(q), g.packing.sizes[0], dtype=g.packing.dtype, device=g.device)
        return gates.scatter(1, who[row], corners[row, corner].to(gates)), rows[row]

    parts = [v for _, v in g.values(n * s, query)]
    return torch.cat(parts).cpu().double().reshape(n, s)
