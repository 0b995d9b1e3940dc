"""Schemas: tables there and back, and rules that hold to the last bit for what people read."""

import numpy as np
import pandas as pd
import pytest
import torch
from counterfactual_cases import JOBS, SCHOOLS, credit, credit_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from torch.testing import assert_close

from robustx.counterfactual import Feature, FeatureSchema, Linear

FRAME = credit()
SCHEMAS = {scale: credit_schema(FRAME, scale=scale) for scale in ("range", "standard", None)}
scaled = pytest.mark.parametrize("scale", SCHEMAS)


def anywhere(schema, x, seed=0, far=1.0):
    """Encoded rows that keep to nothing; some columns do not move."""
    draw = torch.Generator().manual_seed(seed)
    moved = x + far * torch.randn(x.shape, generator=draw) * x.std(0).clamp(min=1e-3)
    return torch.where(torch.rand(x.shape, generator=draw) < 0.2, x, moved)


def test_what_columns_look_like():
    told = {f.name: (f.kind, f.mutable, f.direction) for f in SCHEMAS["range"].features}
    assert told == {
        "age": ("integer", True, "increase"),
        "worked": ("integer", True, "increase"),
        "income": ("continuous", True, "any"),
        "rate": ("continuous", True, "any"),
        "loan": ("continuous", True, "any"),
        "school": ("ordinal", True, "increase"),
        "job": ("categorical", True, "any"),
        "home": ("binary", True, "any"),
        "sex": ("binary", False, "any"),
    }
    assert SCHEMAS["range"]["income"].unit == "EUR" and SCHEMAS["range"].width == 12
    assert SCHEMAS["range"].feature_mask.tolist() == [[0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 7, 8]]


def test_what_pandas_knows_of_categories_is_heeded():
    frame = pd.DataFrame(
        {
            "size": pd.Categorical(["S", "L", "M"], categories=["S", "M", "L"], ordered=True),
            "code": pd.Categorical([3, 1, 3], categories=[1, 2, 3]),
            "sign": pd.Categorical([1, -1, 1]),
        }
    )
    told = {f.name: (f.kind, f.categories) for f in FeatureSchema.from_dataframe(frame).features}
    assert told == {
        "size": ("ordinal", ("S", "M", "L")),
        "code": ("categorical", (1, 2, 3)),
        "sign": ("binary", (-1, 1)),
    }


def test_columns_may_be_numbered_and_stand_in_any_order():
    frame = pd.DataFrame([[1.0, 20.0], [2.0, 40.0]], index=["a", "b"])
    schema = FeatureSchema.from_dataframe(frame, scale=None)
    assert schema.names == ("0", "1")
    assert torch.equal(schema.encode(frame.assign(more=0)[["more", 1, 0]]), torch.tensor([[1.0, 20.0], [2.0, 40.0]]))


@scaled
def test_there_and_back(scale):
    schema = SCHEMAS[scale]
    x = schema.encode(FRAME)
    assert x.dtype == torch.float32 and (x[:, 6:10].sum(1) == 1).all()
    pd.testing.assert_frame_equal(schema.decode(x, FRAME), FRAME, check_dtype=False, check_exact=True)
    assert not len(schema.violations(FRAME, FRAME))
    if scale == "range":
        assert ((x >= 0) & (x <= 1)).all()
    if scale == "standard":
        assert_close(x[:, :5].mean(0), torch.zeros(5), rtol=0, atol=1e-5)
        assert_close(x[:, :5].std(0, correction=0), torch.ones(5), rtol=0, atol=1e-5)


