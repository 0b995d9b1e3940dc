"""Specifications: what they accept, what they say when they do not, and that they have one canonical form."""

import pytest

from robustx.evaluation import BUDGETS, AttackSpec, BoundSpec, Spec, standard_attacks

PLAIN = {"models": ("a",), "data": "d"}


def test_what_is_left_out_is_filled_in():
    spec = Spec(**PLAIN)
    assert (spec.norm, spec.eps, spec.block_size, spec.limit) == ("Linf", BUDGETS["Linf"], 64, None)
    assert [a.label for a in spec.attacks] == ["fgsm", "pgd", "pgd-targeted", "bisection"]
    assert [a.minimal for a in spec.attacks] == [False, False, False, True]
    assert spec.cap == 0.6
    assert Spec(**PLAIN, norm="l2").eps == BUDGETS["L2"]


def test_budgets_are_put_in_order():
    assert Spec(**PLAIN, eps=[0.3, 0.1, 0.3, 1]).eps == (0.1, 0.3, 1.0)


def test_one_canonical_form():
    one = Spec(models=["a", "b"], data="d", eps=[0.2, 0.1], norm="linf", attacks=[AttackSpec("pgd", {"steps": 3})])
    two = Spec.parse(
        '{"data": "d", "eps": [0.1, 0.2], "attacks": [{"options": {"steps": 3}, "name": "pgd"}], "models": ["a", "b"]}'
    )
    toml = Spec.parse(
        'models = ["a", "b"]\ndata = "d"\neps = [0.1, 0.2]\nattacks = [{name = "pgd", options = {steps = 3}}]', "toml"
    )
    assert one == two == toml
    assert one.sha256 == two.sha256 == toml.sha256
    assert one.sha256 != Spec(**PLAIN).sha256
    assert Spec.parse(one.to_json()) == one


def test_reading_files(tmp_path):
    spec = Spec(**PLAIN, seed=3)
    (tmp_path / "spec.json").write_text(spec.to_json())
    (tmp_path / "spec.toml").write_text('models = ["a"]\ndata = "d"\nseed = 3\n')
    assert Spec.read(tmp_path / "spec.json") == Spec.read(tmp_path / "spec.toml") == spec
    (tmp_path / "bad.toml").write_text('models = ["a"]\ndata = "d"\neps = ["x"]\n')
    with pytest.raises(ValueError, match=r"bad\.toml.*Expected `float`.*\$\.eps\[0\]"):
        Spec.read(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match=r"\.toml or \.json file, got 'spec\.yaml'"):
        Spec.read("spec.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": []}, "models must be at least one name"),
        ({"models": "digits"}, "models must be at least one name, got 'digits'"),
        ({"models": ["a", "a"]}, "different names"),
        ({"data": ""}, "data must be a name"),
        ({"norm": "L3"}, "norm must be one of .*L3"),
        ({"eps": -0.1}, "eps must hold positive numbers, got -0.1"),
        ({"eps": [0.0]}, "eps must hold positive numbers, got 0.0.*always part of a run"),
        ({"eps": [float("nan")]}, "eps must hold positive numbers, got nan"),
        ({"eps": ["0.1"]}, "eps must hold positive numbers, got '0.1'"),
        ({"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        ({"block_size": 1.5}, "block_size must be a whole number of at least 1, got 1.5"),
        ({"explain": True}, "explain must be a whole number"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"attacks": []}, "attacks must hold at least one"),
        ({"attacks": ["pgd"]}, "AttackSpec"),
        ({"attacks": [AttackSpec("pgdd")]}, "no attack is called 'pgdd'; did you mean 'pgd'"),
        ({"attacks": [AttackSpec("pgd"), AttackSpec("pgd")]}, "label 'pgd' stands twice"),
        ({"attacks": [AttackSpec("pgd", label="clean")]}, "label 'clean' is reserved"),
        ({"attacks": [AttackSpec("pgd", {"stepz": 3})]}, "attack 'pgd' has an option .*stepz"),
        ({"attacks": [AttackSpec("pgd", {"steps": -3})]}, "steps must be a whole number"),
        ({"attacks": [AttackSpec("pgd", {"norm": "L2"})]}, "may not set 'norm'"),
        ({"attacks": [AttackSpec("pgd", {"eps": 0.1})]}, "may not set 'eps'"),
        ({"attacks": [AttackSpec("pgd", {"loss_func": "mse"})]}, "loss_func must be one of"),
        ({"bounds": [BoundSpec("crown")], "norm": "L0"}, "bounds are for norm 'Linf', 'L2' or 'L1', got 'L0'"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_values_say_so(changes, said):
    with pytest.raises(ValueError, match=said):
        Spec(**{**PLAIN, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"models": ["a"], "data": "d", "epz": [1]}', "unknown field `epz`"),
        (
            '{"models": ["a"], "data": "d", "attacks": [{"name": "pgd", "option": {}}]}',
            r"`option` - at `\$.attacks\[0\]`",
        ),
        ('{"models": [{"name": "a", "surce": "b"}], "data": "d"}', r"`surce` - at `\$.models\[0\]`"),
        ('{"models": ["a"], "data": {"name": "d", "rot": "/"}}', r"`rot` - at `\$.data`"),
        ('{"models": ["a"], "data": "d", "bounds": [{"name": "ibp", "opts": {}}]}', r"`opts` - at `\$.bounds\[0\]`"),
        (
            '{"models": ["a"], "data": "d", "bounds": [{"name": "ibp", "options": {"n": 9}}]}',
            r"no option 'n'; known are tolerance, batch_size - at `\$.bounds\[0\]`",
        ),
        ('{"models": ["a"]}', "missing required field `data`"),
        ('{"models": ["a"], "data": "d", "limit": 2.5}', r"\$\.limit"),
        ('{"models": ["a"], "data": "d", "eps": [-1]}', "positive numbers, got -1.0"),
        ("{", "no specification of a run"),
    ],
)
def test_bad_text_says_where(text, said):
    with pytest.raises(ValueError, match=said):
        Spec.parse(text)


def test_steps_of_the_standard_attacks():
    assert [a.options.get("steps") for a in standard_attacks(7)] == [None, 7, 7, 3]
