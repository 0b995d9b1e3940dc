"""Bad arguments and input: one sentence on standard error, exit code 2, no traceback."""

import pytest

OWN = ("--model", "mine:net", "--data", "mine:images")

BAD = {
    "no command": ((), "COMMAND"),
    "unknown command": (("atack",), "'attack'"),
    "unknown option": (("attack", "digits", "--epsilon", "1"), "--epsilon"),
    "no model": (("attack",), "robustx attack digits"),
    "unknown model": (("explain", "digitz"), "did you mean 'digits'"),
    "unknown model to evaluate": (("evaluate", "digitz"), "did you mean 'digits'"),
    "two models": (("attack", "--model", "digits", "--model", "digits-robust"), "one --model, got 2"),
    "no data": (("attack", "--model", "mine:net"), "--data"),
    "unknown module": (("attack", "--model", "mine2:net", "--data", "digits"), "'mine2'"),
    "unknown callable": (("attack", "--model", "mine:nett", "--data", "digits"), "did you mean 'net'"),
    "weights of two models": (("evaluate", "digits", "--weights", "a.safetensors"), "--weights belongs to one model"),
    "weights named twice": (("explain", *OWN[:1], "mine:net@a.safetensors", *OWN[2:], "--weights", "b"), "twice"),
    "no weights there": (("explain", "digits", "--weights", "no.safetensors"), "no.safetensors"),
    "pickled weights": (("explain", *OWN, "--weights", "mine.py"), "run code"),
    "unknown split": (("explain", "digits", "--split", "dev"), "'train' or 'test'"),
    "unknown device": (("explain", "digits", "--device", "toaster"), "robustx doctor"),
    "data of another model": (("explain", "digits", "--data", "breast-cancer"), "(1, 30)"),
    "no samples": (("attack", "--model", "mine:net", "--data", "mine:empty"), "no samples"),
    "outside the bounds": (("attack", "--model", "mine:net", "--data", "mine:wide"), "bounds"),
    "labels out of range": (("attack", "--model", "mine:net", "--data", "mine:labels"), "0 to 2"),
    "labels out of range, evaluated": (("evaluate", "--model", "mine:net", "--data", "mine:labels"), "0 to 2"),
    "limit": (("attack", "digits", "--limit", "0"), "whole number from 1"),
    "row": (("explain", "digits", "--row", "450"), "0 to 449"),
    "negative row": (("explain", "digits", "--row", "-1"), "whole number from 0"),
    "eps no number": (("attack", "digits", "--eps", "much"), "8/255"),
    "eps negative": (("attack", "digits", "--limit", "2", "--eps", "-1"), "negative"),
    "eps nan": (("attack", "digits", "--limit", "2", "--eps", "nan"), "NaN"),
    "eps negative, evaluated": (("evaluate", "digits", "--eps", "0.1,-1"), "positive"),
    "norm": (("attack", "digits", "--norm", "L3"), "L0, L1, L2, Linf"),
    "attack": (("attack", "digits", "--attack", "pgdd"), "did you mean 'pgd'"),
    "setting": (("attack", "digits", "--set", "rounds"), "NAME=VALUE"),
    "unknown setting": (("attack", "digits", "--set", "rounds=3"), "PGD takes"),
    "setting of ours": (("attack", "digits", "--set", "eps=3"), "option of its own"),
    "steps of one step": (("attack", "digits", "--attack", "fgsm", "--steps", "3"), "FGSM takes"),
    "target": (("attack", "digits", "--target", "ten"), "there are 0, 1"),
    "nearly a target": (("explain", "breast-cancer", "--target", "benine"), "did you mean 'benign'"),
    "target is the answer": (("counterfactual", "digits", "--row", "3", "--target", "6"), "already"),
    "keep": (("counterfactual", "breast-cancer", "--keep", "worst arae"), "did you mean 'worst area'"),
    "min-prob": (("counterfactual", "digits", "--min-prob", "1"), "between 0 and 1"),
    "strategy": (("counterfactual", "digits", "--strategy", "pie"), "strategy must be one of 'auto', 'guided'"),
    "margin": (("counterfactual", "breast-cancer", "--margin", "0"), "above 0"),
    "blurred table": (("counterfactual", "breast-cancer", "--replace", "blur"), "for images"),
    "method": (("explain", "digits", "--method", "salience"), "did you mean 'saliency'"),
    "steps of saliency": (("explain", "digits", "--method", "saliency", "--steps", "3"), "leave it out"),
    "baseline of saliency": (("explain", "digits", "--method", "saliency", "--baseline", "1"), "leave --baseline out"),
    "segments of a table": (
        ("explain", "breast-cancer", "--method", "feature-ablation", "--segments", "3"),
        "cuts images",
    ),
    "out is a file": (("attack", "digits", "--out", "mine.py"), "--out must be a folder"),
    "run folder holds something": (("evaluate", "digits", "--limit", "2", "--out", "."), "mine.py"),
    "require": (("evaluate", "digits", "--require", "50"), "0 to 1"),
    "require elsewhere": (("evaluate", "digits", "--require", "0.5@0.07"), "0.025, 0.05"),
    "spec": (("evaluate", "no.toml"), "no.toml"),
    "attacks": (("evaluate", "digits", "--attacks", "pgdd"), "did you mean 'pgd'"),
    "certify": (("evaluate", "digits", "--certify", "crow"), "ibp, crown, smoothing, got 'crow'"),
    "severities": (("evaluate", "digits", "--severities", "6"), "from 1 to 5"),
    "shard": (("evaluate", "digits", "--shard", "2/2"), "expected I/N with I from 0 below N"),
    "no run to resume": (("resume", "nowhere"), "nowhere"),
    "no run": (("report", "nowhere"), "nowhere"),
    "tuple of outputs": (("explain", "--model", "mine:Pair", "--data", "mine:images"), "one tensor"),
    "NaN outputs": (("attack", "--model", "mine:Nan", "--data", "mine:images"), "NaN"),
}


@pytest.mark.parametrize("argv, expected", BAD.values(), ids=BAD)
def test_one_sentence_says_what_to_mend(argv, expected, run):
    said = run(*argv)
    assert said.code == 2, said
    assert expected in said.err and not said.out
    assert said.err.count("\n") == 1 and said.err.startswith("robustx") and "Traceback" not in said.err


def test_debug_shows_where(run):
    said = run("explain", "digitz", "--debug")
    assert said.code == 2 and "Traceback" in said.err


def test_what_should_not_fail_has_a_code_of_its_own(run):
    said = run("explain", "--model", "mine:Broken", "--data", "mine:images")
    assert said.code == 3 and "KeyError: 'oh'" in said.err and "Traceback" not in said.err
    assert "mine.py" in run("explain", "--model", "mine:Broken", "--data", "mine:images", "--debug").err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(run):
    said = run("attack", "--model", "mine:Rounding", "--data", "mine:images", "--batch-size", 5)
    assert said.code == 1
    assert said.err.startswith("robustx attack: warning: the gradient is exactly zero") and said.err.count("\n") == 1


def test_progress_is_for_terminals(run, monkeypatch):
    import sys

    assert not run("attack", "digits", "--limit", 2).err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "PGD: 100%" in run("attack", "digits", "--limit", 2).err
    assert not run("attack", "digits", "--limit", 2, "--quiet").err