@scaled
@given(seed=st.integers(0, 10_000), far=st.sampled_from([0.01, 1.0, 30.0]))
@settings(max_examples=25, deadline=None)
def test_rules_hold_to_the_last_bit_for_what_people_read(scale, seed, far):
    schema = SCHEMAS[scale]
    x = schema.encode(FRAME)
    z = schema.project(anywhere(schema, x, seed, far), x)
    read = schema.decode(z, FRAME)
    assert not len(schema.violations(FRAME, read)), schema.violations(FRAME, read)
    # once more by hand, in the frame's own numbers
    assert (read.sex == FRAME.sex).all() and (read.age >= FRAME.age).all() and (read.age <= FRAME.age + 5).all()
    assert (read.age - read.worked >= 18).all() and (read.loan - read.income <= 15000).all()
    assert read.income.between(FRAME.income - 20000, FRAME.income + 20000).all() and read.income.between(0, 2e5).all()
    steps = [SCHOOLS.index(b) - SCHOOLS.index(a) for a, b in zip(FRAME.school, read.school, strict=True)]
    assert set(steps) <= {0, 1}
    assert not any(a == "own" and b not in ("own", "full") for a, b in zip(FRAME.job, read.job, strict=True))
    changed = read.rate != FRAME.rate
    assert np.allclose((read.rate * 10)[changed], (read.rate * 10)[changed].round(), atol=1e-9)
    # what is read is what the model gets, and reading it again breaks nothing
    again = schema.encode(read)
    twice = schema.decode(again, FRAME)
    assert not len(schema.violations(FRAME, twice))
    pd.testing.assert_frame_equal(twice, read, rtol=1e-6)
    assert_close(again, z, rtol=1e-5, atol=1e-5)


@scaled
def test_projecting_twice_changes_nothing(scale):
    schema = SCHEMAS[scale]
    x = schema.encode(FRAME)
    z = schema.project(anywhere(schema, x), x)
    assert (z != x).any()
    again, read = (schema.decode(v, FRAME) for v in (schema.project(z, x), z))
    pd.testing.assert_frame_equal(again, read, rtol=1e-6)
    assert torch.equal(schema.project(x, x), x)


