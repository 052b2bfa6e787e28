"""Joint training with teachers on the tiny world: experts, the network itself, and runs that are interrupted."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from crossdet import RunError, UserError, extend, train
from crossdet.data.cache import load_index
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.weights import load_state, load_weights, save_state
from crossdet.runs.relabel import relabel
from crossdet.training.log import RunLog, Step
from crossdet.training.teachers import label_by_teachers, last_teacher_labels
from crossdet.types import Flag

SHORT = {"train.epochs": 2, "train.eval_every": 0}
ITSELF = {
    "pseudo.teachers": "self",
    "pseudo.from_epoch": 7,
    "pseudo.negative_weight": 0.5,
    "train.epochs": 9,
    "train.eval_every": 0,
    "train.lr": 0.05,
    "train.clip_norm": 5.0,
    "train.ema": 0.8,
}
"""Six steps per epoch: labels are found once, after step 42 (`every` is a quarter of the epochs: 2)."""


def interrupted(config: Any, folder: Path, step: int, resume: bool = False) -> None:
    log_step = RunLog.step

    def ctrl_c(self: RunLog, at: Step, *arguments: object) -> None:
        log_step(self, at, *arguments)  # type: ignore[arg-type]
        if at.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", ctrl_c)
        with pytest.raises(RunError, match=f"interrupted after step {step}"):
            train(config, output=folder, resume=resume)


def assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    a, b = load_weights(one)[0], load_weights(other)[0]
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_experts_fill_in_what_is_missing(world, trained, tmp_path, capsys):
    """One expert has learnt nothing: the other has both classes. A resumed run needs neither."""
    weights = tmp_path / "teacher.safetensors"
    shutil.copy(trained.folder / "model.safetensors", weights)
    train(world.config({"train.max_steps": 1}), output=tmp_path / "untrained")
    teachers = [str(tmp_path / "untrained"), str(weights)]
    config = world.config({**SHORT, "pseudo.teachers": teachers, "pseudo.negative_weight": 0.5})

    seen = []
    losses = RetinaNet.losses

    def watched(self: RetinaNet, batch: Any) -> Any:
        seen.append((batch.dataset_ids, batch.trusted, batch.background_weight))
        return losses(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetinaNet, "losses", watched)
        record = train(config, output=tmp_path / "run")
    assert "teacher of car: " in capsys.readouterr().out
    for ids, trusted, weight in seen:
        assert trusted.all()
        assert torch.equal(weight, torch.tensor([[1.0, 0.5], [0.5, 1.0]])[ids])  # cars: faces by the teacher
    told = last_teacher_labels(tmp_path / "run")
    assert {row["teacher"] for row in told["classes"].values()} == {str(weights)}
    for name, other in (("cars", "face"), ("faces", "car")):
        index = load_index(tmp_path / "run" / "teacher_labels" / name)
        added = np.asarray(index.labels) == 1
        objects = added & ((np.asarray(index.flags) & Flag.AVOID) == 0)
        assert index.classes[1] == f"{other} (teacher)"
        assert 6 <= objects.sum() <= 18  # one in each of 12 pictures
        assert np.median(index.area[objects]) == pytest.approx({"car": 24 * 14, "face": 256}[other], rel=0.5)
        assert told["datasets"][name][other]["objects"] == objects.sum()
    # the weights do not speak of teachers, and the run is scored as any other
    space = load_weights(tmp_path / "run")[1].space
    assert space.avoid_array.sum() == 2
    assert record["metrics"]["datasets"].keys() == {"cars", "faces"}

    interrupted(config, tmp_path / "stopped", 8)
    weights.unlink()
    train(config, output=tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", tmp_path / "run")


class ByItself(NamedTuple):
    """A run that nothing happened to, and the same one that was stopped before the first labels.

    taught_by: the weights of the teacher and what `state.pt` was when it labelled.
    """

    config: Any
    run: Path
    stopped: Path
    printed: str
    taught_by: tuple[dict[str, Any], dict[str, Any]]


@contextmanager
def watched() -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Collects `ByItself.taught_by`."""
    taught_by = []

    def watch(fabric: Any, plan: Any, teachers: Any, folder: Path) -> Any:
        saved = load_state(folder.parents[1] / "state.pt")
        own = {name: value.clone() for name, value in teachers[0].model.state_dict().items()}
        taught_by.append((own, saved))
        return label_by_teachers(fabric, plan, teachers, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossdet.training.teachers.label_by_teachers", watch)
        patch.setattr("crossdet.training.loop.STEPS_APART", 1)  # the state before the labels is looked at
        yield taught_by


def trained_by_itself(world: Any, folder: Path, ema: float | None) -> ByItself:
    config = world.config({**ITSELF, "train.ema": ema})
    printed = io.StringIO()
    with watched() as taught_by, redirect_stdout(printed):
        train(config, output=folder / "run")
    interrupted(config, folder / "stopped", 42)  # the last step before the labels
    return ByItself(config, folder / "run", folder / "stopped", printed.getvalue(), *taught_by)


@pytest.fixture(scope="module")
def without_average(world, tmp_path_factory) -> ByItself:
    return trained_by_itself(world, tmp_path_factory.mktemp("without"), None)


@pytest.mark.parametrize("ema", [0.8, None])
def test_the_network_labels_for_itself_and_goes_on_exactly(ema, request, world, tmp_path, monkeypatch):
    """Before the labels, after a full disk when they had been found, and in the epoch that is trained on them."""
    if ema is None:
        made = request.getfixturevalue("without_average")
    else:
        made = trained_by_itself(world, tmp_path / "made", ema)
    assert "teacher of car: the network after 7 epochs" in made.printed
    told = last_teacher_labels(made.run)
    assert sum(n for row in told["datasets"].values() for c in row.values() for n in c.values()) > 0

    shutil.copytree(made.stopped, tmp_path / "stopped")
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise RunError("no space")

        patch.setattr("crossdet.training.teachers.write_json", full)
        with pytest.raises(RunError, match="no space"):
            train(made.config, output=tmp_path / "stopped", resume=True)
    interrupted(made.config, tmp_path / "stopped", 45, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("crossdet.training.pseudo_labels.detect_folded", None)  # they are read
        train(made.config, output=tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "stopped", made.run)


def test_without_an_average_that_counts_the_teacher_has_its_own(without_average, tmp_path):
    """It labels and is in the state; evaluated and saved are the newest weights. A state without it begins it."""
    own, saved = without_average.taught_by
    shutil.copytree(without_average.stopped, tmp_path / "old")
    state = load_state(tmp_path / "old" / "state.pt")
    save_state(tmp_path / "old" / "state.pt", {k: v for k, v in state.items() if k != "teacher"})
    with watched() as taught_by:
        train(without_average.config, output=tmp_path / "old", resume=True)
    ((begun, before),) = taught_by
    average = {name.removeprefix("module."): value for name, value in saved["teacher"].items()}
    assert average["n_averaged"] == 42
    for name, value in own.items():
        assert torch.equal(value, average[name])
        assert torch.equal(begun[name], before["model"][name])
    assert any(not torch.equal(value, saved["model"][name]) for name, value in own.items())
    newest = load_state(without_average.run / "state.pt")["model"]
    weights = load_weights(without_average.run)[0]
    assert all(torch.equal(newest[name], weights[name]) for name in weights)


def test_without_the_section_nothing_changes(world, tmp_path):
    """Before its first labels a run is the run without teachers, bit for bit."""
    interrupted(world.config(), tmp_path / "plain", 3)
    interrupted(world.config({"pseudo.teachers": "self", "pseudo.from_epoch": 1}), tmp_path / "late", 3)
    assert not (tmp_path / "plain" / "teacher_labels").exists()
    a, b = (load_state(tmp_path / name / "state.pt")["model"] for name in ("plain", "late"))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_training_that_would_end_before_its_first_labels_is_refused(world, tmp_path):
    late = {"pseudo.teachers": "self", "pseudo.from_epoch": 1, "train.max_steps": 3}
    expected = (
        r"`pseudo.from_epoch`: expected less than 1, since with 24 training pictures no more epochs are begun"
    )
    with pytest.raises(UserError, match=expected):
        train(world.config(late), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_teachers_of_no_use_are_told_before_anything_is_trained(world, trained, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    relabel(trained.folder, foreign, [("car", "lorry"), ("face", "head")])
    unnamed = tmp_path / "unnamed.safetensors"
    relabel(trained.folder, unnamed, [("car", "LABEL_0"), ("face", "LABEL_1")])
    paths = [str(tmp_path / "nowhere"), str(foreign), str(unnamed)]
    with pytest.raises(UserError) as told:
        train(world.config({"pseudo.teachers": paths}), output=tmp_path / "run")
    assert "pseudo.teachers: 3 teacher(s) cannot be used" in str(told.value)
    assert "unnamed.safetensors: classes without names (LABEL_0, LABEL_1): " in str(told.value)
    assert "nowhere" in str(told.value)
    assert "foreign.safetensors knows lorry, head, none of the classes of this training (car, face)" in str(
        told.value
    )
    inside = tmp_path / "inside"
    shutil.copytree(trained.folder, inside)
    itself = world.config({"pseudo.teachers": [str(inside)]})
    with pytest.raises(UserError, match="inside would be replaced by this run"):
        train(itself, output=inside, overwrite=True)
    assert (inside / "model.safetensors").exists()
    absent = {"labels.absent": {"cars": ["face"], "faces": ["car"]}}
    with pytest.raises(UserError, match="no dataset leaves a class unlabelled"):
        train(world.config({"pseudo.teachers": str(trained.folder), **absent}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"is for `crossdet train`; here it is `extend: \{mode: distill\}`"):
        extend(trained.folder, world.config({"pseudo.teachers": "self"}), output=tmp_path / "run")
    assert json.loads((trained.folder / "metrics.json").read_text())["epochs"]
