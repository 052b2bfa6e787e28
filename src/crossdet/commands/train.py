"""`crossdet train`: one detector on all datasets of a config."""

from __future__ import annotations

from pathlib import Path

from crossdet.commands.terminal import ConfigFile, JsonFile, Output, Overrides, Overwrite, Resume, save_json, say


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

    from crossdet.runs.building import is_first_process
    from crossdet.runs.train import train as run

    record = run(loaded, output=output, resume=resume, overwrite=overwrite)
    if not is_first_process():
        return
    save_json(json_file, record)
    where = Path(output or loaded.output or ".")
    files = ("model.safetensors", "best.safetensors", "metrics.json", "steps.csv", "pictures")
    say(f"done: {where}  ({', '.join(name for name in files if (where / name).exists())})")
