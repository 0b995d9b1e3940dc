"""Sites: writing what was read changes nothing, wherever that is."""

import threading

import pytest
import torch
from models import Bare, InPlaceCNN, Nested, Recurrent, Reused, TwoInputs, function, mlp
from torch import nn
from torch.testing import assert_close

from robustx.engine import Input, Layer, Neuron, Output, OutputError, Probe

B = 3


def rand(*shape):
    return torch.randn(B, *shape, dtype=torch.float64)


def here(model, *inputs, at=Input()):
    return model, inputs, at


def at(make, *inputs, layer, **where):
    model = make()
    return model, inputs, Layer(layer(model), **where)


SITES = {
    "input": lambda: here(mlp(), rand(5)),
    "input of a function": lambda: here(function, rand(5)),
    "input, in place": lambda: here(InPlaceCNN(), rand(2, 4, 4)),
    "two inputs": lambda: here(TwoInputs(), rand(5), rand(2, 3)),
    "out of": lambda: at(mlp, rand(5), layer=lambda m: m[1]),
    "into": lambda: at(mlp, rand(5), layer=lambda m: m[1], side="input"),
    "out of all": lambda: at(mlp, rand(5), layer=lambda m: m),
    "without parameters": lambda: at(Bare, rand(5), layer=lambda m: m, side="input"),
    "before in place": lambda: at(InPlaceCNN, rand(2, 4, 4), layer=lambda m: m.conv),
    "out of in place": lambda: at(InPlaceCNN, rand(2, 4, 4), layer=lambda m: m.relu),
    "into in place": lambda: at(InPlaceCNN, rand(2, 4, 4), layer=lambda m: m.relu, side="input"),
    "first use": lambda: at(Reused, rand(5), layer=lambda m: m.act, call=0),
    "second use": lambda: at(Reused, rand(5), layer=lambda m: m.act, call=1),
    "into second use": lambda: at(Reused, rand(5), layer=lambda m: m.again, call=1, side="input"),
    "nested": lambda: at(Nested, rand(5), layer=lambda m: m.split),
    "beside keywords": lambda: at(Nested, rand(5), layer=lambda m: m.split, side="input"),
    "LSTM": lambda: at(Recurrent, rand(3, 5), layer=lambda m: m.lstm),
    "into LSTM": lambda: at(Recurrent, rand(3, 5), layer=lambda m: m.lstm, side="input"),
}
every = pytest.mark.parametrize("make", SITES.values(), ids=SITES)


def site(make):
    model, inputs, where = make()

    def call(given):
        return model(*given)

    return call, tuple(t.clone() for t in inputs), where


def copies(inputs):
    return tuple(t.clone() for t in inputs)


@every
def test_writing_what_was_read_changes_nothing(make):
    call, inputs, where = site(make)
    expected = call(copies(inputs))
    read = where.read(call, copies(inputs))
    written = where.write(call, copies(inputs), read, torch.arange(B))
    assert_close(written, expected, atol=0, rtol=0)
    other = where.write(call, copies(inputs), tuple(t + 0.1 for t in read), torch.arange(B))
    assert ((other - expected).abs() > 1e-6).all(1).all()  # something was written


@every
def test_what_was_read_is_not_touched(make):
    call, inputs, where = site(make)
    read = where.read(call, copies(inputs))
    before = copies(read)
    for _ in range(2):
        where.write(call, copies(inputs), read, torch.arange(B))
    assert all(torch.equal(r, b) and not r.requires_grad for r, b in zip(read, before, strict=True))


@every
def test_gradients_pass_what_is_written(make):
    call, inputs, where = site(make)
    z = tuple(t.requires_grad_() for t in where.read(call, copies(inputs)))
    out = where.write(call, copies(inputs), z, torch.arange(B))
    found = torch.autograd.grad(out.square().sum(), z, allow_unused=True)
    assert any(g is not None and (g != 0).any() for g in found)


