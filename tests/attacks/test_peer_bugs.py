"""What went wrong in other libraries (the versions of tests/peers.txt, ART 1.20.1) must not go wrong here."""

from dataclasses import replace

import pytest
import torch
from attack_cases import ALL, BUDGET, CASES, affine, examples, mlp
from torch import nn
from torch.testing import assert_close

from robustx.attacks import ATTACKS, make
from robustx.perturb import LOSSES, NORMS, Leave, Reach

every = pytest.mark.parametrize("case", CASES, ids=str)
MINIMAL = [c for c in CASES if ATTACKS[c.name].minimal]
TRANSFER = {"nesterov", "scales", "diversity", "kernel", "neighbours"}  # parts of climbs that look beside the point


def size(norm, d):
    return NORMS[norm].size(d.flatten(1))


def of(name, **options):
    """The case of that name, or the first of those with these options."""
    return next(c for c in CASES if c.told == name and all(getattr(c, k) == v for k, v in options.items()))


class Watched(nn.Module):
    """Keeps what it is asked, and what it says."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.said = model, [], []

    def forward(self, x):
        out = self.model(x)
        self.seen.append(x.detach().clone())
        self.said.append(out.detach().clone())
        return out


# --- what was wrong before ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, known in ATTACKS.items() if "targets" in known.options])
def test_wrong_examples_never_come_back_right(name):
    """adv-lib's apgd_targeted walks to the likeliest classes but the first, of which one is then the true one."""
    model = mlp(5)
    x, y = examples(model, count=24, wrong=12)
    case = of(name)
    result = case(model, eps=4 * BUDGET[case.norm]).run(x, y)
    assert result.success[12:].all() and torch.equal(result.adversarial[12:], x[12:])
    assert (model(result.adversarial).argmax(1) != y)[result.success].all()


# --- one example's numbers in another's place ---------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if "apgd" in c.told], ids=str)
def test_the_steps_of_the_first_example_are_its_own(case):
    """torchattacks' APGDT takes them for all in L2."""
    model = mlp()
    x, y = examples(model, wrong=0)
    eps = torch.full((12,), BUDGET[case.norm], dtype=torch.float64)
    lame = torch.cat([eps[:1] / 1000 if case.norm != "L0" else eps[:1], eps[1:]])
    one, other = (case(model, eps=e).run(x, y) for e in (eps, lame))
    assert_close(other.margin[1:], one.margin[1:], rtol=0, atol=1e-5)


@every
def test_the_goal_of_one_example_stops_no_other(case):
    """torchattacks' CW stops the whole batch at once, its EADL1 moves one label's logit for all labels."""
    model = mlp()
    x, y = examples(model, wrong=0)
    easy = x.clone()
    easy[0] = x[y != y[0]][0]  # an example that is wrong as it stands
    one, other = case(model).run(x, y), case(model).run(easy, y)
    assert_close(other.margin[1:], one.margin[1:], rtol=0, atol=1e-5)
    assert_close(other.distance[1:], one.distance[1:], rtol=0, atol=1e-5)


# --- what is found is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if not TRANSFER & c.all_options.keys()], ids=str)
def test_nothing_that_was_seen_is_lost(case):
    """ART's APGD keeps the last point, whatever it passed on the way; here no point that was asked about is better.

    Where nothing is found, Auto-PGD returns the point with the largest loss, all others that with the largest margin.
    """
    net = mlp()
    x, y = examples(net, wrong=0)
    for i in range(0, len(x), 3):
        model = Watched(net)
        result = case(model).run(x[i : i + 1], y[i : i + 1])
        seen, said = torch.cat(model.seen), torch.cat(model.said)
        far = size(case.norm, seen - x[i])
        inside = (far <= BUDGET[case.norm]) & ((seen >= 0) & (seen <= 1)).flatten(1).all(1)
        own = said[:, y[i]]
        margin = said.index_fill(1, y[i : i + 1], -torch.inf).amax(1) - own
        clear = inside & (margin > 1e-9)
        if ATTACKS[case.name].minimal:
            assert result.success.item() == clear.any().item()
            assert not clear.any() or result.distance <= far[clear].min() * (1 + 1e-6)
        elif clear.any():
            assert result.success.all()
        elif "apgd" not in case.told:
            assert result.margin >= margin[inside].max() - 1e-9


@pytest.mark.parametrize("case", MINIMAL, ids=str)
def test_where_nothing_is_found_the_input_comes_back(case):
    """foolbox's CW and EAD return a black image."""
    model = affine(18, 4)
    x, y = examples(model, wrong=0)
    model[1].bias.data[0] += 50
    result = case(model, eps=None).run(x, torch.zeros_like(y))
    assert not result.success.any() and torch.equal(result.adversarial, x)
    assert not result.distance.any() and (result.margin < -40).all()


