"""Loggers: callbacks that tell TensorBoard, MLflow and Weights & Biases of a run while it goes on.

All tell the same: at the start what is done; after each block, as ``MODEL/PART``, the share of the samples so far that
the model withstands, over the number of these samples; and once the run is finished, its figures (see
:func:`figures`). A process that works on a shard tells of its own blocks, and of figures only if it is the last.
"""

import json
import re
from abc import abstractmethod
from pathlib import Path
from typing import Any

from ..engine.checks import optional
from .callbacks import Callback, Step
from .run import Run
from .spec import Spec


def figures(run: Run) -> dict[str, float]:
    """What came out of a run, by name; a median distance only where at least half of the samples have one.

    >>> import tempfile, torch
    >>> from robustx.evaluation import evaluate
    >>> spec = Spec(models=("linear",), data="data", eps=0.5, explain=0, soundness=False)
    >>> xy = (torch.rand(20, 4), torch.arange(20) % 3)
    >>> list(figures(evaluate({"linear": torch.nn.Linear(4, 3)}, xy, spec, tempfile.mkdtemp())))[:2]
    ['linear/clean accuracy', 'linear/robust accuracy at 0.5']
    """
    told = {}
    for m in run.summary()["models"]:
        told[f"{m['name']}/clean accuracy"] = m["clean"]["value"]
        told |= {f"{m['name']}/robust accuracy at {r['eps']:g}": r["value"] for r in m["robust"]}
        told[f"{m['name']}/median distance"] = m["distances"]["quartiles"][1]
    return {name: float(value) for name, value in told.items() if value is not None}


class Logger(Callback):
    """Tells a tracker of experiments; a subclass says how."""

    def __init__(self) -> None:
        self.complete = False

    @abstractmethod
    def settings(self, spec: Spec) -> None:
        """What is done; called once, before any number."""

    @abstractmethod
    def number(self, name: str, value: float, samples: int) -> None:
        """How far one part of the run is."""

    @abstractmethod
    def result(self, run: Run) -> None:
        """What came out of a finished run."""

    def started(self, spec: Spec, totals: dict[str, int]) -> None:
        self.settings(spec)

    def step(self, step: Step) -> None:
        self.number(f"{step.work.model}/{step.work.attack}", step.value, step.samples)

    def ended(self, run: Run) -> None:
        if run.finished:
            self.result(run)
        self.complete = True


class TensorBoardLogger(Logger):
    """Scalars and the specification for TensorBoard. Needs the extra ``tensorboard``.

    Args:
        folder: of the events.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        optional("tensorboard", "tensorboard")  # torch's own message does not say where it comes from
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def settings(self, spec: Spec) -> None:
        told = json.dumps(json.loads(spec.to_json()), indent=2)
        self.writer.add_text("specification", "".join(f"    {line}\n" for line in told.splitlines()))

    def number(self, name: str, value: float, samples: int) -> None:
        self.writer.add_scalar(name, value, samples)

    def result(self, run: Run) -> None:
        for name, value in figures(run).items():
            self.writer.add_scalar(name, value, len(run.outcomes[0]))

    def closed(self) -> None:
        self.writer.close()


class MLflowLogger(Logger):
    """Parameters, metrics and the files of the summary for MLflow. Needs the extra ``mlflow``.

    Args:
        run_id: of an MLflow run that goes on; default: a new one, ended with the run.
        experiment: in which a new run is made.
        client: an ``mlflow.MlflowClient``; default: one for the tracking server that the environment names.
    """

    def __init__(self, run_id: str | None = None, experiment: str = "robustx", client: Any = None) -> None:
        super().__init__()
        self.client = optional("mlflow", "mlflow").MlflowClient() if client is None else client
        self.own = run_id is None
        if run_id is None:
            known = self.client.get_experiment_by_name(experiment)
            where = self.client.create_experiment(experiment) if known is None else known.experiment_id
            run_id = self.client.create_run(where).info.run_id
        self.run_id = run_id

    def settings(self, spec: Spec) -> None:
        told = {
            "models": ", ".join(spec.names),
            "data": spec.samples.name,
            "norm": spec.norm,
            "eps": ", ".join(f"{e:g}" for e in spec.eps),
            "attacks": ", ".join(a.label for a in spec.attacks),
            "seed": spec.seed,
            "spec_sha256": spec.sha256,
        }
        for name, value in told.items():
            self.client.log_param(self.run_id, name, value)

    def number(self, name: str, value: float, samples: int) -> None:
        allowed = re.sub(r"[^\w\-. /]", "_", name)  # addresses of models have more than MLflow takes
        self.client.log_metric(self.run_id, allowed, value, step=samples)

    def result(self, run: Run) -> None:
        for name, value in figures(run).items():
            self.number(name, value, len(run.outcomes[0]))
        for file in ("run.json", "summary.json", "samples.csv"):
            self.client.log_artifact(self.run_id, str(run.folder / file))

    def closed(self) -> None:
        if self.own:
            self.client.set_terminated(self.run_id, "FINISHED" if self.complete else "FAILED")


class WandbLogger(Logger):
    """Configuration, history and summary for Weights & Biases. Needs the extra ``wandb``.

    Args:
        run: a ``wandb`` run that goes on; default: a new one, ended with the run.
        options: of ``wandb.init`` for a new one; the project is ``robustx`` unless they say otherwise.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        super().__init__()
        if run is not None and options:
            raise ValueError(f"options are for a new run, but one was given too; drop {', '.join(options)}")
        self.own = run is None
        self.run = optional("wandb", "wandb").init(**{"project": "robustx", **options}) if run is None else run

    def settings(self, spec: Spec) -> None:
        self.run.config.update(json.loads(spec.to_json()))

    def number(self, name: str, value: float, samples: int) -> None:
        axis = f"{name} samples"
        self.run.define_metric(name, step_metric=axis)
        self.run.log({name: value, axis: samples})

    def result(self, run: Run) -> None:
        self.run.summary.update(figures(run))

    def closed(self) -> None:
        if self.own:
            self.run.finish(exit_code=0 if self.complete else 1)
