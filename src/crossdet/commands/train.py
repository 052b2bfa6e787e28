"""`crossdet train`: one detector on all datasets of a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdet.commands.terminal import (
    ConfigFile,
    JsonFile,
    Output,
    Overrides,
    Overwrite,
    Resume,
    check_no_input,
    save_json,
    say,
)

if TYPE_CHECKING:
    from crossdet.config import Config


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Train one detector on all datasets of a config. Under torchrun it uses all its processes."""
    from crossdet.config import load_config

    loaded = load_config(config, overrides or [])  # its mistakes are told before torch is imported
    check_no_input(json_file, loaded, config)
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # of torchrun's and Fabric's processes one
        _say_what_anchors_miss(loaded)

    from crossdet.runs.building import is_first_process
    from crossdet.runs.train import train as run

    record = run(loaded, output=output, resume=resume, overwrite=overwrite)
    if not is_first_process():
        return
    save_json(json_file, record)
    where = Path(output or loaded.output or ".")
    files = ("model.safetensors", "best.safetensors", "metrics.json", "steps.csv", "pictures")
    say(f"done: {where}  ({', '.join(name for name in files if (where / name).exists())})")


def _say_what_anchors_miss(config: Config) -> None:
    """As `check` does. Boxes that no anchor reaches are the commonest reason why a class is not found."""
    from crossdet.check.anchors_coverage import anchor_coverage
    from crossdet.config.sources import open_sources

    coverage = anchor_coverage(config, open_sources(config))
    for text in () if coverage is None else coverage.warnings():
        say(f"warning: {text}")
