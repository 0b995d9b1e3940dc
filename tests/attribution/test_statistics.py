"""Running statistics: numpy's numbers of the whole, captum's in the same run, and what a summary may depend on."""

import inspect
import pickle
from copy import deepcopy
from itertools import permutations

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._utils import stat as captum_stat
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from told import told
from torch.testing import assert_close

from robustx.attribution import statistics
from robustx.attribution.statistics import (
    MSE,
    ClassSummarizer,
    CommonStats,
    Count,
    Max,
    Mean,
    Min,
    Stat,
    StdDev,
    Sum,
    Summarizer,
    SummarizerSingleTensor,
    Var,
)

KINDS = ("Count", "Mean", "MSE", "Var", "StdDev", "Min", "Max", "Sum")
OF_THE_WHOLE = {
    "count": len,
    "mean": lambda a: a.mean(0),
    "mse": lambda a: ((a - a.mean(0)) ** 2).sum(0),
    "variance": lambda a: a.var(0),
    "sample_variance": lambda a: a.var(0, ddof=1),
    "std_dev": lambda a: a.std(0),
    "sample_std_dev": lambda a: a.std(0, ddof=1),
    "variance(2)": lambda a: a.var(0, ddof=2),
    "min": lambda a: a.min(0),
    "max": lambda a: a.max(0),
    "sum": lambda a: a.sum(0),
}


def every(room=statistics):
    kinds = {k: getattr(room, k) for k in KINDS}
    return [
        *(kind() for kind in kinds.values()),
        *(kinds[k](order=1) for k in ("Var", "StdDev")),
        kinds["Var"](order=2),
    ]


def summed_up(summarizer, updates):
    for x in updates:
        summarizer.update(x)
    return summarizer.summary