def test_reading_gives_the_activations():
    m, x = mlp(), rand(5)
    with torch.no_grad():
        assert torch.equal(Layer(m[1]).read(lambda t: m(*t), (x,))[0], m[:2](x))
        assert torch.equal(Layer(m[1], "input").read(lambda t: m(*t), (x,))[0], m[0](x))
        r = Reused()
        for k in range(2):
            one = r.act(r.again(r.first(x)))
            expected = one if k == 0 else r.act(r.again(one))
            assert torch.equal(Layer(r.act, call=k).read(lambda t: r(*t), (x,))[0], expected)


def test_in_place_layers_are_read_before_they_are_changed():
    m, x = InPlaceCNN(), rand(2, 4, 4)
    with torch.no_grad():
        conv = m.conv((x - 0.25) * 2)
        normed = (conv + 0.5 - m.norm.running_mean[:, None, None]) / (1 + m.norm.eps) ** 0.5

        def read(layer, **where):
            return Layer(layer, **where).read(lambda t: m(*t), (x.clone(),))[0]

        assert_close(read(m.conv), conv)
        assert_close(read(m.relu, side="input"), normed)
        assert_close(read(m.relu), normed.relu())


def test_nested_values_are_read_in_their_order_and_other_things_stay():
    m, x = Nested(), rand(5)
    left, right, total = Layer(m.split).read(lambda t: m(*t), (x,))
    assert torch.equal(left, x[:, :2].sin()) and torch.equal(right, x[:, 2:].exp()) and torch.equal(total, x.sum(1))


def test_a_users_hook_acts_once():
    m, x = mlp(), rand(5)
    m[1].register_forward_hook(lambda _, args, out: out * 2)
    m[2].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    for where in (Layer(m[1]), Layer(m[2], "input")):
        read = where.read(lambda t: m(*t), (x,))
        assert_close(where.write(lambda t: m(*t), (x,), read, torch.arange(B)), m(x), atol=0, rtol=0)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    "make, layer, call, words",
    [
        (Reused, "act", None, r"Tanh .* was called 2 times in one pass; say which with Layer\(module, call=0\)"),
        (Reused, "act", 2, r"Tanh .* was called 2 times while the model ran; choose a layer \(and a call\) it uses"),
        (Reused, "idle", None, "Linear .* was called 0 times while the model ran; choose a layer"),
        (Reused, "idle", 0, "was called 0 times"),
    ],
)
def test_calls_are_never_guessed(side, make, layer, call, words):
    m, x = make(), rand(5)
    where = Layer(getattr(m, layer), side, call)
    with pytest.raises(ValueError, match=words):
        where.read(lambda t: m(*t), (x,))
    with pytest.raises(ValueError, match=words):
        where.write(lambda t: m(*t), (x,), (rand(5),), torch.arange(B))
    assert not hooks(m)


def test_a_place_without_tensors():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 2).double()

        def forward(self, x):
            return self.inner(input=x)

    m = Outer()
    with pytest.raises(TypeError, match=r"layer Linear \(input\) passes no tensor there, but tuple"):
        Layer(m.inner, "input").read(lambda t: m(*t), (rand(5),))


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


@every
def test_hooks_are_gone_afterwards_also_after_an_error(make):
    model, inputs, where = make()
    if not isinstance(where, Layer):
        return

    def fails(given):
        model(*given)
        raise KeyboardInterrupt

    read = where.read(lambda t: model(*t), copies(inputs))
    for ask in (
        lambda: where.read(fails, copies(inputs)),
        lambda: where.write(fails, copies(inputs), read, torch.arange(B)),
    ):
        with pytest.raises(KeyboardInterrupt):
            ask()
        assert not hooks(model)


