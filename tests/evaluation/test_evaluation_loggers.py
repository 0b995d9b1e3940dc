"""Loggers: each tracker is told the same, as its own library takes it; callbacks hear everything in order."""

import sys
from types import SimpleNamespace

import pytest
import torch

from robustx.evaluation import AttackSpec, Callback, Spec, evaluate
from robustx.evaluation.loggers import MLflowLogger, TensorBoardLogger, WandbLogger, figures

NAME = "mine:net@x"  # an address; MLflow takes neither : nor @
XY = (torch.rand(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)
SPEC = Spec(
    models=(NAME,),
    data="data",
    eps=(0.05, 0.5),
    attacks=(AttackSpec("fgsm"), AttackSpec("pgd", {"steps": 2})),
    block_size=8,
    explain=0,
    soundness=False,
)


def run(folder, *callbacks, spec=SPEC, **more):
    torch.manual_seed(0)
    return evaluate({NAME: torch.nn.Linear(5, 3)}, XY, spec, folder, callbacks=callbacks, **more)


class Heard(Callback):
    def __init__(self, fails_at=""):
        self.heard, self.fails_at = [], fails_at

    def note(self, what, *more):
        self.heard.append((what, *more))
        if what == self.fails_at:
            raise RuntimeError("the tracker is gone")

    def started(self, spec, totals):
        self.note("started", totals)

    def step(self, step):
        self.note("step", step.work.attack, step.samples)

    def ended(self, run):
        self.note("ended", run.finished)

    def closed(self):
        self.note("closed")


def test_callbacks_hear_everything_in_order(tmp_path):
    heard, parts = Heard(), {"clean": 2, "fgsm": 2, "pgd": 2}
    run(tmp_path, heard)
    steps = [("step", part, n) for n in (8, 12) for part in parts]
    assert heard.heard == [("started", parts), *steps, ("ended", True), ("closed",)]
    again = Heard()
    run(tmp_path, again)
    assert again.heard == [("started", {}), ("ended", True), ("closed",)]


@pytest.mark.parametrize("when", ["started", "step", "ended"])
def test_a_callback_that_fails_ends_the_run_and_is_closed(tmp_path, when):
    heard = Heard(when)
    with pytest.raises(RuntimeError, match="the tracker is gone"):
        run(tmp_path, heard)
    assert [what for what, *_ in heard.heard].count(when) == 1 and heard.heard[-1] == ("closed",)
    assert run(tmp_path).finished


def test_figures_are_those_of_the_summary(tmp_path):
    done = run(tmp_path)
    (m,) = done.summary()["models"]
    told = figures(done)
    assert told[f"{NAME}/clean accuracy"] == m["clean"]["value"]
    assert [told[f"{NAME}/robust accuracy at {e:g}"] for e in SPEC.eps] == [r["value"] for r in m["robust"]]
    middle = m["distances"]["quartiles"][1]
    assert told.get(f"{NAME}/median distance") == middle and len(told) == 3 + (middle is not None)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(tmp_path / "run", TensorBoardLogger(tmp_path / "events"))
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    clean = [(e.step, e.value) for e in events.Scalars(f"{NAME}/clean")]
    right = done.outcomes[0].correct
    assert clean == [(8, pytest.approx(right[:8].mean())), (12, pytest.approx(right.mean()))]
    for name, value in figures(done).items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(12, pytest.approx(value))]
    assert "specification/text_summary" in events.Tags()["tensors"]


class Client:
    """The part of mlflow.MlflowClient that is used."""

    def __init__(self):
        self.params, self.metrics, self.files, self.ends, self.made = {}, [], [], [], []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if name == "known" else None

    def create_experiment(self, name):
        self.made.append(name)
        return "8"

    def create_run(self, experiment_id):
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run in {experiment_id}"))

    def log_param(self, run_id, key, value):
        assert key not in self.params
        self.params[key] = value

    def log_metric(self, run_id, key, value, step):
        assert not set(key) & set("@:")
        self.metrics.append((run_id, key, value, step))

    def log_artifact(self, run_id, path):
        self.files.append(path.rpartition("/")[2])

    def set_terminated(self, run_id, status):
        self.ends.append((run_id, status))


def test_mlflow(tmp_path):
    client = Client()
    done = run(tmp_path, MLflowLogger(client=client))
    assert client.params["spec_sha256"] == SPEC.sha256 and client.params["attacks"] == "fgsm, pgd"
    assert client.made == ["robustx"] and client.ends == [("run in 8", "FINISHED")]
    assert client.files == ["run.json", "summary.json", "samples.csv"]
    told = {key: value for _, key, value, step in client.metrics if step == 12}
    assert len(client.metrics) == 2 * 3 + len(figures(done))
    assert {k.replace("mine_net_x", NAME): v for k, v in told.items()}.items() >= figures(done).items()


def test_an_mlflow_run_that_goes_on_is_not_ended(tmp_path):
    client = Client()
    run(tmp_path, MLflowLogger("mine", client=client), shard=(0, 2))
    assert {m[0] for m in client.metrics} == {"mine"} and client.ends == []
    assert client.files == [] and len(client.metrics) == 3  # of one block; the run is not finished


def test_a_run_that_fails_is_told_to_mlflow(tmp_path):
    client = Client()
    with pytest.raises(RuntimeError):
        run(tmp_path, MLflowLogger(experiment="known", client=client), Heard("step"))
    assert client.ends == [("run in 7", "FAILED")] and client.made == []


class Wandb:
    """The part of a wandb run that is used."""

    def __init__(self):
        self.config, self.summary, self.history, self.axes, self.ends = {}, {}, [], {}, []

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, data):
        self.history.append(data)

    def finish(self, exit_code):
        self.ends.append(exit_code)


def test_wandb(tmp_path, monkeypatch):
    theirs = Wandb()
    done = run(tmp_path, WandbLogger(theirs))
    assert theirs.config["eps"] == [0.05, 0.5] and theirs.summary == figures(done) and theirs.ends == []
    assert [h[f"{NAME}/pgd samples"] for h in theirs.history if f"{NAME}/pgd" in h] == [8, 12]
    assert theirs.axes[f"{NAME}/pgd"] == f"{NAME}/pgd samples" and len(theirs.history) == 6
    with pytest.raises(ValueError, match="options are for a new run.*drop mode"):
        WandbLogger(theirs, mode="offline")

    made, asked = Wandb(), []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: asked.append(given) or made))
    run(tmp_path, WandbLogger(mode="offline"))
    assert asked == [{"project": "robustx", "mode": "offline"}] and made.ends == [0]


@pytest.mark.parametrize(("logger", "extra"), [(MLflowLogger, "mlflow"), (WandbLogger, "wandb")])
def test_what_is_not_installed_says_how_to_mend_that(logger, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=rf"pip install 'robustx\[{extra}\]'"):
        logger()
