"""What comes back of a counterfactual search: in words, in pictures, and asked again, against a linear model."""

import pytest
import torch

from robustx import zoo
from robustx.counterfactual import CounterfactualExplainer, Feature, FeatureSchema, Linear
from robustx.counterfactual.words import Step, number
from robustx.perturb import Between, superpixels

TABLE = {
    "age": [30, 41, 52],
    "income": [1000.0, 2500.0, 3999.5],
    "job": ["part", "none", "full"],
}
WEIGHTS = torch.tensor([0.5, 3.0, 1.0, -1.0, 0.0], dtype=torch.float64)  # age, income, and a job: full, none, part


def no(z):
    return torch.stack([0 * z[:, 0] + 2.75, z @ WEIGHTS], 1)


@pytest.fixture(scope="module")
def found():
    schema = FeatureSchema.from_dataframe(
        TABLE,
        increasing=["age"],
        ranges={"age": (20, 60), "income": (0, 4000)},
        steps={"income": 100},
        units={"age": "years", "income": "EUR"},
        dtype=torch.float64,
    )
    return CounterfactualExplainer(no, schema).generate(TABLE, target=1)


def test_steps_tell_values_in_units_and_what_each_did(found):
    assert found.status == ("valid", "valid", "already valid")
    z, after = found.inputs, found.counterfactual
    for i in (0, 1):
        steps = {s.feature: s for s in found.steps(i)}
        assert list(steps) == [n for n, _ in found.why(i)]
        told = found.schema.rows(found.schema.decoded(after, found.schema.decoded(z)))[i]
        for j, name in enumerate(found.names):
            columns = found.schema.places[j].columns
            won = float((after - z)[i, columns] @ WEIGHTS[columns])
            assert (name in steps) == bool((after != z)[i, columns].any())
            if name in steps:
                assert (steps[name].before, steps[name].after) == (TABLE[name][i], told[j])
                assert steps[name].unit == {"age": "years", "income": "EUR", "job": ""}[name]
                assert steps[name].contribution == pytest.approx(won, abs=1e-12)


def test_messages_say_what_became_of_each_example(found):
    assert found.message(0) == "valid with " + ", ".join(s.words for s in found.steps(0))
    assert "income from 1,000 to" in found.message(0) and found.message(0).count(" EUR") == 1
    assert found.message(2).startswith("already valid by 1.")
    assert found.summary(0).startswith(f"{int(found.n_changed[0])} of 3 features change")
    half = torch.full((1, 5), 0.5, dtype=torch.float64)
    for strategy, said in (
        ("guided", "not found: the nearest try was 0.5"),
        ("exact", "infeasible: no allowed change"),
    ):
        nothing = CounterfactualExplainer(no, bounds=(0, 0.5), strategy=strategy).generate(half)
        assert nothing.message(0) == nothing.summary(0) and nothing.message(0).startswith(said)


@pytest.mark.parametrize(
    "value, told",
    [
        (0.0, "0"),
        (-0.5, "-0.5"),
        (123456.75, "123,457"),
        (1e9, "1,000,000,000"),
        (0.000123456, "0.0001235"),
        (1.5e-12, "1.500e-12"),
        (float("inf"), "inf"),
        (True, "True"),
        (7, "7"),
        ("full", "full"),
    ],
    ids=str,
)
def test_numbers_keep_their_whole_part(value, told):
    assert number(value) == told


@pytest.mark.parametrize("after", [1000.5, 1000.0000001, 1001.0])
def test_values_that_differ_are_told_apart(after):
    before, now = Step("x", 1000.0, after, "", 0.0).values
    assert before == "1,000" and float(now.replace(",", "")) == pytest.approx(after, abs=1e-9 * after)


def test_what_was_found_is_asked_again(found):
    explained = found.explain()
    torch.testing.assert_close(explained.values, found.contributions.double(), atol=1e-9, rtol=0)
    assert explained.names == found.names
    assert found.certify("subset").holds[:2].all()
    assert torch.equal(found.prune().changed, found.changed)
    refined = found.refine()
    assert refined.valid.all() and not (refined.changed & ~found.changed).any()


def test_some_examples_are_asked_what_all_were():
    """Goals, masks and further arguments that follow the examples still belong to them."""
    torch.manual_seed(0)
    x, shift = torch.rand(5, 4, dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2], [0, 0, 1, 2], [0, 1, 1, 2]])
    low = shift + x.sum(1) + 0.4
    result = CounterfactualExplainer(lambda z, s: z.sum(1) + s, bounds=(0, 1)).generate(
        x, Between(low), feature_mask=mask, additional_forward_args=shift
    )
    some = result.at([3, 1])
    assert result.valid.all() and some.verify().all()
    torch.testing.assert_close(some.pairs.margin, result.margin[[3, 1]])
    torch.testing.assert_close(some.explain().values, result.contributions[[3, 1]].double(), atol=1e-9, rtol=0)
    assert torch.equal(some.pairs.changed, result.changed[[3, 1]])
    assert [some.steps(0), some.steps(1)] == [result.steps(3), result.steps(1)]


def words(figure):
    return [t.get_text() for t in figure.texts]


def test_a_table_is_drawn_with_what_changes_only(found):
    told = words(found.plot("table", 0))
    for step in found.steps(0):
        assert {step.feature, step.arrow, f"{step.contribution:+.3g}"} <= set(told)
    assert not {n for n in found.names if n not in dict(found.why(0))} & set(told)
    assert any(found.proved[0] in t for t in told)
    assert any("already valid" in t for t in words(found.plot(None, 2)))