# --- few steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if "steps" in ATTACKS[c.name].arguments()], ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_or_two(case, steps):
    """torchattacks' EAD divides by a tenth of the steps; its APGD by a fifth of them."""
    model = mlp()
    x, y = examples(model)
    result = replace(case, options={**case.options, "steps": steps})(model).run(x, y)
    assert torch.equal(result.success, model(result.adversarial).argmax(1) != y)
    assert (size(case.norm, result.adversarial - x) <= BUDGET[case.norm] * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"])
def test_published_numbers_of_steps(name):
    """torchattacks' AutoAttack takes ten where a hundred were published: its figures are no figures of AutoAttack's."""
    assert make(name, mlp()).steps == {"square": 5000}.get(name, 100)


# --- units --------------------------------------------------------------------------------------------------


@every
def test_units_are_nobodys_business(case):
    """ART's DeepFool is eight times too large for pixels from 0 to 255: steps were multiplied by the range."""
    net = mlp()
    x, y = examples(net, wrong=0)
    scale = 256.0
    unit = case(net).run(x, y)
    eps = BUDGET[case.norm] * (1 if case.norm == "L0" else scale)
    pixels = case(lambda z: net(z / scale), bounds=(0, scale), eps=eps).run(x * scale, y)
    share = pixels.distance / (1 if case.norm == "L0" else scale)
    both = unit.success & pixels.success
    if case.starts_at_random or case.pictures_only:  # other draws, since these follow the content
        assert (unit.success == pixels.success).float().mean() > 0.7
        assert (share <= BUDGET[case.norm] * (1 + 1e-9)).all()
    else:
        assert unit.success.tolist() == pixels.success.tolist()
        assert_close(share[both], unit.distance[both], rtol=0.02, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "cw"], ids=str)
def test_binary_images_move(case):
    """torchattacks' CW takes the inverse tangent of 0 and 1, which has no gradient: such pixels stay for ever."""
    model = mlp()
    x = (torch.rand(12, 2, 3, 3) > 0.5).double()
    y = model(x).argmax(1)
    result = case(model, eps=None).run(x, y)
    assert result.success.all() and (size(case.norm, result.adversarial - x) > 0).all()


@every
def test_logits_below_zero(case):
    """torchattacks' CW masks logits by multiplying with zero, which then leads: a margin of logits, not of masks."""
    net = mlp()
    x, y = examples(net)
    one, other = case(net).run(x, y), case(lambda x: net(x) - 100).run(x, y)
    assert one.success.tolist() == other.success.tolist()
    assert_close(other.distance, one.distance, rtol=0, atol=1e-5)


# --- norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_projection_neither_grows_nor_cuts(norm):
    """foolbox's L2FMN never projects, adv-lib's stretches what is small, foolbox's L0FMN keeps one element too many."""
    d = torch.tensor([[3.0, -0.2, 0.1, 0.0], [0.02, 0.01, -0.01, 0.0]], dtype=torch.float64)
    radius = torch.full((2,), 2.0, dtype=torch.float64)
    p = NORMS[norm].project(d, radius)
    assert NORMS[norm].size(p)[0] == pytest.approx(2)
    if norm != "L0":
        assert torch.equal(p[1], d[1])
    p = NORMS[norm].project(d, torch.full((2,), 4.0, dtype=torch.float64))  # as many elements as there are
    assert torch.equal(p, d)


# --- what comes in ------------------------------------------------------------------------------------------


@every
def test_one_example_many_times(case):
    """adv-lib's tr and fab write into what they are given, which fails on views: here rows that share their memory."""
    model = mlp()
    x, y = examples(model, wrong=0)
    given, kept = x[:1].expand(3, -1, -1, -1), x.clone()
    result, alone = case(model).run(given, y[:1].expand(3)), case(model).run(x[:1], y[:1])
    assert torch.equal(x, kept) and not x.requires_grad
    assert_close(result.adversarial, alone.adversarial.expand(3, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if not c.pictures_only], ids=str)
@pytest.mark.parametrize("shape", [(18,), (2, 3, 3, 1)], ids=str)
def test_inputs_that_are_no_images(case, shape):
    """torchattacks' PGDL2, MIFGSM, APGD, Square, Jitter, OnePixel and JSMA take [B, C, H, W] only."""
    model = mlp()
    x, y = examples(model)
    flat, image = case(model).run(x.reshape(12, *shape), y), case(model).run(x, y)
    assert flat.adversarial.shape == (12, *shape)
    assert_close(flat.adversarial.flatten(1), image.adversarial.flatten(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", range(5))
def test_a_loss_pulls_wherever_the_class_stands(loss, place):
    """auto-attack's ratio of logits is constant where the class ranks third: nothing to climb."""
    logits = torch.tensor([[0.3, 0.1, 0.4, -0.2, -0.5]], dtype=torch.float64).requires_grad_()
    y, rows = logits.argsort(1, descending=True)[:, place], torch.zeros(1, dtype=torch.long)
    towards = [Leave(y, loss, toward=(y + k) % 5) for k in range(1, 5)]
    for goal in [Reach(y, loss)] if place else [Leave(y, loss), *towards]:
        (g,) = torch.autograd.grad(goal.pull(logits, rows).sum(), logits)
        assert g.norm() > 1e-3


def test_every_name_is_held_to_the_laws():
    assert {name for _, name, _ in ALL} == set(ATTACKS) and {c.name for c in CASES} == set(ATTACKS)
