"""Counterfactuals among the codes of a linear autoencoder, where their least change is known."""

import pytest
import torch

from robustx.counterfactual import CounterfactualExplainer, Latent
from robustx.perturb import Until

UP = Until(lambda out: out)
DRAW = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64, generator=DRAW)).Q  # [6, 2], what data vary in
MEAN = torch.full((6,), 0.3, dtype=torch.float64)
WEIGHT = torch.randn(6, dtype=torch.float64, generator=DRAW)
X = torch.rand(5, 6, dtype=torch.float64, generator=DRAW)  # not on the plane: something remains


def encode(x):
    return (x - MEAN) @ BASIS


def decode(z):
    return z @ BASIS.T + MEAN


def model(x):
    return x @ WEIGHT - 1.5


def result(**more):
    explainer = CounterfactualExplainer(
        model, latent=Latent(encode, decode, bounds=(-9, 9), scale=1.0, **more), distance="l2"
    )
    return explainer.generate(X, UP)


def test_the_least_move_of_codes_is_the_projection_onto_the_boundary():
    got, slope = result(), BASIS.T @ WEIGHT
    assert got.valid.all()
    need = (-model(X)).clamp(min=0)
    torch.testing.assert_close(got.cost, need / slope.norm(), atol=1e-3, rtol=1e-3)
    want = X + (need / slope.norm())[:, None] * (slope / slope.norm()) @ BASIS.T
    torch.testing.assert_close(got.counterfactual, want, atol=0.02, rtol=0)


def test_what_changes_is_what_the_decoder_makes_and_the_rest_stays():
    got = result()
    move = got.counterfactual - X
    torch.testing.assert_close(move @ BASIS @ BASIS.T, move)  # nothing across the plane
    assert move.norm(dim=1).gt(0).any()
    assert torch.equal(got.changed, move != 0)
    torch.testing.assert_close(got.contributions.sum(1), got.margin - got.before)
    assert torch.equal(got.verify(), got.valid)
    assert got.proved == ("nothing",) * 5


def test_examples_that_are_there_already_come_back_to_the_last_digit():
    there = X + 10 * WEIGHT
    got = CounterfactualExplainer(model, latent=Latent(encode, decode, bounds=(-99, 99))).generate(there, UP)
    assert got.status == ("already valid",) * 5
    assert torch.equal(got.counterfactual, there)
    assert not got.changed.any()


def test_inputs_are_clipped():
    clipped = Latent(encode, decode, bounds=(-9, 9), clip=(0.0, 1.5))
    got = CounterfactualExplainer(model, latent=clipped).generate(X, UP)
    assert ((got.counterfactual >= 0) & (got.counterfactual <= 1.5)).all()


def test_alternatives_move_other_codes():
    got = CounterfactualExplainer(model, latent=Latent(encode, decode, bounds=(-9, 9))).generate(X, UP, n=2)
    one, two = (encode(r.counterfactual) - encode(X) for r in got.all)
    both = got.valid & got.alternatives[0].valid & (got.before < 0)
    assert both.any()
    assert ((one[both].abs() > 1e-9) != (two[both].abs() > 1e-9)).all()  # of the two codes each time the other one


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Latent(3, decode), "encode and decode"),
        (
            lambda: CounterfactualExplainer(model, latent=Latent(encode, lambda z: z)).generate(X, UP),
            "decode must give",
        ),
        (lambda: CounterfactualExplainer(model, bounds=(0, 1), latent=Latent(encode, decode)), "give one of"),
        (lambda: result_of(immutable=[0]), "immutable features cannot be kept"),
    ],
    ids=["no function", "shape", "two domains", "immutable"],
)
def test_what_cannot_be_is_said(make, told):
    with pytest.raises((ValueError, TypeError), match=told):
        make()


def result_of(**told):
    return CounterfactualExplainer(model, latent=Latent(encode, decode, bounds=(-9, 9))).generate(X, UP, **told)
