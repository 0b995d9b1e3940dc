"""Memory: how many rows go through the model at once, and what happens when that is too many."""

import pytest
import torch
from models import Weighed
from torch.testing import assert_close

from robustx.engine import Layer, Output, Pace, Probe
from robustx.engine.memory import MOST, PILOT, out_of_memory

CPU = torch.device("cpu")


def asked(n=100, pace=None, model=None):
    """A probe of a model that notes its passes, and n queries."""
    torch.manual_seed(0)
    x = torch.randn(n, 5, dtype=torch.float64)
    return Probe(model or Weighed(), (x,), Output(1), pace=pace or Pace()), x


def expected(f, x):
    (g,) = torch.autograd.grad(f.model.body(z := x.clone().requires_grad_())[:, 1].sum(), z)
    return g


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError("Unable to allocate 8 GiB for an array"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:12])
@pytest.mark.parametrize("most", [1, 2, 7, 33, 99, 100])
def test_batches_shrink_when_memory_runs_out(error, most):
    f, x = asked(model=Weighed(most, error))
    value, g = f.grad(x)
    assert max(f.model.passes) <= most and sum(f.model.passes) == 100
    assert_close(g, expected(f, x))
    assert_close(value, f.model.body(x)[:, 1].detach())
    assert f.meter.forward.tolist() == f.meter.backward.tolist() == [1] * 100  # what failed is not counted
    f.model.passes.clear()
    assert_close(f.value(x), value)
    assert len(f.model.passes) <= 2 * (100 // min(most, PILOT[1] // 2) + 1)  # what was learnt is kept


def test_memory_that_runs_out_later():
    """The pilot fits, and what is derived from it does not."""
    f, x = asked(1000, model=Weighed(300))
    assert_close(f.grad(x)[1], expected(f, x))
    assert f.model.passes[0] == PILOT[1] and 150 < max(f.model.passes) <= 300
    assert f.meter.forward.tolist() == [1] * 1000


@pytest.mark.parametrize("ask", ["value", "grad", "layer"])
def test_one_row_that_does_not_fit(ask):
    f, x = asked(4, model=Weighed(0))
    with pytest.raises(
        MemoryError, match="one row through the model does not fit into memory on cpu: CUDA out of memory"
    ):
        getattr(f, ask)(x) if ask != "layer" else f.to(at=Layer(f.model.body)).point
    assert f.meter.forward.sum() == 0


def test_other_errors_are_not_mistaken():
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("memory"))
    f, x = asked(model=Weighed(5, RuntimeError("device-side assert")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        f.value(x)
    assert f.model.passes == []


@pytest.mark.parametrize("limit", [1, 3, 32, 33, 99, 100, 1000])
def test_never_more_rows_than_the_limit(limit):
    f, x = asked(pace=Pace(limit))
    assert_close(f.grad(x)[1], expected(f, x))
    assert max(f.model.passes) <= limit and sum(f.model.passes) == 100
    if limit <= PILOT[1]:
        assert len(f.model.passes) == -(-100 // limit)


def made_by_forward(model, rows):
    """Bytes of everything a pass of the MLP makes, by hand: three linear layers, two activations."""
    return rows * 8 * (8 + 8 + 8 + 8 + 4)


@pytest.mark.parametrize("budget", [1, 500, 3_000, 20_000, 100_000])
def test_the_budget_is_kept(budget):
    f, x = asked(2000, pace=Pace(budget=budget))
    f.value(x)
    pilot, *passes = f.model.passes
    assert pilot == PILOT[1] and sum(passes) == 2000 - PILOT[1]
    assert all(made_by_forward(f.model, rows) <= budget or rows == 1 for rows in passes)
    if made_by_forward(f.model, 2) < budget < made_by_forward(f.model, 1000):
        assert made_by_forward(f.model, max(passes)) > budget / 3  # and is used


SIZES = [(5, torch.float64, PILOT[1]), (8192, torch.float32, 48), (399_999, torch.half, PILOT[0])]


@pytest.mark.parametrize("d, dtype, rows", SIZES)
def test_the_first_pass_has_fewer_rows_of_large_inputs(d, dtype, rows):
    """Not the site: what stands there need not be what is large."""
    passes = []
    f = Probe(lambda x: passes.append(len(x)) or x[:, 0].float(), (torch.zeros(1, d, dtype=dtype).expand(300, -1),))
    f.score  # noqa: B018
    assert passes[0] == rows


def test_the_first_pass_has_more_rows_where_there_is_no_way_back():
    first = []
    for ask in ("value", "grad"):
        f = Probe(Weighed(), (torch.zeros(1, 8192, dtype=torch.double).expand(300, -1),), Output(1))
        f.model.body[0] = torch.nn.Linear(8192, 8).double()
        getattr(f, ask)(f.point)
        first.append(f.model.passes[0])
    assert first == [24, 6]


def test_a_gradient_is_given_less_than_a_value():
    sizes = []
    for ask in ("value", "grad"):
        f, x = asked(2000, pace=Pace(budget=50_000))
        getattr(f, ask)(x)
        sizes.append(f.model.passes[1])
    assert sizes[1] < sizes[0]


def test_each_kind_of_question_is_weighed_by_itself():
    alone, x = asked(500, pace=Pace(budget=50_000))
    alone.grad(x)
    after, _ = asked(500, pace=Pace(budget=50_000))
    after.value(x)
    after.model.passes.clear()
    after.grad(x)
    assert after.model.passes == alone.model.passes


def test_what_is_weighed_does_not_depend_on_the_number_of_examples():
    few, many = asked(500, pace=Pace(budget=50_000)), asked(5000, pace=Pace(budget=50_000))
    for f, x in (few, many):
        f.grad(x[:500], torch.arange(500))
    assert few[0].model.passes == many[0].model.passes


def test_without_a_budget_light_rows_go_by_thousands():
    f, x = asked(2 * MOST)
    f.value(x)
    assert f.model.passes == [PILOT[1], *[MOST - PILOT[1] // 2] * 2]


@pytest.mark.parametrize("n", range(1, 30))
def test_no_small_batch_is_left_over(n):
    """It would cost more than its share."""
    rows = [part.stop - part.start for part, _ in Pace(9).batches(n, CPU, lambda part: None)]
    first, *later = rows
    most = PILOT[0]
    assert first == (n if n <= most else most if n >= 2 * most else -(-n // 2))
    assert len(later) == -(-(n - first) // 9)
    assert not later or max(later) - min(later) <= 1


def test_what_is_decided_does_not_depend_on_chance():
    first, second = asked(3000, Pace(budget=70_000)), asked(3000, Pace(budget=70_000))
    for f, x in (first, second):
        f.grad(x)
    assert first[0].model.passes == second[0].model.passes


def test_slices_come_in_order_and_once():
    parts = []
    for part, result in Pace(7).batches(30, CPU, lambda part: part.stop):
        parts.append(part)
        assert result == part.stop
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(30))
    assert list(Pace().batches(0, CPU, lambda part: 1)) == []


def test_a_failed_batch_is_forgotten():
    """The exception, whose traceback holds the graph, is gone before the next try."""
    alive = []

    class Big:
        def __del__(self):
            alive.remove(id(self))

    def work(part):
        big = Big()
        alive.append(id(big))
        assert len(alive) == 1
        if part.stop - part.start > 4:
            raise torch.OutOfMemoryError("out of memory")
        return part

    rows = [part.stop - part.start for part, _ in Pace().batches(16, CPU, work)]
    assert sum(rows) == 16 and max(rows) <= 4


@pytest.mark.parametrize("limit", [0, -1, 2.5, "many"])
def test_limits_that_are_none(limit):
    with pytest.raises(ValueError, match=f"a batch size must be a whole number of at least 1, got {limit!r}; None"):
        Pace(limit)
