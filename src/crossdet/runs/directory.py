"""A run's directory: which it is, whether a run may be begun or resumed in it, and its config."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import yaml
from lightning_fabric import Fabric

from crossdet.config import CONFIG_FILE, Config, dump_config, load_config
from crossdet.config.chosen import start_of
from crossdet.config.schema import ALL_SPLITS
from crossdet.config.sources import PLACES, inputs_of
from crossdet.errors import ConfigError, RunError, UserError, show, some
from crossdet.files import check_room, write_atomically, writing
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.card import BEST_FILE, START_FILE, WEIGHTS_FILE
from crossdet.models.contract import Network
from crossdet.models.weights import METRICS_FILE, STATE_FILE, load_state
from crossdet.training.identity import Identity, begun_as, check_identity

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Keys that may differ between a run and its resumption without changing what it computes.
_FREE_KEYS = ("output", "train.workers", "train.log_every", "train.checkpoint_minutes",
              "train.checkpoint_steps", "train.precision", "train.compile", "train.loggers", "eval.batch_size",
              "extend.tolerance")  # fmt: skip
LOCK_FILE = ".lock"
HEADER = "# The config of this run, with all values, as `crossdet train` or `extend` wrote it.\n"
"""First line of the config in a run directory, which tells it from any other folder with a `config.yaml`."""
_WRITTEN = (STATE_FILE, WEIGHTS_FILE, BEST_FILE, METRICS_FILE, "steps.csv")
"""By one of these a run of before `HEADER` is known."""
_OURS = (*_WRITTEN, CONFIG_FILE, START_FILE, LOCK_FILE, "pictures", "taught.json", "teacher_labels", "tensorboard",
         "wandb", "wandb_run.txt", "mlflow_run.txt", "forgetting.json", "generations.png", "audit", "report.html",
         "eval_*.json", "non_finite_batch_rank*.pt",
         *(f".{name}.*" for name in (*_WRITTEN, CONFIG_FILE)))  # fmt: skip
"""What train, extend, eval, audit and report write into a run directory: `--overwrite` deletes that, and nothing
else."""


def run_directory(config: Config, output: str | Path | None) -> Path:
    return Path(output or config.output or "runs/crossdet")


def check_run_dir(
    run_dir: Path,
    config: Config,
    resume: bool,
    overwrite: bool,
    last_file: str = STATE_FILE,
    known_datasets: Sequence[str] = (),
    epochs: int | None = None,
) -> Identity | None:
    """Refuses to mix two runs and to delete what is no run; changes nothing. Returns what the run that is resumed
    began with, None where none is or where it has no state.

    last_file: without it a run whose training is finished can still be resumed. known_datasets: see `load_config`.
    epochs: of the training, where a run that was to have fewer may be resumed to have so many.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it; take one of them")
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file; choose another directory with --output")
    holds_run = _is_run(run_dir)
    if not holds_run and (run_dir / CONFIG_FILE).exists():
        raise UserError(
            f"{run_dir} holds a {CONFIG_FILE} that no training is known to have written; choose another directory "
            "with --output"
        )
    if not resume and (inside := [path for path in inputs_of(config) if path.is_relative_to(run_dir.resolve())]):
        raise UserError(f"{run_dir} holds what is trained on ({inside[0]}); choose another directory with --output")
    if resume:
        return _check_resumed(run_dir, config, last_file, known_datasets, epochs)
    if overwrite:
        if run_dir.exists() and not holds_run and any(entry.name != LOCK_FILE for entry in run_dir.iterdir()):
            raise UserError(f"{run_dir} is no run directory; it is not deleted, choose another `output`")
    elif holds_run:
        raise UserError(
            f"{run_dir} already holds a run; continue it with --resume, replace it with --overwrite, "
            f"or choose another directory with --output"
        )
    return None


def _check_resumed(
    run_dir: Path, config: Config, last_file: str, known_datasets: Sequence[str], epochs: int | None
) -> Identity | None:
    state = _state(run_dir)
    progress = state.get("progress", {})
    begun = progress.get("epochs") or math.inf
    longer = _may_grow(config) and (epochs or 0) > begun
    # the state says how many: the config may be of a longer training that was ended before its first state
    as_begun = _may_grow(config) and epochs == begun
    _check_same_config(run_dir / CONFIG_FILE, config, known_datasets, longer or as_begun, _may_move(state))
    if not state and _epochs_done(run_dir) > 1:  # at the end of the first it may be killed before its state
        raise UserError(
            f"{run_dir}: {STATE_FILE} is gone, without which this run cannot go on; its weights would be replaced "
            f"by those of a training from the beginning. If that is meant: --overwrite"
        )
    if progress.get("finished") and not longer and (run_dir / last_file).exists():
        raise UserError(f"{run_dir}: this run is finished; there is nothing to resume")
    return begun_as(run_dir, state.get("identity")) if state else None


