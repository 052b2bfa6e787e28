"""One training of a queue: is it finished, was it made with the same settings, train or go on, where it was made.

Nothing here knows what the trainings are for. No torch before a training starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import crossdet
from crossdet.config import CONFIG_FILE, Config, SplitConfig, dump_config
from crossdet.errors import UserError
from crossdet.files import write_atomically, write_json

MACHINE_KEYS = {"output", "train.devices", "train.workers", "train.accelerator", "train.log_every",
                "train.checkpoint_minutes", "train.checkpoint_steps", "eval.batch_size"}  # fmt: skip
"""Keys that may differ between the machines on which one experiment runs."""

NOTE = "experiment.json"
"""In a run directory: what a queue knows of a training that has not ended."""


def comparable(config: Config, roots: Mapping[Path, str]) -> dict[str, Any]:
    """The config as plain values without what belongs to a machine; paths below a root as `NAME/...`. roots: folder
    -> the name that stands for it. A weights file counts by its name alone."""

    def cleaned(value: Any, at: str) -> Any:
        if isinstance(value, dict):
            return {k: cleaned(v, f"{at}{k}.") for k, v in value.items() if f"{at}{k}" not in MACHINE_KEYS}
        if isinstance(value, list):
            return [cleaned(item, at) for item in value]
        if not isinstance(value, str):
            return value
        if at == "model.weights." and Path(value).is_absolute():
            return Path(value).name
        return without_roots(value, roots)

    result: dict[str, Any] = cleaned(yaml.safe_load(dump_config(config)), "")
    return result


def without_roots(text: str, roots: Mapping[Path, str]) -> str:
    """The text with `NAME/...` for every path below one of the folders."""
    for root, name in roots.items():
        for path in dict.fromkeys((root.absolute(), root.resolve())):
            text = text.replace(f"{path}/", f"{name}/")
    return text


def data_files(config: Config) -> dict[str, list[Path]]:
    """Dataset, or `union_test` -> the files and folders of its splits."""
    splits = [(name, split) for name, dataset in config.datasets.items() for split in (dataset.train, dataset.val)]
    found: dict[str, list[Path]] = {}
    for name, split in [*splits, ("union_test", config.union_test)]:
        if isinstance(split, SplitConfig):
            files = [*split.images, *split.annotations, *split.ignore, *filter(None, [split.lists])]
            found.setdefault(name, []).extend(files)
    return found


def differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Dotted keys with other values. Keys that only one of the two knows come from another version of the package
    and do not count, but for names of datasets and merge groups."""
    if isinstance(a, dict) and isinstance(b, dict):
        if at in ("datasets.", "labels.merge.") and a.keys() != b.keys():
            yield at.rstrip(".")
            return
        for key in a:
            if key in b:
                yield from differences(a[key], b[key], f"{at}{key}.")
    elif a != b:
        yield at.rstrip(".")


def check_same(now: Mapping[str, Any], before: Any, where: Path) -> None:
    """Raises `UserError` with the keys of `comparable` configs that differ."""
    if not isinstance(before, dict):
        raise UserError(f"{where}: no settings can be read from it; move it away, or use another folder")
    changed = list(differences(before, dict(now)))
    if changed:
        raise UserError(
            f"{where} was made with other settings; differing: {', '.join(changed)}. Use the same settings, or "
            f"another folder"
        )


def read_json(file: Path) -> dict[str, Any]:
    """What the file holds; empty where there is none, or no mapping in it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def finished_record(run_dir: Path) -> dict[str, Any] | None:
    """The last record of a training that has ended; None of one that has not, or where there is none."""
    from crossdet.models.weights import STATE_FILE, load_state

    if not (run_dir / STATE_FILE).exists():
        return None
    progress = load_state(run_dir / STATE_FILE)["progress"]
    return dict(progress["history"][-1]) if progress["finished"] and progress["history"] else None


def train_on(config: Config, run_dir: Path, what: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, or goes on training, in `run_dir`, and returns the last record; one that has ended is left alone.

    what: the config as `comparable`. Whatever happens, `NOTE` keeps the settings, the seconds of all attempts, the
    machine and the version.

    Raises `UserError` where the directory holds a run of other settings, and what `train` raises.
    """
    from crossdet.models.weights import STATE_FILE
    from crossdet.runs.train import train

    if before := read_json(run_dir / NOTE):
        check_same(what, before.get("config"), run_dir)
    if (record := finished_record(run_dir)) is not None:
        return record
    if config.train.devices > 1 and processes() == 1:
        raise UserError(
            f"train.devices: {config.train.devices}: start a queue on several devices by torchrun, which sets it"
        )
    if (run_dir / STATE_FILE).exists():
        # the data may lie elsewhere than where the run was begun, and the number of devices may be another
        write_atomically(run_dir / CONFIG_FILE, dump_config(config).encode())
    with noted(run_dir, {"config": what}):
        return train(config, output=run_dir, resume=True)


@contextmanager
def noted(run_dir: Path, known: Mapping[str, Any]) -> Iterator[None]:
    """Keeps in `NOTE` what is known of the training within, the machine and version of this attempt, and the
    seconds of all attempts, however they end."""
    note = run_dir / NOTE
    content = {**known, "hardware": hardware(), "version": version()}
    started, earlier = time.monotonic(), read_json(note).get("seconds", 0.0)
    if is_first():
        write_json(note, {**content, "seconds": earlier})
    try:
        yield
    finally:
        if is_first():
            write_json(note, {**content, "seconds": earlier + time.monotonic() - started})


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process writes the results."""
    return processes() == 1 or os.environ["RANK"] == "0"


def hardware() -> dict[str, Any]:
    """This machine, without its name."""
    import torch

    return {
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": processes(),
        "torch": torch.__version__,
    }


def version() -> dict[str, str]:
    """Of the package, and of its and the studies' files: a number leads to its code where there is no git."""
    digest = hashlib.sha256()
    for folder in (Path(crossdet.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return {"crossdet": crossdet.__version__, "source": digest.hexdigest()[:12]}
