"""Black boxes: numpy functions and scikit-learn's estimators, end to end."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, Saliency
from robustx.engine import BlackBox, ModelError
from robustx.perturb import Neighbours, mean

X, Y = load_breast_cancer(return_X_y=True)
X, DATA = torch.from_numpy(X[:40, :8]), torch.from_numpy(X[:, :8])
PIPELINE = make_pipeline(StandardScaler(), LogisticRegression()).fit(DATA.numpy(), Y)
FOREST = RandomForestClassifier(5, random_state=0).fit(DATA.numpy(), Y)


@pytest.mark.parametrize("baselines", [None, mean(DATA), Neighbours(DATA)], ids=["zero", "mean", "neighbours"])
@pytest.mark.parametrize("ask", [PIPELINE.predict_proba, PIPELINE.decision_function, FOREST.predict_proba])
def test_estimators_end_to_end(ask, baselines):
    many = ask(X.numpy()).ndim == 2
    found = FeatureAblation(BlackBox(ask)).attribute(X, baselines, target=1 if many else None)
    assert found.dtype == torch.float64 and found.shape == X.shape and found.abs().sum() > 0


def test_the_definition():
    found = FeatureAblation(BlackBox(PIPELINE.decision_function)).attribute(X)
    for j in range(8):
        gone = X.clone()
        gone[:, j] = 0
        fall = PIPELINE.decision_function(X.numpy()) - PIPELINE.decision_function(gone.numpy())
        assert_close(found[:, j], torch.from_numpy(fall), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.long], ids=str)
def test_dtypes(dtype):
    """In: what numpy has of it. Out: the function's floats, or torch's default for anything else."""
    seen = []

    def function(x, scale, *, shift):
        seen.append((x.dtype, type(scale), type(shift)))
        return x[:, 0] * 2

    x = torch.arange(1, 7).reshape(2, 3).to(dtype)
    out = BlackBox(function)(x, torch.ones(2), shift=3)
    expected = np.float32 if dtype == torch.bfloat16 else x[:0].numpy().dtype
    assert seen == [(expected, np.ndarray, int)]
    assert out.tolist() == [2, 8]
    assert out.dtype == {torch.bfloat16: torch.float32, torch.long: torch.float32}.get(dtype, dtype)
    assert BlackBox(lambda x: x > 2)(x).dtype == torch.float32
    assert BlackBox(lambda x: [1.0, 2.0])(x).tolist() == [1, 2]


def test_methods_that_need_a_gradient_say_so():
    with pytest.raises(ModelError, match=r"no gradient .* numpy .* values only \(FeatureAblation"):
        Saliency(BlackBox(PIPELINE.decision_function)).attribute(X)


def test_what_is_no_function_of_numbers_is_told():
    with pytest.raises(TypeError, match="got Pipeline; of a scikit-learn estimator take a method, such as"):
        BlackBox(PIPELINE)
    with pytest.raises(TypeError, match="must return an array of numbers, got <U1"):
        BlackBox(lambda x: np.array(["a"] * len(x)))(X)


def test_copies():
    box = BlackBox(PIPELINE.predict_proba)
    for same in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
        assert torch.equal(same(X), box(X))
    assert repr(FeatureAblation(box)) == "FeatureAblation(BlackBox)"