@scaled
def test_rows_do_not_see_one_another(scale):
    schema = SCHEMAS[scale]
    x = schema.encode(FRAME)
    z = anywhere(schema, x)
    together = schema.project(z, x)
    alone = torch.cat([schema.project(z[i : i + 1], x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(alone, together)


@scaled
def test_bounds_hold_all_that_may_be(scale):
    schema = SCHEMAS[scale]
    x = schema.encode(FRAME)
    low, high = schema.bounds(x)
    assert ((low <= x) & (x <= high)).all() and (low[:, -1] == high[:, -1]).all()  # sex stays
    for seed in range(3):
        z = schema.project(anywhere(schema, x, seed, 3.0), x)
        assert ((z >= low - 1e-5 * low.abs()) & (z <= high + 1e-5 * high.abs())).all()
    own = torch.tensor([job == "own" for job in FRAME.job])
    none = 6 + schema["job"].categories.index("none")
    assert own.any() and high[own][:, none].sum() == 0 and high[~own][:, 6:10].min() == 1


def test_the_nearest_point_of_a_sum():
    """Two numbers without a grid: the projection is scipy's, in units of the ranges."""
    schema = FeatureSchema(
        [Feature("a", range=(0, 10)), Feature("b", range=(0, 100))], constraints=[Linear({"a": 1, "b": 0.1}, ">=", 12)]
    )
    x = torch.tensor([[8.0, 60.0], [9.5, 90.0]])
    z = torch.tensor([[3.0, 20.0], [1.0, 95.0]])
    found = schema.project(z, x)
    for row, start in zip(found, z, strict=True):
        best = minimize(
            lambda v, s=start.numpy().astype(float): ((v - s / [10, 100]) ** 2).sum(),
            [0.9, 0.9],
            bounds=[(0, 1), (0, 1)],
            constraints={"type": "ineq", "fun": lambda v: 10 * v[0] + 10 * v[1] - 12},
        )
        assert_close(row.double() / torch.tensor([10.0, 100.0]).double(), torch.tensor(best.x), rtol=0, atol=1e-4)


def test_a_sum_that_cannot_be_mended_leaves_the_row():
    schema = FeatureSchema(
        [Feature("a", range=(0, 10)), Feature("b", range=(0, 10), mutable=False)],
        constraints=[Linear({"a": 1, "b": 1}, "==", 12)],
    )
    x = torch.tensor([[8.0, 4.0], [8.0, 4.0]])
    assert torch.equal(schema.project(torch.tensor([[3.0, 4.0], [8.0, 9.0]]), x), x)


def test_violations_name_what_is_broken():
    other = FRAME.copy()
    other.loc[0, "age"] -= 1
    other.loc[1, "sex"] = "f" if FRAME.sex[1] == "m" else "m"
    other.loc[2, "income"] += 1e6
    other.loc[3, "rate"] = 3.14159
    found = SCHEMAS["range"].violations(FRAME, other)
    told = set(zip(found.row, found.feature, found.rule, strict=True))
    assert {(0, "age", "increase"), (1, "sex", "fixed"), (2, "income", "range"), (2, "income", "max_change")} <= told
    assert (3, "rate", "grid") in told and set(found.row) == {0, 1, 2, 3}


STEPS = {
    "standard": (StandardScaler(), ["age", "income"]),
    "no mean": (StandardScaler(with_mean=False), ["rate"]),
    "range": (MinMaxScaler((-1, 1)), ["loan"]),
    "robust": (Pipeline([("robust", RobustScaler())]), ["worked"]),
    "one-hot": (OneHotEncoder(), ["job", "home"]),
    "ordinal": (OrdinalEncoder(categories=[list(SCHOOLS)]), ["school"]),
}


@pytest.mark.parametrize("remainder", ["drop", "passthrough"])
def test_encodes_as_scikit_learn(remainder):
    frame = FRAME.assign(sex=(FRAME.sex == "m").astype(float))
    transformer = ColumnTransformer(
        [(name, *step) for name, step in STEPS.items()], remainder=remainder, sparse_threshold=0
    )
    expected = transformer.fit_transform(frame)
    schema = FeatureSchema.from_column_transformer(transformer, frame, increasing=["age"], steps={"loan": 500})
    assert_close(schema.encode(frame), torch.tensor(expected, dtype=torch.float32))
    read = schema.decode(schema.encode(frame), frame)
    pd.testing.assert_frame_equal(read, frame[list(schema.names)], check_dtype=False, check_exact=True)
    assert schema["age"].direction == "increase" and schema["school"].kind == "ordinal"
    assert schema["job"].categories == tuple(sorted(JOBS))


def test_columns_chosen_by_number_and_other_scalers():
    frame = FRAME[["age", "income", "rate", "loan"]]
    transformer = ColumnTransformer(
        [("a", MaxAbsScaler(), [1, 0]), ("b", "drop", ["rate"]), ("c", FunctionTransformer(), slice(3, 4))]
    ).fit(frame)
    schema = FeatureSchema.from_column_transformer(transformer, frame)
    assert schema.names == ("income", "age", "loan")
    assert_close(schema.encode(frame), torch.tensor(np.asarray(transformer.transform(frame)), dtype=torch.float32))


def test_arrays_stay_as_they_are():
    x = torch.rand(5, 3, dtype=torch.float64)
    schema = FeatureSchema.from_array(x, ["a", "b", "c"], immutable="b")
    assert torch.equal(schema.encode(x), x) and schema.dtype == torch.float64
    assert torch.equal(schema.project(x + 1, x)[:, 1], x[:, 1])
    assert schema["a"].range == (float(x[:, 0].min()), float(x[:, 0].max()))
    assert torch.equal(FeatureSchema.from_array(x.numpy()).decoded(x), x)


def test_empty_tables():
    schema = SCHEMAS["range"]
    x = schema.encode(FRAME[:0])
    assert x.shape == (0, 12) and schema.project(x, x).shape == (0, 12) and len(schema.decode(x)) == 0


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Feature("a", "colour"), "feature 'a': kind must be one of continuous"),
        (lambda: Feature("a", "ordinal"), "ordinal features need their categories"),
        (lambda: Feature("a", categories=("x",)), "continuous features have no categories"),
        (lambda: Feature("a", "binary", ("x", "y", "z")), "binary features have two categories, got 3"),
        (lambda: Feature("a", "categorical", ("x", "y"), direction="increase"), "know no direction"),
        (lambda: Feature("a", "categorical", ("x", "y"), transitions={"x": ["w"]}), "'w', which is no category"),
        (lambda: Feature("a", "categorical", ("x", "x")), "categories must differ"),
        (lambda: Feature("a", range=(2, 1)), r"range must be \(lowest, highest\), got \(2, 1\)"),
        (lambda: Feature("a", step=0.0), "step must be above 0"),
        (lambda: Feature("a", max_change=-1), "must be at least 0"),
        (lambda: Feature("a", direction="up"), "direction must be 'any'"),
        (lambda: Linear({"a": 1}, ">", 0), "sense must be one of >=, <=, =="),
        (lambda: Linear({}, ">=", 0), "at least one coefficient"),
        (lambda: FeatureSchema([Feature("a"), Feature("a")]), "names of features must differ"),
        (lambda: credit_schema(FRAME).add_constraint(Linear({"job": 1}, ">=", 0)), "without an order"),
        (lambda: credit_schema(FRAME).add_constraint(Linear({"wage": 1}, ">=", 0)), "no feature is called 'wage'"),
        (lambda: FeatureSchema.from_dataframe(FRAME, immutable=["wage"]), "immutable names 'wage'"),
        (lambda: FeatureSchema.from_dataframe(FRAME, frozen=["age"]), "no rule is called 'frozen'"),
        (lambda: FeatureSchema.from_dataframe(FRAME.assign(age=np.nan)), "column 'age' has missing"),
        (lambda: FeatureSchema.from_dataframe(FRAME.set_axis(["age"] * FRAME.shape[1], axis=1)), "got 'age' twice"),
        (lambda: FeatureSchema.from_dataframe(FRAME.assign(age=pd.Timestamp(0))), "'age' holds dates or times"),
        (lambda: SCHEMAS["range"].encode(FRAME.assign(job="king")), r"no category 'king' \(row 0\)"),
        (lambda: SCHEMAS["range"].encode(FRAME.drop(columns="job")), "the table has no column 'job'"),
        (lambda: SCHEMAS["range"].encode(FRAME.assign(age=np.inf)), "'age' must be a finite number, got inf in row 0"),
        (lambda: FeatureSchema.from_array(np.zeros(3)), r"rows of numbers \[B, D\], got shape \(3,\)"),
        (lambda: FeatureSchema.from_array(np.zeros((2, 3)), ["a"]), "name each of the 3 columns, got 1"),
        (
            lambda: FeatureSchema.from_column_transformer(ColumnTransformer([("a", StandardScaler(), ["age"])]), FRAME),
            "has been fitted",
        ),
        (
            lambda: FeatureSchema.from_column_transformer(
                ColumnTransformer([("a", OneHotEncoder(drop="first"), ["job"])]).fit(FRAME), FRAME
            ),
            "step 'a': OneHotEncoder must keep all categories",
        ),
        (
            lambda: FeatureSchema.from_column_transformer(
                ColumnTransformer([("a", FunctionTransformer(np.log1p), ["income"])]).fit(FRAME), FRAME
            ),
            "step 'a' is a FunctionTransformer, which cannot be undone",
        ),
    ],
)
def test_says_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_column_transformers_numbers_may_stay_in_double_precision():
    frame = credit(50)
    transformer = ColumnTransformer([("n", StandardScaler(), ["income", "loan"])]).fit(frame)
    schema = FeatureSchema.from_column_transformer(transformer, frame, dtype=torch.float64)
    x = torch.from_numpy(transformer.transform(frame))
    assert_close(schema.encode(frame), x, rtol=1e-14, atol=1e-14)
    read = schema.decode(x)
    for name in ("income", "loan"):
        assert read[name].tolist() == pytest.approx(frame[name].tolist(), rel=1e-14)
