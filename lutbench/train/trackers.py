"""Log a training to TensorBoard files and other experiment trackers, through accelerate's tracker classes.

A tracker that fails is disabled with a message; the training continues.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lutbench.errors import UserError, listed
from lutbench.files import whole_file
from lutbench.record_writing import without_machine_paths

if TYPE_CHECKING:
    from PIL.Image import Image

    from lutbench.run import Run

PROJECT = "lutbench"
"""Name of the project (or experiment) in a tracker, unless the tracker's own environment variable sets another."""

NAME = "tracker-id.txt"
"""File in a run's folder with its id in trackers, so that a resumed run continues the same one there."""

PACKAGES: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio", "trackio"),
    "comet": ("comet_ml", "comet-ml"),
}
"""By the name of a tracker in a recipe its module, and the package that has it."""


def require_trackers(names: Sequence[str], where: str) -> None:
    """Check before a run that the packages of these trackers are installed; ``where`` is the table of the setting.

    Raises:
        UserError: naming those that are not, with the line that installs them.
    """
    absent = [name for name in names if find_spec(PACKAGES[name][0]) is None]
    if absent:
        packages = " ".join(PACKAGES[name][1] for name in absent)
        raise UserError(
            f"{where}.trackers: {listed(absent)} cannot be used: not installed here. Install with: python -m pip install -c "
            f"constraints.txt {packages} (the extra 'trackers' has them all), or leave {'it' if len(absent) == 1 else 'them'} out."
        )


class _Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, image: "Image") -> None: ...
    def close(self) -> None: ...


class Trackers:
    """The trackers that a run's recipe names, started; none on other processes than the first."""

    def __init__(self, run: "Run[Any]", start: int) -> None:
        """Start the trackers of a run that begins or continues at step ``start``."""
        self._run = run
        self._open: dict[str, _Tracker] = {}
        names = list(dict.fromkeys(run.recipe.trackers))
        identity = _Identity.of(run) if set(names) - {"tensorboard"} else None
        for name in names:
            with _left_out(self, name):
                if name == "tensorboard":
                    self._open[name] = _TensorBoard(run.folder, start)
                else:
                    assert identity is not None
                    self._open[name] = _Accelerates(name, run, identity)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name, of the state after ``step`` steps."""
        self._each(lambda tracker: tracker.log(step, values))

    def picture(self, step: int, name: str, image: "Image") -> None:
        """Write a picture of the state after ``step`` steps."""
        self._each(lambda tracker: tracker.picture(step, name, image))

    def close(self) -> None:
        """Finish writing."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def failed(self, name: str, error: Exception) -> None:
        """Leave a tracker out, and say so."""
        self._open.pop(name, None)
        found = " ".join(str(error).split()) or type(error).__name__
        self._run.log(f"tracker {name} failed; training continues without it: {found[:300]}")

    def _each(self, do: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with _left_out(self, name):
                do(tracker)


@contextmanager
def _left_out(trackers: Trackers, name: str) -> Iterator[None]:
    """Leave a tracker out if anything goes wrong in it inside the block; signals, which are no errors, go through."""
    try:
        yield
    except Exception as error:
        trackers.failed(name, error)


class _Identity(NamedTuple):
    """What a run is called in trackers."""

    id: str
    """32 hexadecimal digits."""
    is_new: bool

    @classmethod
    def of(cls, run: "Run[Any]") -> "_Identity":
        """Return that of a run's folder: the one drawn when it was first tracked. It is drawn by the system, and moves no random state."""
        path = run.folder / NAME
        if path.is_file() and len(known := path.read_text(encoding="utf-8").strip()) == 32:
            return cls(known, False)
        drawn = uuid.uuid4().hex
        with whole_file(path) as partial:
            partial.write_text(f"{drawn}\n", encoding="utf-8")
        return cls(drawn, True)


class _TensorBoard:
    """TensorBoard's files in the run's folder. What was written of later steps than ``start``, before an interruption, is not shown."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: "Image") -> None:
        self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Accelerates:
    """A tracker of accelerate's, of a run under its name in the suite."""

    def __init__(self, name: str, run: "Run[Any]", identity: _Identity) -> None:
        self._name = name
        self._tracker = STARTS[name](run, f"{run.planned.suite}/{run.name}", identity.id)
        self._tracker.start()
        if identity.is_new:
            self._tracker.store_init_configuration(
                {"identity": run.identity, **without_machine_paths(run.recipe.model_dump(mode="json"))}
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: "Image") -> None:
        if self._name == "wandb":
            self._tracker.log_images({name: [image]}, step=step)
        elif self._name == "mlflow":
            import mlflow

            mlflow.log_image(image, artifact_file=f"{name}/{step:08d}.png")
        elif self._name == "trackio":
            import trackio

            self._tracker.log({name: trackio.Image(image)}, step=step)
        else:
            self._tracker.tracker.log_image(image, name=name, step=step)

    def close(self) -> None:
        self._tracker.finish()


def _wandb(run: "Run[Any]", name: str, identity: str) -> Any:
    """Weights & Biases; without a key and without ``WANDB_MODE`` offline, into the run's folder: ``wandb sync`` uploads that."""
    import wandb
    from accelerate.tracking import WandBTracker

    mode = {} if os.environ.get("WANDB_MODE") or wandb.api.api_key else {"mode": "offline"}
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT), dir=str(run.folder), name=name, id=identity, resume="allow",
        group=run.planned.suite, job_type=run.planned.stage, settings={"console": "off", "silent": True}, **mode,
    )  # fmt: skip


def _mlflow(run: "Run[Any]", name: str, identity: str) -> Any:
    """MLflow, to ``MLFLOW_TRACKING_URI``; without one to files in ``mlflow`` below the folder of all runs."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = (run.workspace.runs / "mlflow").absolute().as_uri()
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # else refused, for a database that the small package lacks
    import mlflow
    from accelerate.tracking import MLflowTracker

    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`lutbench.id` = '{identity}'", output_format="list"
    )
    known = {"run_id": found[0].info.run_id} if found else {}
    return MLflowTracker(PROJECT, run_name=name, tags={"lutbench.id": identity}, **known)


def _trackio(run: "Run[Any]", name: str, identity: str) -> Any:
    """Trackio, to its own folder on this machine (``TRACKIO_DIR``); ``trackio show`` shows it."""
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(PROJECT, name=f"{name}/{identity[:12]}", group=run.planned.suite, resume="allow", embed=False)


def _comet(run: "Run[Any]", name: str, identity: str) -> Any:
    """Comet; without a key offline, into the run's folder: ``comet upload`` uploads that. It is given no code."""
    import comet_ml
    from accelerate.tracking import CometMLTracker

    config = comet_ml.ExperimentConfig(
        name=name, offline_directory=str(run.folder / "comet"), tags=[run.planned.suite, run.planned.stage],
        log_code=False, log_git_metadata=False, log_git_patch=False, display_summary_level=0,
    )  # fmt: skip
    online = {} if comet_ml.get_config("comet.api_key") else {"online": False}
    project = os.environ.get("COMET_PROJECT_NAME", PROJECT)
    return CometMLTracker(project, experiment_key=identity, experiment_config=config, **online)


STARTS: Mapping[str, Callable[["Run[Any]", str, str], Any]] = {
    "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio, "comet": _comet,
}  # fmt: skip
"""By name in a recipe what makes accelerate's tracker of a run, from the name it is to have there and its 32 hexadecimal digits."""
