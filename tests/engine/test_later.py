"""Models that answer later: what is under way at once, and in which order answers come."""

import pytest
import torch
from models import mlp
from torch.futures import Future
from torch.testing import assert_close

from robustx.attribution import FeatureAblation, FeaturePermutation, ShapleyValueSampling
from robustx.engine import Output, Pace, Probe
from robustx.engine.later import Later, in_turn


class Office:
    """Answers the latest question first, and only when somebody waits and cannot be put off any longer."""

    def __init__(self, function):
        self.function, self.open, self.rows, self.most = function, [], [], 0

    def __call__(self, *args):
        office, answer = self, Future()

        class Patient(Future):
            def wait(self):
                while office.open:
                    args, one = office.open.pop()
                    one.set_result(office.function(*args))
                return answer.wait()

        self.open.append((args, answer))
        self.rows.append(len(args[0]))
        self.most = max(self.most, len(self.open))
        return Patient()


def test_answers_come_in_the_order_of_the_questions():
    office, asked = Office(lambda x: x.sum()), []

    def questions():
        for i in range(7):
            asked.append(i)
            yield i, office(torch.full((2,), i))

    for i, answer in in_turn(questions(), 3):
        assert answer == 2 * i and len(asked) <= min(i + 3, 7)
    assert asked == list(range(7)) and office.most == 3


@pytest.mark.parametrize("budget, most", [(1, 1), (3 * 4 * 5 * 8, 3), (None, 25)])
def test_as_many_are_under_way_as_the_budget_holds(budget, most):
    model, x = mlp(), torch.randn(100, 5, dtype=torch.float64)
    office = Office(lambda x: model(x).detach())
    f = Probe(Later(office), (x,), Output(1), pace=Pace(4, budget))
    assert_close(f.value(x), model(x)[:, 1].detach())
    assert office.rows == [4] * 25 and office.most == most
    assert f.meter.forward.tolist() == [1] * 100


@pytest.mark.parametrize(
    "method", [FeatureAblation, FeaturePermutation, ShapleyValueSampling], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("per_eval", [1, 2, None])
@pytest.mark.parametrize("whole", [False, True])
def test_attributions_are_under_way_together(method, per_eval, whole):
    model, x = mlp(), torch.randn(3, 5, dtype=torch.float64)
    office = Office((lambda x: model(x)[:, 1].sum().detach()) if whole else (lambda x: model(x).detach()))
    options = {"perturbations_per_eval": per_eval} | ({} if whole else {"target": 1})
    torch.manual_seed(0)
    found = method(office).attribute_future(x, **options).wait()
    torch.manual_seed(0)
    assert_close(found, method(office.function).attribute(x, **options))
    assert office.most >= (5 if whole or per_eval == 1 else 3 if per_eval else 1)