def _is_run(run_dir: Path) -> bool:
    config = run_dir / CONFIG_FILE
    if not config.is_file():
        return False
    with config.open("rb") as file:
        begins = file.read(len(HEADER.encode()))
    return begins == HEADER.encode() or any((run_dir / name).is_file() for name in _WRITTEN)


def is_finished(run_dir: Path, config: Config) -> bool:
    """Whether the training of `config` in `run_dir` is at its end.

    Raises `UserError` if it was of another config.
    """
    _check_same_config(run_dir / CONFIG_FILE, config, (), other_epochs=False, moved=False)
    return bool(_state(run_dir).get("progress", {}).get("finished"))


@contextmanager
def training_in(
    fabric: Fabric,
    run_dir: Path,
    config: Config,
    resume: bool,
    overwrite: bool,
    identity: Identity,
    network: Network,
) -> Iterator[None]:
    """Writes the resolved config into an empty run directory, or into the one that is resumed, and keeps other
    trainings out of it as long as this one lasts. identity: of what is to be trained; raises `UserError` where the
    state that is resumed is of something else, or the disk has no room for the files of `network`.

    Entered after `check_run_dir`, and once all parts are built: a mistake in the config leaves no half-made run
    behind and costs no earlier one.
    """
    if resume:
        _check_identity(run_dir, identity)
    fabric.barrier()  # all processes have looked at what is in the run directory
    with ExitStack() as at_end:
        problem = ""
        if fabric.is_global_zero:
            problem = _no_room(run_dir, config, resume, network) or _claimed(run_dir, at_end, resume or overwrite)
        if problem := fabric.broadcast(problem):
            raise UserError(problem)
        if fabric.is_global_zero:
            if not resume and (left := _emptied(run_dir)):
                print(f"{run_dir}: left there, not known as part of a run: {some(left, 4, 3)}", flush=True)
            write_atomically(run_dir / CONFIG_FILE, (HEADER + dump_config(config)).encode())
        fabric.barrier()
        yield


def _check_identity(run_dir: Path, identity: Identity) -> None:
    """By itself, or the whole state would be in memory as long as the training."""
    if state := _state(run_dir):
        check_identity(run_dir, state.get("identity"), identity)


def room_needed(network: Network, config: Config, resumed: bool) -> int:
    """Bytes that the first files of a training take at least: newest and best weights, and the state with what the
    optimiser and the average remember. resumed: the files are there, and the state is written beside the old one
    before it takes its place."""
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    frozen = config.extend is not None and config.extend.mode == "frozen"  # next to nothing learns then
    learnt = (
        0 if frozen else sum(p.nbytes for name, p in network.named_parameters() if _learns(name, network, config))
    )
    moments = 2 if config.train.optimizer == "adamw" else int(config.train.momentum != 0)
    state = weights + learnt * moments
    state += weights if config.train.ema is not None else 0
    judged = any(dataset.val is not None for dataset in config.datasets.values())
    return state if resumed else state + weights * (2 if judged else 1)


def _learns(name: str, network: Network, config: Config) -> bool:
    """Whether a parameter surely learns: of a backbone whose stem is frozen later not all do."""
    return not (config.train.freeze_stem and name.startswith(network.backbone_prefix))


def _no_room(run_dir: Path, config: Config, resume: bool, network: Network) -> str:
    """Why the disk cannot hold the run; empty where it can. Before anything is deleted: what an earlier run in this
    place takes will be free."""
    resumed = resume and (run_dir / STATE_FILE).exists()
    freed = 0
    for entry in run_dir.iterdir() if not resume and (run_dir / CONFIG_FILE).exists() else ():
        for file in [entry, *(() if entry.is_symlink() else entry.rglob("*"))] if _is_ours(entry) else ():
            with suppress(OSError):  # of another training there, which is told next
                freed += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    try:
        check_room(run_dir, max(1, room_needed(network, config, resumed) - freed))
    except RunError as error:
        return f"{error}; free some space, or choose another place with --output"
    return ""


def _claimed(run_dir: Path, at_end: ExitStack, may_hold_run: bool) -> str:
    """Locks the run directory until `at_end`; returns why it cannot be had. A file system without locks has none.

    The lock is the process's: it ends with it, also by SIGKILL, and its loader processes do not have it.
    """
    if fcntl is not None:
        file = run_dir / LOCK_FILE
        with writing(file, "nothing was written"):
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = at_end.enter_context(file.open("a"))
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return f"{run_dir}: another process is training in this directory; choose another one with --output"
        at_end.callback(file.unlink, missing_ok=True)  # before the lock ends
    if (run_dir / CONFIG_FILE).exists() and not may_hold_run:
        return f"{run_dir}: another process has just trained in this directory; choose another one with --output"
    return ""