@pytest.mark.parametrize("side", ["input", "output"])
def test_threads_do_not_see_one_anothers_hooks(side):
    """While one thread writes at a layer, others that use the same model read and run it undisturbed."""
    m, x, wrong = mlp(), rand(5), []
    where = Layer(m[1], side)
    expected, alone = m(x), where.read(lambda t: m(*t), (x,))
    inside, done = threading.Barrier(3), threading.Barrier(3)

    def slowly(given):
        inside.wait(10)
        out = m(*given)
        done.wait(10)  # the hook stays until the others have run
        return out

    def write():
        out = where.write(slowly, (x,), tuple(t + 1 for t in alone), torch.arange(B))
        wrong.append(torch.equal(out, expected))

    def run():
        inside.wait(10)
        wrong.append(not torch.equal(m(x), expected))
        done.wait(10)

    def read():
        inside.wait(10)
        wrong.append(not torch.equal(where.read(lambda t: m(*t), (x,))[0], alone[0]))
        done.wait(10)

    threads = [threading.Thread(target=t) for t in (write, run, read)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert wrong == [False] * 3 and not hooks(m)


def test_threads_ask_at_once():
    """Each has a model's layer as its site, and a neuron of the same layer as its score."""
    m, z, found = mlp(), rand(8), {}

    def ask(k):
        f = Probe(m, (z[:, :5],), Neuron(Layer(m[3]), k), Layer(m[1]))
        found[k] = [f.grad(z + k)[1] for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    for k in range(3):
        alone = Probe(m[2:4], (z + k,), Output(k)).grad(z + k)[1]
        assert len(found[k]) == 20 and all(torch.equal(g, alone) for g in found[k])


@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_a_state_that_only_seems_to_have_the_batch_first_is_refused(b):
    """As many layers (or directions) as examples is chance, not a batch axis."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, num_layers=b, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    net = Net().double()
    with pytest.raises(OutputError, match="choose a place whose first axis is the batch"):
        assert Probe(net, (torch.rand(b, 6, 3).double(),), at=Layer(net.lstm)).here


class Around(nn.Module):
    """[B, 5] -> [B, 5]: a layer that gives back what it got, and a path around it, changed in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer = nn.Linear(5, 5).double(), nn.Identity()

    def forward(self, x):
        h = self.stem(x)
        out = self.layer(h) * 3
        return out + h.mul_(10)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("side", ["input", "output"])
def test_what_goes_around_a_site_is_no_part_of_it(side, frozen):
    """Though it is the very same tensor."""
    m, x = Around().requires_grad_(not frozen), rand(5)
    at = Probe(m, (x,), Output(1), Layer(m.layer, side)).local()
    assert_close(at.here, m.stem(x).detach())
    assert_close(at.grad, torch.tensor([0.0, 3, 0, 0, 0], dtype=torch.float64).expand(B, 5))


def whole(model):
    return torch.compile(model, backend="eager")


def itself(model):
    model.compile(backend="eager")
    return model


def within(model):
    model[0] = torch.compile(model[0], backend="eager")
    return model


def stance():
    return torch._dynamo.eval_frame._stance.stance


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's
@pytest.mark.parametrize("compiled", [whole, itself, within])
def test_compiled_models_are_seen_into(compiled):
    """Also those that ran before; and they run compiled again afterwards, also after an error."""
    torch._dynamo.reset()
    m, x = nn.Sequential(mlp()[:2], mlp()[2:]), rand(5)
    plain = nn.Sequential(*m[0], *m[1])
    where, score = Layer(m[0][0]), Neuron(Layer(plain[2]), 1)
    model = compiled(m)
    model(x)
    for given, at in ((model, where), (plain, Layer(plain[0]))):
        z = Probe(given, (x,), score, at).point
        assert_close(z, plain[0](x).detach())
        assert_close(Probe(given, (x,), score, at).grad(z)[1], Probe(plain[1:], (z,), score).grad(z)[1])
    seen = []

    def fails(_):
        seen.append(stance())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        where.read(fails, (x,))
    assert seen == ["force_eager"] and stance() == "default"


def test_threads_share_the_compilers_stance():
    """The last to leave gives it back, whoever came first."""
    torch._dynamo.reset()
    m, one, other = mlp(), threading.Event(), threading.Event()

    def first():
        with Layer(m[0]).put((rand(8),)):
            one.set()
            other.wait(10)
            m(rand(5))

    def second():
        one.wait(10)
        with Layer(m[0]).put((rand(8),)):
            other.set()
            threads[0].join(10)
            assert stance() == "force_eager"
            m(rand(5))
            done.append(True)

    done = []
    threads = [threading.Thread(target=t) for t in (first, second)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert done and stance() == "default"
