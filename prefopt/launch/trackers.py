"""The trackers that a comparison can be sent to: what each needs installed, and how a run is opened in it.

All of them are classes of ``accelerate.tracking``, which store a run's settings and metrics in the same three calls.
What differs is below: where a tracker keeps its data, and how what an earlier try has left of the same run is taken
away first, so that no run is there twice.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import netrc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefopt.errors import UsageError
from prefopt.storage import durable

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Value = bool | int | float | str
ID = "prefopt.run"  # the name under which a tracker keeps a run's id


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as a tracker shows it.

    Attributes:
        project: The comparison's name.
        name: Of the run within it, such as ``dpo/seed-0``.
        group: The variant's name.
        id: The same for the same run of the same results folder, and for no other.
        settings: What the run is, as flat names and plain values.
        steps: Metrics by step, in order; or under None alone, where they belong to no step.
    """

    project: str
    name: str
    group: str
    id: str
    settings: Mapping[str, Value]
    steps: Mapping[int, Mapping[str, float]] | Mapping[None, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One tracker.

    Attributes:
        distributions: What may be installed for it, any of which will do.
        install: What to give to ``pip install``.
        modules: What it must be possible to import, as a function, since it may depend on the environment.
        open: The started tracker for a run, which keeps its files in a folder, after what was left of an earlier
            try is gone.
        places: Environment variables that say where it sends to; another place is sent everything again.
    """

    distributions: tuple[str, ...]
    install: str
    modules: Callable[[], tuple[str, ...]]
    open: Callable[[TrackedRun, Path], GeneralTracker]
    places: tuple[str, ...] = ()

    def destination(self) -> dict[str, str]:
        """Where it sends to, as far as the environment says so."""
        return {name: os.environ[name] for name in self.places if name in os.environ}


def require(names: tuple[str, ...]) -> None:
    """Refuse a tracker whose package is not there, before anything is trained.

    Raises:
        UsageError: Naming the tracker, and what to install.
    """
    for name in names:
        kind = KINDS[name]
        if not any(is_installed(distribution) for distribution in kind.distributions):
            package = " or ".join(kind.distributions)
            raise UsageError(f"--track {name} needs the package {package}: pip install {kind.install}")
        for module in kind.modules():
            try:
                importlib.import_module(module)
            except Exception as problem:
                reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
                raise UsageError(
                    f"--track {name}: {module} cannot be imported ({reason}); pip install {kind.install}"
                ) from None


def is_installed(distribution: str) -> bool:
    """Whether a distribution is installed; a folder that happens to have its name is not."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _tensorboard_modules() -> tuple[str, ...]:
    return ("torch.utils.tensorboard",) if is_installed("tensorboard") else ("tensorboardX",)


def _tensorboard(run: TrackedRun, place: Path) -> GeneralTracker:
    """Event files below a folder of the run's own."""
    from accelerate.tracking import TensorBoardTracker

    durable.remove(place / run.name)
    return _started(TensorBoardTracker(run.name, logging_dir=place))


def _wandb(run: TrackedRun, place: Path) -> GeneralTracker:
    """A run with an id of ours: its steps, sent a second time, are those that the server has already.

    Its files lie in ``wandb/`` beside the results folder, unless ``WANDB_DIR`` says otherwise, since links are among
    them, and a results folder with a link is refused.
    """
    from accelerate.tracking import WandBTracker

    beside = Path(os.environ.get("WANDB_DIR") or place.parents[2])
    for earlier in beside.glob(f"wandb/offline-run-*-{run.id}"):
        durable.remove(earlier)
    options: dict[str, Any] = {"silent": True, "console": "off"}
    if "WANDB_MODE" not in os.environ and not _has_wandb_key():
        options["mode"] = "offline"  # it would ask for a key, and wait for the answer
    import wandb

    project = os.environ.get("WANDB_PROJECT", run.project)
    settings = wandb.Settings(**options)
    whose = {"name": run.name, "group": run.group, "id": run.id, "resume": "allow", "dir": str(beside)}
    return _started(WandBTracker(project, settings=settings, **whose))


def _has_wandb_key() -> bool:
    """Whether the environment or the user's netrc holds credentials for its server."""
    if os.environ.keys() & {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"}:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return host in known.hosts


def _mlflow_modules() -> tuple[str, ...]:
    """Without a server it keeps its data in a database file."""
    return ("mlflow",) if os.environ.get("MLFLOW_TRACKING_URI") else ("mlflow", "sqlalchemy", "alembic")


def _mlflow(run: TrackedRun, place: Path) -> GeneralTracker:
    """A run with a tag of ours, by which what an earlier try left is deleted."""
    import mlflow
    from accelerate.tracking import MLflowTracker

    for talkative in ("alembic", "mlflow"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    given, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    durable.make_folder(place)
    mlflow.set_tracking_uri(given or f"sqlite:///{(place / 'mlflow.db').resolve()}")
    if not given:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # which mlflow has set, as if the user had
        artifacts = (place / "artifacts").resolve().as_uri()
    tags = {ID: run.id, "group": run.group}
    tracker = MLflowTracker(run.project, logging_dir=artifacts, run_name=run.name)
    # The environment may name one run or its tags, which would be those of every run here.
    tracker.run_id, tracker.nested_run = None, False
    tracker.tags = {**(tracker.tags or {}), **tags}
    experiment = mlflow.get_experiment_by_name(tracker.experiment_name)
    if experiment is not None:
        of_run = f"tags.`{ID}` = '{run.id}'"
        for earlier in mlflow.search_runs([experiment.experiment_id], of_run, output_format="list"):
            mlflow.delete_run(earlier.info.run_id)
    return _started(tracker)


def _trackio(run: TrackedRun, place: Path) -> GeneralTracker:
    """A run in trackio's own database, which ``trackio show`` reads and all comparisons of the user share."""
    import trackio
    from accelerate.tracking import TrackioTracker

    try:
        of_project = list(trackio.Api().runs(run.project))
    except ValueError:  # no such project yet
        of_project = []
    for earlier in of_project:
        if earlier.name == run.name and (earlier.config or {}).get(ID) == run.id:
            earlier.delete()
    return _started(TrackioTracker(run.project, name=run.name, group=run.group, auto_log_gpu=False, auto_log_cpu=False))


def _started(tracker: GeneralTracker) -> GeneralTracker:
    tracker.start()
    return tracker


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind(
        ("tensorboardX", "tensorboard"), '"tensorboardX>=2.6"', _tensorboard_modules, _tensorboard
    ),
    "wandb": Kind(
        ("wandb",), "wandb", lambda: ("wandb",), _wandb,
        ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"),
    ),
    "mlflow": Kind(
        ("mlflow", "mlflow-skinny"), "mlflow-skinny sqlalchemy alembic", _mlflow_modules, _mlflow,
        ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"),
    ),
    "trackio": Kind(
        ("trackio",), "trackio", lambda: ("trackio",), _trackio,
        ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
    ),
}  # fmt: skip