def _is_ours(entry: Path) -> bool:
    """Whether commands write it into a run directory, by its name; `eval_CONFIG` by what is in it, too."""
    of_eval = entry.name.startswith("eval_") and ((entry / "curves").is_dir() or (entry / "predictions").is_dir())
    return of_eval or any(fnmatch(entry.name, ours) for ours in _OURS)


def _emptied(run_dir: Path) -> list[str]:
    """Names of what is left, which is not ours. The config goes last: with it a run whose removal was cut short is
    still known as one."""
    config, left = run_dir / CONFIG_FILE, []
    for entry in sorted(run_dir.iterdir()) if config.exists() else ():
        if not _is_ours(entry):
            left.append(entry.name)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (LOCK_FILE, CONFIG_FILE):
            entry.unlink()
    config.unlink(missing_ok=True)
    return left


def check_teachers_stay(teachers: Sequence[Path | str], run_dir: Path) -> None:
    """Raises `UserError` where the run would take the place of a teacher."""
    paths = [source for source in teachers if isinstance(source, Path)]
    inside = [str(path) for path in paths if path.resolve().is_relative_to(run_dir.resolve())]
    if inside:
        raise UserError(
            f"pseudo.teachers: {', '.join(inside)} would be replaced by this run, {run_dir}; choose another "
            f"directory with --output"
        )


def _state(run_dir: Path) -> dict[str, Any]:
    """Empty where the training has none."""
    file = run_dir / STATE_FILE
    return load_state(file) if file.exists() else {}


def _epochs_done(run_dir: Path) -> int:
    """By its metrics; 0 where they cannot be read."""
    try:
        return len(json.loads((run_dir / METRICS_FILE).read_text())["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _may_move(state: dict[str, Any]) -> bool:
    """Whether the data may lie elsewhere now: the state knows them by their content (`training.identity`)."""
    return "data" in (state.get("identity") or {})


def _is_place(key: str) -> bool:
    """Whether a key of a config says where data lie."""
    first, *middle, last = key.split(".") if "." in key else (key, "")
    of_split = (first == "datasets" and middle and middle[-1] in ALL_SPLITS) or first == "union_test"
    return of_split and last in PLACES


def _is_of_test(key: str) -> bool:
    """Of a split that no training reads."""
    parts = key.split(".")
    return parts[0] == "datasets" and "test" in parts[2:]


def _may_grow(config: Config) -> bool:
    """Whether nothing but the learning rate and the times of evaluations depends on the number of epochs."""
    train, pseudo = config.train, config.pseudo
    labels_itself = pseudo is not None and pseudo.teachers == "self"
    return train.max_steps is None and train.minutes is None and not labels_itself


def _check_same_config(
    path: Path, config: Config, known_datasets: Sequence[str], other_epochs: bool, moved: bool
) -> None:
    """other_epochs: their number may be another, and what the recipe makes of it. moved: so may the places of the
    data."""
    if not path.exists():
        return
    before, config = _plain_config(path), _with_share(config)
    with suppress(ConfigError):  # keys that are newer than the run had their defaults
        earlier = _with_share(load_config(path, known_datasets=known_datasets))
        before = yaml.safe_load(dump_config(earlier))
        if other_epochs:
            recipe = config.train.with_epochs(earlier.train.epochs)
            config = config.model_copy(update={"train": recipe})
    now = yaml.safe_load(dump_config(config))
    changed = [key for key in _differences(before, now) if not key.startswith(_FREE_KEYS)]
    left_open = [key for key in ARCHITECTURES[config.model.name].settings.decided if _left_open(before, key)]
    changed = [key for key in changed if key not in [f"model.{key}" for key in left_open]]  # `check_identity`'s
    changed = [key for key in changed if not (moved and _is_place(key)) and not _is_of_test(key)]
    if changed:
        raise UserError(
            f"{path.parent}: the run was started with another config; differing: {', '.join(changed)}. "
            f"Resume with the same values ({path} has them), or start a new run with --output"
        )


def _left_open(plain: Any, key: str) -> bool:
    """Whether the `model` section of a run's config, as values of YAML, says nothing of a key."""
    model = plain.get("model") if isinstance(plain, dict) else None
    return isinstance(model, dict) and model.get(key) is None


def _with_share(config: Config) -> Config:
    """With the backbone's share of the rate that is meant: runs of before say 1 where nothing is said now."""
    share = config.train.share_of_backbone(start_of(config, config.extend is not None))
    return config.model_copy(update={"train": config.train.model_copy(update={"backbone_lr": share})})


def _plain_config(path: Path) -> dict[str, Any]:
    """Of a run, as it stands in the file."""
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(plain, dict) else f"it holds {show(plain)}"
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise UserError(
            f"{path} is no config of a run any more ({problem}). Put back the file that the training wrote, or "
            f"begin anew with --overwrite"
        )
    return cast(dict[str, Any], plain)


def _differences(a: Any, b: Any, at: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{at}{key}.")]
    return [] if a == b else [at.rstrip(".")]
