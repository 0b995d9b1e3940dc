"""Randomness: a draw is a function of what it is for, and of nothing else."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.testing import assert_close

from robustx.engine import Noise, identities

DRAWS = ["uniform", "normal", "exponential"]
every = pytest.mark.parametrize("draw", DRAWS)
LIKE = torch.zeros(0, dtype=torch.float64)


def noise(n=6, **changes):
    return replace(Noise(1, "pgd", [f"sample {i}" for i in range(n)], restart=2), **changes)


def rows(source, draw, d=5, like=LIKE):
    return getattr(source, draw)(d, like)


@every
def test_draws_depend_on_the_key_alone(draw):
    expected = rows(noise(), draw)
    some = torch.tensor([4, 1, 1, 0])
    assert torch.equal(rows(noise().at(some), draw), expected[some])
    assert torch.equal(torch.cat([rows(noise().at(torch.tensor([i])), draw) for i in range(6)]), expected)
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert torch.equal(rows(noise(), draw), expected)


@every
@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"method": "fgsm"}, {"restart": 3}, {"draw": 1}, {"samples": [f"other {i}" for i in range(6)]}],
)
def test_every_part_of_the_key_counts(draw, change):
    assert (rows(noise(), draw) != rows(noise(**change), draw)).all()


def test_keys_do_not_run_together():
    keys = [noise(1, seed=s, restart=r, draw=d) for s in (1, 11) for r in (1, 11) for d in (1, 11)]
    assert len({float(rows(k, "uniform", 1)) for k in keys}) == 8


def test_generators_are_draws_like_any_other():
    source = noise()
    expected = rows(noise(), "uniform")
    assert torch.equal(torch.from_numpy(np.stack([g.random(5) for g in source.generators()])), expected)
    assert source.draw == 1 and noise(0).generators() == []


@every
def test_each_draw_is_another_one(draw):
    source = noise()
    first, second = rows(source, draw), rows(source, draw)
    assert (first != second).all()
    assert torch.equal(rows(source.again(2), draw), first) and source.draw == 2
    part = source.at(torch.tensor([3]))  # goes on where the whole stands, and leaves it there
    assert torch.equal(rows(part, draw), rows(source, draw)[3:4])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_starts_from_the_same_points(draw, dtype):
    found = rows(noise(), draw, like=torch.zeros(0, dtype=dtype))
    assert found.dtype == dtype and torch.equal(found, rows(noise(), draw).to(dtype))


@every
@pytest.mark.parametrize("n, d", [(0, 3), (3, 0), (1, 1)])
def test_shapes(draw, n, d):
    assert rows(noise(n), draw, d).shape == (n, d)


@pytest.mark.parametrize("draw, law", [("uniform", "uniform"), ("normal", "norm"), ("exponential", "expon")])
def test_distributions(draw, law):
    found = rows(noise(2000), draw, 3).numpy()
    assert kstest(found.ravel(), law).pvalue > 1e-3
    assert kstest(found[:, 0], law).pvalue > 1e-3
    assert abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.08


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for draw in DRAWS:
        rows(noise(), draw)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_numbers_are_these_on_every_machine():
    """Philox keyed by SHA-256: written anew from the words of its docstring."""
    import hashlib

    key = hashlib.sha256(b"1/pgd/2/sample 0/0").digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    assert_close(rows(noise(1), "normal"), torch.from_numpy(generator.standard_normal(5))[None], atol=0, rtol=0)


def test_samples_are_known_by_their_content():
    z = torch.randn(5, 4)
    names = identities(z)
    assert len(set(names)) == 5
    order = torch.tensor([3, 0, 0])
    assert identities(z[order]) == [names[i] for i in order]
    assert identities(z.double()) == identities(z.clone().requires_grad_()) == names
    assert identities(z.t().contiguous().t()) == names
    assert identities(torch.tensor([[0.0, 1.0]])) == identities(torch.tensor([[-0.0, 1.0]]))
    assert identities(z + 1e-6) != names
    assert identities(torch.zeros(0, 3)) == []


def test_samples_of_several_tensors():
    """Pictures, ids and tables alike; what any of them holds tells samples apart."""
    picture, ids = torch.randn(3, 2, 4), torch.tensor([[1, 2], [1, 2], [1, 3]])
    picture[2] = picture[1]
    one, same, other = identities(picture, ids)
    assert len({*identities(picture, ids), *identities(ids, picture)}) == 6 and one != same != other
    assert identities(picture[1:], ids[1:]) == [same, other]
    assert identities(torch.cat([picture.flatten(1), ids], 1)) == [one, same, other]


@every
def test_copies_of_a_row_are_told_apart_by_their_numbers(draw):
    """And draw the same wherever they stand, and whatever other copies are asked for."""
    whose, first, second = torch.tensor([[3, 0, 3, 3, 0], [0, 0, 1, 0, 1], [5, 5, 5, 6, 5]])
    drawn = rows(noise().copies(whose, first, second), draw)
    assert len(drawn.unique(dim=0)) == 5
    for i in range(5):
        assert torch.equal(
            rows(noise().copies(whose[i : i + 1], first[i : i + 1], second[i : i + 1]), draw)[0], drawn[i]
        )
    assert torch.equal(
        rows(noise().at(torch.tensor([3])).copies(torch.tensor([0]), first[2:3], second[2:3]), draw)[0], drawn[2]
    )
