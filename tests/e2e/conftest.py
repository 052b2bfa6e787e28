"""A training to be interrupted, and the same one that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest

CHANGES = {"train.epochs": 2, "train.checkpoint_steps": 2, "train.ema": 0.9, "augment.scale_jitter": [0.8, 1.2],
           "train.canvases": 2}  # fmt: skip
"""6 steps per epoch, the state is written after every second: a kill after step 9 falls back to step 8."""


@pytest.fixture(scope="session")
def resumable(world, tmp_path_factory) -> Path:
    """Its config."""
    return world.write_config(tmp_path_factory.mktemp("resumable") / "config.yaml", CHANGES)


@pytest.fixture(scope="session")
def undisturbed(resumable, tmp_path_factory) -> Path:
    """The run of it that nothing happened to."""
    from crossdet import load_config, train  # other tests must not pay for torch

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(load_config(resumable), output=folder)
    return folder


@pytest.fixture(scope="module")
def short(world, tmp_path_factory) -> Path:
    """Three steps with the defaults of `world`; what options change is measured against it."""
    from short_runs import run

    folder = tmp_path_factory.mktemp("short") / "run"
    run(world, folder)
    return folder