def assert_same(ours, theirs):
    """Equal summaries, or lists of them."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_close(value, theirs[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


# --- numbers ----------------------------------------------------------------------------------------------


@given(arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3)))
def test_they_are_numpys_of_the_whole(a):
    """Of the tensors a[0], a[1], ...; up to n = order the variance is zero, as captum has it."""
    summary = summed_up(Summarizer(every()), torch.from_numpy(a))
    assert summary.keys() == OF_THE_WHOLE.keys()
    least = {"sample_variance": 2, "sample_std_dev": 2, "variance(2)": 3}
    for name, value in summary.items():
        whole = OF_THE_WHOLE[name](a) if len(a) >= least.get(name, 1) else np.zeros(a.shape[1:])
        np.testing.assert_allclose(value, whole, rtol=1e-9, atol=1e-7)


@given(arrays(np.float32, (5, 3), elements=st.floats(-1e9, 1e9, width=32)))
def test_a_variance_is_never_negative(a):
    updates = torch.from_numpy(a)
    assert (summed_up(Summarizer([Var()]), updates)["variance"] >= 0).all()
    assert not summed_up(Summarizer([Var()]), [updates[0]] * 4)["variance"].any()  # exactly: nothing varies
    first = summed_up(Summarizer([Var(order=1)]), updates[:1])["sample_variance"]
    assert first.dtype == torch.float64 and not first.any()  # captum: float32 until there are two


def test_a_variance_far_from_zero():
    """Where the mean of squares less the square of the mean has no digit left."""
    x = torch.arange(50, dtype=torch.float64) % 7
    expected = x.var(correction=0)
    assert_close(summed_up(Summarizer([Var()]), x + 1e9)["variance"], expected, rtol=1e-7, atol=0)
    assert not torch.isclose((x + 1e9).square().mean() - (x + 1e9).mean().square(), expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_add_up_in_float32(dtype):
    """In their own dtype 3000 ones make 2048, or 256."""
    x = torch.tensor([1.0, 300.0]).to(dtype)
    summary = summed_up(Summarizer(every()), [x] * 3000)
    assert_close(summary["sum"], 3000 * x.float())
    assert_close(summary["mean"], x.float())
    assert not summary["variance"].any()
    assert summary["max"].dtype == dtype  # no sum, and so no need


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_integers_do_not_overflow(dtype):
    x = torch.tensor([0, 200]).to(dtype)
    whole = torch.stack([x] * 300).long()
    summary = summed_up(Summarizer(every()), [x] * 300)
    assert_close(summary["sum"], whole.sum(0))
    assert_close(summary["mean"], whole.double().mean(0))


@pytest.mark.gpu
def test_they_stay_on_the_device():
    x = torch.rand(6, 3, device="cuda")
    summary = summed_up(Summarizer(every()), x)
    assert_close(summary["variance"], x.double().var(0, correction=0), rtol=1e-5, atol=1e-7)
    assert all(v.device == x.device for name, v in summary.items() if name != "count")


# --- captum -----------------------------------------------------------------------------------------------

UPDATES = {
    "float32": lambda: list(torch.randn(9, 2, 3)),
    "float64": lambda: list(torch.randn(9, 4).double()),
    "int64": lambda: list(torch.randint(-9, 9, (9, 4))),
    "one": lambda: [torch.randn(3).double()],
    "scalars": lambda: list(torch.randn(9)),
    "tuples": lambda: [(torch.randn(2), torch.randn(()), torch.randn(3, 0)) for _ in range(5)],
    "tuple of one": lambda: [(torch.randn(2),) for _ in range(5)],
}


@pytest.mark.parametrize("updates", UPDATES.values(), ids=UPDATES)
def test_captum_says_the_same(updates):
    """Names, forms, dtypes and numbers; but for a typing error of captum's, in the name of orders above 1."""
    updates = updates()
    assert_same(*(summed_up(room.Summarizer(every(room)), updates) for room in (statistics, captum.attr)))
    assert_same(*(summed_up(room.Summarizer(room.CommonStats()), updates) for room in (statistics, captum.attr)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_with_captum(kind):
    updates = list(torch.randn(4, 3))
    for name in (None, "mine"):
        both = [summed_up(room.Summarizer([getattr(room, kind)(name)]), updates) for room in (statistics, captum.attr)]
        assert_same(*both)


def test_python_numbers():
    """As captum, but in float64, as they are."""
    updates = [0.1, 1e9 + 1, -3.5]
    summary = summed_up(Summarizer([Mean(), Max()]), updates)
    assert summary["mean"].item() == pytest.approx(np.mean(updates), rel=1e-15)
    assert summary["max"].item() == 1e9 + 1
    ours, theirs = (summed_up(room.Summarizer(room.CommonStats()), updates) for room in (statistics, captum.attr))
    for name, value in theirs.items():
        assert_close(ours[name], value, check_dtype=False, rtol=1e-6, atol=0)
    assert_close(summed_up(Summarizer([Sum()]), [1, True, np.float32(0.5)])["sum"], torch.tensor(2.5).double())
    assert_close(summed_up(Summarizer([Sum()]), [(1, 2.0), (3, 4.0)])[1]["sum"], torch.tensor(6.0).double())


LABELS = {
    "list": [0, 1, 1, 2],
    "words": ["a", "b", "a", "a"],
    "tuples": [(0, 1), (0, 1), (0, 2), (0, 1)],
    "one for all": "apple",
    "a tuple for all": (1, 2),
    "a list of one": [3],
    "none": None,
}


@pytest.mark.parametrize("a_tuple", [False, True])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_classes_with_captum(labels, a_tuple):
    x = torch.randn(4, 3)
    x = (x, torch.randn(4)) if a_tuple else x
    ours, theirs = (room.ClassSummarizer(room.CommonStats()) for room in (statistics, captum.attr))
    for summarizer in (ours, theirs):
        for _ in range(2):
            summarizer.update(x, labels)
    assert_same(ours.summary, theirs.summary)
    assert ours.class_summaries.keys() == theirs.class_summaries.keys()
    for label, summary in ours.class_summaries.items():
        assert_same(summary, theirs.class_summaries[label])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_class_is_a_summary_of_its_examples(labels):
    x = torch.randn(len(labels), 2)
    summarizer = ClassSummarizer(CommonStats())
    summarizer.update(x, labels)
    whole = torch.tensor(labels)
    assert_same(summarizer.summary, [summed_up(Summarizer(CommonStats()), x)])
    for label in set(labels):
        assert_same(summarizer.class_summaries[label], [summed_up(Summarizer(CommonStats()), x[whole == label])])


@pytest.mark.parametrize(
    "labels, plain",
    [
        (torch.tensor([0, 2, 2]), [0, 2, 2]),
        (np.array([0, 2, 2]), [0, 2, 2]),
        (list(torch.tensor([0, 2, 2])), [0, 2, 2]),
        (torch.tensor([[0, 1], [2, 2], [0, 1]]), [(0, 1), (2, 2), (0, 1)]),
        (torch.tensor(5), 5),
        (np.int64(5), 5),
    ],
    ids=["tensor", "numpy", "list of tensors", "rows", "0-d", "numpy number"],
)
def test_labels_in_tensors_are_known_by_their_value(labels, plain):
    x = torch.randn(3, 2)
    one, other = ClassSummarizer([Mean()]), ClassSummarizer([Mean()])
    one.update(x, labels)
    other.update(x, plain)
    assert one.class_summaries.keys() == other.class_summaries.keys()
    for label, summary in one.class_summaries.items():
        assert_same(summary, other.class_summaries[label])


@pytest.mark.parametrize("kind", [*KINDS, "Summarizer", "SummarizerSingleTensor", "ClassSummarizer", "CommonStats"])
def test_arguments_are_captums(kind):
    ours, theirs = (inspect.signature(getattr(room, kind)).parameters for room in (statistics, captum.attr))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    for method in ("update", "get"):
        if hasattr(getattr(captum.attr, kind), method):
            ours, theirs = (
                inspect.signature(getattr(getattr(room, kind), method)).parameters for room in (statistics, captum.attr)
            )
            assert list(ours) == list(theirs)


# --- what a summary depends on ----------------------------------------------------------------------------


def test_not_on_the_order_of_the_statistics():
    updates = list(torch.randn(4, 3).double())
    expected = summed_up(Summarizer([Mean(), Var(), StdDev(), Count()]), updates)
    for stats in permutations([Mean(), Var(), StdDev(), Count()]):
        summary = summed_up(Summarizer(stats), updates)
        assert list(summary) == [s.name for s in stats]
        assert_same(summary, {name: expected[name] for name in summary})


def test_not_on_what_becomes_of_the_tensors():
    """Neither their memory nor their graph is kept."""
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    summarizer = Summarizer(every())
    summarizer.update(x)
    value = x.detach().clone()
    with torch.no_grad():
        x.fill_(99)
    summary = summarizer.summary
    for name in ("mean", "min", "max", "sum"):
        assert torch.equal(summary[name], value) and not summary[name].requires_grad


def test_not_on_other_summarizers_of_the_same_statistics():
    stats = CommonStats()
    first, second = Summarizer(stats), Summarizer(stats)
    first.update(torch.ones(2))
    assert second.summary is None
    second.update((torch.zeros(3), torch.ones(1)))
    assert_close(first.summary["mean"], torch.ones(2))
    assert [s["mean"].tolist() for s in second.summary] == [[0, 0, 0], [1]]


def test_not_on_being_copied_on_the_way():
    x, labels = torch.randn(6, 2), [0, 1, 1, 0, 2, 2]
    summarizer = ClassSummarizer(every())
    summarizer.update(x, labels)
    for other in (deepcopy(summarizer), pickle.loads(pickle.dumps(summarizer))):
        other.update(x + 1, labels)
        whole = summed_up(Summarizer(every()), torch.cat([x, x + 1]))
        assert_same(other.summary, [whole])
    assert_same(summarizer.summary, [summed_up(Summarizer(every()), x)])


def test_not_on_tensors_of_the_first_form_that_were_refused():
    summarizer = Summarizer([Sum()])
    summarizer.update((torch.ones(2), torch.ones(3)))
    with pytest.raises(ValueError, match="shape"):
        summarizer.update((torch.ones(2), torch.ones(4)))
    assert [s["sum"].tolist() for s in summarizer.summary] == [[1, 1], [1, 1, 1]]


def test_equal_statistics_under_two_names_are_both_shown():
    summary = summed_up(
        Summarizer([Mean("a"), Mean("b"), Var(), Min("low"), Min("high", torch.max)]), torch.arange(3.0)
    )
    assert {name: v.item() for name, v in summary.items()} == pytest.approx(
        {"a": 1, "b": 1, "variance": 2 / 3, "low": 0, "high": 2}
    )


# --- statistics of one's own ------------------------------------------------------------------------------


class Scatter(Stat):
    """Index of dispersion, times a factor; asks for others that nobody named."""

    def __init__(self, factor=1.0):
        super().__init__(factor=factor)

    def init(self):
        self.mean, self.var = self._get_stat(Mean()), self._get_stat(Var())

    def get(self):
        return self.params["factor"] * self.var.get() / self.mean.get()


class Late(Stat):
    def update(self, x):
        self._get_stat(Sum())


def test_ones_own_may_build_on_others():
    x = torch.rand(6, 2).double() + 1
    summary = summed_up(Summarizer([Scatter(), Scatter(2.0)]), x)
    expected = x.var(0, correction=0) / x.mean(0)
    assert_close(summary["scatter({'factor': 1.0})"], expected)
    assert_close(summary["scatter({'factor': 2.0})"], 2 * expected)


def test_a_captum_statistic_of_ones_own_runs_unchanged():
    """Captum's protocol: init, update, get, and ``_get_stat`` of another."""

    def steps(room):
        class Steps(room.Stat):
            """How far each tensor lies from the mean so far."""

            def init(self):
                self.mean, self.far = self._get_stat(room.Mean()), []

            def update(self, x):
                self.far.append(x - self.mean.get())

            def get(self):
                return torch.stack(self.far)

        return Steps()

    updates = list(torch.randn(5, 2))
    ours = SummarizerSingleTensor([Count(), Mean(), steps(statistics)], [2])
    theirs = captum.attr.SummarizerSingleTensor(
        [captum_stat.Count(), captum_stat.Mean(), steps(captum_stat)], summary_stats_indices=[2]
    )
    assert_same(*(summed_up(s, updates) for s in (ours, theirs)))
    assert ours.get(Mean()).get() is not None
    assert ours.get(Max()) is None


def test_a_statistic_is_known_by_its_class_and_arguments():
    assert Var() == Var("named") != Var(order=1)
    assert Var() != StdDev() and Min() != Min(min_fn=torch.max)
    assert len({Mean(), Mean("a"), MSE(), Scatter(), Scatter()}) == 3


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, make, words",
    [
        (TypeError, lambda: Summarizer([Mean]), ("stats", "Mean()", "class")),
        (ValueError, lambda: Summarizer([Mean("a"), Var("a")]), ("stats", "'a'", "name=")),
        (TypeError, lambda: summed_up(Summarizer([Mean()]), ["word"]), ("x", "tensor", "number", "str")),
        (TypeError, lambda: summed_up(Summarizer([Mean()]), [[1.0, 2.0]]), ("x", "tuple", "list")),
        (ValueError, lambda: summed_up(Summarizer([Mean()]), [torch.ones(2), torch.ones(3)]), ("x", "(2,)", "(3,)")),
        (ValueError, lambda: summed_up(Summarizer([Mean()]), [torch.ones(2), (torch.ones(2),)]), ("x", "[(2,)]")),
        (ValueError, lambda: summed_up(Summarizer([Mean()]), [(1.0,), (1.0, 2.0)]), ("x", "[()]", "[(), ()]")),
        (RuntimeError, lambda: summed_up(Summarizer([Late()]), [1.0]), ("sum", "missed", "init()")),
        (ValueError, lambda: ClassSummarizer([Mean()]).update(torch.ones(3), [1, 2]), ("labels", "(3,)", "2 labels")),
        (ValueError, lambda: ClassSummarizer([Mean()]).update((torch.ones(3), torch.ones(2)), 1), ("x", "(2,)")),
        (ValueError, lambda: ClassSummarizer([Mean()]).update(torch.tensor(1.0), 1), ("x", "[B, ...]", "()")),
        (ValueError, lambda: ClassSummarizer([Mean()]).update(3.0, 1), ("x", "tensors")),
    ],
)
def test_bad_input(kind, make, words):
    with pytest.raises(kind) as error:
        make()
    told(error.value, words)