def test_a_waterfall_leads_from_before_to_after(found):
    axes = found.plot("waterfall", 0).axes[0]
    first, *steps, last = axes.patches
    shares = [s.contribution for s in found.steps(0)]
    assert first.get_width() == pytest.approx(float(found.before[0]))
    assert [b.get_width() for b in steps] == pytest.approx(shares)
    ends = [float(found.before[0])]
    for bar, share in zip(steps, shares, strict=True):
        assert bar.get_x() + min(0, share) == pytest.approx(ends[-1] + min(0, share))
        ends.append(ends[-1] + share)
    assert last.get_width() == pytest.approx(float(found.margin[0])) == pytest.approx(ends[-1])


def test_a_path_is_the_models_own_margins(found):
    straight, walk = (line.get_xdata() for line in found.plot("path", 1).axes[0].lines[1:])
    z, after = found.inputs[1], found.counterfactual[1]
    way = torch.linspace(0, 1, len(straight), dtype=torch.float64)[:, None] * (after - z) + z
    margins = (way @ WEIGHTS - 2.75).tolist()
    assert straight.tolist() == pytest.approx(margins, abs=1e-9)
    expected = [float(found.before[1])]
    for _, share in found.why(1):
        expected.append(expected[-1] + share)  # of a linear model, changes do what they do alone
    assert walk.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_least_of_many_changes_are_drawn_together():
    model = lambda z: torch.stack([0 * z[:, 0] + 33.5, z.sum(1)], 1)
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(torch.zeros(1, 40))
    assert result.n_changed.tolist() == [34]
    for kind in ("table", "waterfall", "path"):
        figure = result.plot(kind)
        told = words(figure) if kind == "table" else [t.get_text() for t in figure.axes[0].get_yticklabels()]
        assert any("5 more" in t for t in told) and sum("feature " in t for t in told) == 29
    bars = result.plot("waterfall").axes[0].patches
    assert len(bars) == 32 and bars[-1].get_width() == pytest.approx(float(result.margin[0]), abs=1e-5)
    walk = result.plot("path").axes[0].lines[-1].get_xdata()
    assert walk[-2:].tolist() == pytest.approx([-33.5 + 29, float(result.margin[0])], abs=0.51)


def test_tokens_have_no_straight_way():
    model = lambda ids: torch.stack([torch.full((len(ids),), 1.5), (ids == 7).sum(1).float()], 1)
    result = CounterfactualExplainer(model, reference=7).generate(torch.zeros(1, 4, dtype=torch.long))
    (zero, walk) = result.plot("path").axes[0].lines
    assert walk.get_xdata().tolist() == [-1.5, -0.5, 0.5]


def test_images_are_drawn_as_images():
    model, data = zoo.load("digits-robust")
    x = data.x[:2]
    result = CounterfactualExplainer(model, bounds=(0, 1)).generate(x, feature_mask=superpixels(x, "grid", 16))
    figure = result.plot(None, [0, 1], classes=data.classes)
    pictures = [axes.images[0].get_array() for axes in figure.axes[:8]]
    for i in (0, 1):
        assert torch.allclose(torch.as_tensor(pictures[4 * i]), x[i, 0])
        assert torch.allclose(torch.as_tensor(pictures[4 * i + 1]), result.counterfactual[i, 0])
        for z, axes in zip((x, result.counterfactual), figure.axes[4 * i :], strict=False):
            p = model(z[i : i + 1]).detach().softmax(1)[0]
            assert axes.get_title() == f"{data.classes[int(p.argmax())]} ({float(p.max()):.1%})"
        shares = torch.as_tensor(pictures[4 * i + 3]).unique()
        assert {round(v, 4) for v in shares.tolist()} == {
            round(v, 4) for v in result.contributions[i].float().unique().tolist()
        }
    own = CounterfactualExplainer(model, bounds=(0, 1)).generate(x[:1], lambda out: out[:, 3] - out[:, 8] + 40)
    assert own.plot().axes[0].get_title() == f"margin {float(own.before[0]):.3g}"


def test_few_against_near(found):
    axes = found.plot("pareto", 0, beside={"others": [(2, 0.5), (3, 0.25)], "none": []}).axes[0]
    (_, own, joined, _) = (line.get_data() for line in axes.lines)
    assert [v.tolist() for v in own] == [[float(found.n_changed[0])], pytest.approx([float(found.cost[0])])]
    assert [v.tolist() for v in joined] == [[2, 3], [0.5, 0.25]]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["found", "others"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"kind": "pie"}, "'table', 'waterfall', 'path', 'pareto', 'image'"),
        ({"kind": "image"}, "one or three channels"),
        ({"example": 3}, "one of the 3"),
        ({"kind": "table", "example": [0, 1]}, "shows one example, got 2"),
    ],
    ids=["kind", "no image", "example", "several"],
)
def test_what_cannot_be_drawn_is_named(asked, said, found):
    with pytest.raises(ValueError, match=said):
        found.plot(**asked)


def test_a_sum_that_is_in_the_way_is_named():
    features = [Feature("age", "integer", range=(18, 99)), Feature("worked", "integer", range=(0, 70))]
    schema = FeatureSchema(features, constraints=[Linear({"age": 1, "worked": -1}, ">=", 18)])
    model = lambda z: torch.stack([z[:, 0] * 0 + 60, z[:, 1] - 0.5 * z[:, 0]], 1)  # much work, at no great age
    result = CounterfactualExplainer(model, schema).generate({"age": [40], "worked": [10]}, 1)
    assert result.status == ("not found",)
    assert "1 age + -1 worked >= 18" in result.message(0)
