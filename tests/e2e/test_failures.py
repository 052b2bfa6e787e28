"""What goes wrong ends with a message, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forks import Fork
from PIL import Image
from safetensors.torch import save_file
from worlds import changed, crossdet, one_thread

from crossdet import RunError, UserError, load_detector, train
from crossdet.models.contract import Losses
from crossdet.models.weights import load_state
from crossdet.runs.directory import room_needed
from crossdet.training import loop as training


@pytest.fixture
def command(request):
    """The command line in this process; `crossdet` here is one of its own."""
    return request.getfixturevalue("crossdet")


# ------------------------------------------------------------------------------------ non-finite losses


def test_a_loss_that_explodes_ends_the_run_with_its_batch(world, tmp_path):
    """In a process of its own, as a user sees it: exit code 1, the images named, the batch on disk."""
    config = world.write_config(
        tmp_path / "config.yaml", {"train.lr": 1e12, "train.warmup_epochs": 0, "train.checkpoint_steps": 1}
    )
    done = Fork("-m", "crossdet", "train", config, "--output", tmp_path / "run").wait()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "the loss is not finite at step" in done.stderr
    assert "train.lr" in done.stderr
    files = re.findall(r"(?:cars/|0--Parade/)train_\d+\.png", done.stderr)
    assert len(files) == 4
    batch = torch.load(tmp_path / "run" / "non_finite_batch_rank0.pt", weights_only=True)
    assert batch["images"].shape == (4, 3, 64, 96)
    assert batch["images"].dtype == torch.uint8
    assert len(batch["boxes"]) == len(batch["labels"]) == len(batch["flags"]) == 4
    assert all(boxes.shape == (1, 4) for boxes in batch["boxes"])
    assert batch["trusted"].tolist() == [
        [True, False] if "cars/" in file else [False, True] for file in batch["files"]
    ]
    assert [Path(file).name for file in batch["files"]] == [Path(file).name for file in files]
    assert all(Path(file).is_file() for file in batch["files"])
    assert str(tmp_path / "run" / "non_finite_batch_rank0.pt") in done.stderr


def test_the_part_of_a_step_whose_loss_broke_is_the_one_that_is_saved(world, tmp_path, monkeypatch):
    """Losses are looked at once a step, behind all of its parts."""
    forward, parts = training._forward, []

    def broken(module, sealed, compiling):
        found = forward(module, sealed, compiling)
        parts.append(sealed)
        if len(parts) != 3:
            return found
        return found._replace(terms={name: loss * float("nan") for name, loss in found.terms.items()})

    monkeypatch.setattr(training, "_forward", broken)
    with pytest.raises(RunError, match=r"the loss is not finite at step 2 .*; nothing was saved yet$"):
        train(world.config({"train.accumulate": 2}), output=tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "non_finite_batch_rank0.pt", weights_only=True)["images"]
    assert len(parts) == 4
    assert torch.equal(saved, parts[2].batch.images)
    assert not torch.equal(saved, parts[3].batch.images)


def test_a_disk_without_room_is_told_before_anything_is_done(world, trained, tmp_path, monkeypatch):
    """It was found at the end of the first epoch. An earlier run in the place stays; its room counts as free."""
    run = shutil.copytree(trained.folder, tmp_path / "run")
    files = {name: (run / name).stat().st_size for name in ("model.safetensors", "best.safetensors", "state.pt")}
    config, network = world.config(trained.settings), load_detector(run, "cpu").model
    assert 0.7 < room_needed(network, config, resumed=False) / sum(files.values()) <= 1
    assert 0.7 < room_needed(network, config, resumed=True) / files["state.pt"] <= 1
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("crossdet.files.shutil.disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"new cannot be written: 1,000 bytes are left .* takes at least [\d,]+;"):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (run / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="bytes are left"):
        train(config, run, overwrite=True)
    assert (run / "best.safetensors").exists()
    free.free = files["state.pt"]
    monkeypatch.setattr("crossdet.runs.train.train_network", lambda *_, **__: {})
    train(config, run, overwrite=True)
    assert not (run / "best.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_is_found_before_its_step_is_taken(world, tmp_path, monkeypatch, value):
    """It would be in every weight and its momentum afterwards."""
    normalised, calls = Losses.normalised, []

    def poisoned(self: Losses, *given: Any) -> dict[str, torch.Tensor]:
        losses = normalised(self, *given)
        calls.append(1)
        return {**losses, "box": losses["box"] * (value if len(calls) == 4 else 1)}

    monkeypatch.setattr(Losses, "normalised", poisoned)
    with pytest.raises(RunError, match=r"not finite at step 4 \(epoch 1\).*; the last saved state is kept$"):
        train(world.config({"train.checkpoint_steps": 3}), output=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 3
    assert all(bool(v.isfinite().all()) for v in state["model"].values())


# ------------------------------------------------------------------------------------------- exit codes


def broken_config(world, folder: Path, changes: dict[str, Any]) -> Path:
    import yaml

    path = folder / "broken.yaml"
    path.write_text(yaml.safe_dump(changed(world.settings(), changes)))
    return path


MISTAKES = {
    "missing config": (lambda w, t, f: ["train", f / "nowhere.yaml"], r"nowhere\.yaml"),
    "unknown key": (
        lambda w, t, f: ["train", broken_config(w, f, {"train.epoch": 3})],
        r"train\.epoch.*epochs",
    ),
    "unknown key in --set": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml"), "--set", "train.lrr=1"],
        r"train\.lrr",
    ),
    "missing annotation file": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml", {"datasets.cars.val.annotations": "gone.json"})],
        r"datasets\.cars\.val.*gone\.json",
    ),
    "missing annotation file in check": (
        lambda w, t, f: ["check", w.write_config(f / "c.yaml", {"datasets.cars.val.annotations": "gone.json"})],
        r"datasets\.cars\.val.*gone\.json",
    ),
    "unknown class in a merge": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml", {"labels.merge": {"x": ["cars/lorry"]}})],
        r"lorry",
    ),
    "unknown backbone": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml", {"model.backbone": "resnet_of_rome"})],
        r"resnet_of_rome.*no timm model",
    ),
    "unknown class to predict": (
        lambda w, t, f: ["predict", t.folder, w.root / "cars", "--classes", "car,lorry", "-o", f / "out"],
        r"lorry.*car",
    ),
    "foreign weights": (
        lambda w, t, f: ["predict", foreign_weights(f), w.root / "cars", "-o", f / "out"],
        r"no crossdet weights file",
    ),
    "damaged weights": (
        lambda w, t, f: ["predict", damaged(t, f), w.root / "cars", "-o", f / "out"],
        r"damaged\.safetensors cannot be read",
    ),
    "missing weights": (
        lambda w, t, f: ["eval", f / "none.safetensors", w.write_config(f / "c.yaml")],
        r"none\.safetensors does not exist",
    ),
    "no images": (
        lambda w, t, f: ["predict", t.folder, w.root / "cars", f / "*.jpg", "-o", f / "out"],
        r"no image found for .*\*\.jpg",
    ),
    "not a COCO file": (
        lambda w, t, f: ["predict", t.folder, w.root / "cars", "--coco", w.root / "faces_val.txt", "-o", f / "o"],
        r"--coco .*faces_val\.txt: no COCO annotation file",
    ),
    "classes that the detector does not know": (
        lambda w, t, f: ["eval", t.folder, w.write_config(f / "c.yaml", {"labels.merge": {"van": ["cars/car"]}})],
        r"does not know the class\(es\) 'van'; it knows car, face",
    ),
    "a run is there": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml"), "-o", t.folder],
        r"already holds a run",
    ),
    "finished run": (
        lambda w, t, f: ["train", w.write_config(f / "c.yaml", t.settings), "-o", t.folder, "--resume"],
        r"finished",
    ),
    "no command of that name": (lambda w, t, f: ["trian", "x"], r"trian"),
    "no such option": (lambda w, t, f: ["train", "x.yaml", "--epochs", "3"], r"--epochs"),
}  # fmt: skip


def foreign_weights(folder: Path) -> Path:
    save_file({"weight": torch.zeros(2)}, folder / "foreign.safetensors", {"format": "pt"})
    return folder / "foreign.safetensors"


def damaged(trained, folder: Path) -> Path:
    data = (trained.folder / "model.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(data[: len(data) // 2])
    return folder / "damaged.safetensors"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_users_mistake_is_a_message_and_exit_code_2(world, trained, tmp_path, command, mistake):
    arguments, message = MISTAKES[mistake]
    before = sorted(path.name for path in trained.folder.iterdir())
    code, out, err = command(*arguments(world, trained, tmp_path))
    assert code == 2, out + err
    assert re.search(message, out + err, re.DOTALL), out + err
    assert "Traceback" not in out + err
    assert sorted(path.name for path in trained.folder.iterdir()) == before


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = crossdet("train", tmp_path / "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""


def test_a_failed_run_is_exit_code_1(world, trained, tmp_path, command):
    """The input was accepted, the run failed: no picture can be read; the numbers cannot be written."""
    (tmp_path / "a.png").write_bytes(b"no picture")
    code, out, err = command("predict", trained.folder, tmp_path / "a.png", "-o", tmp_path / "out")
    assert code == 1
    assert "none of the images could be read" in err
    assert "a.png" in out
    good = world.root / "cars" / "val_0.png"
    blocked = tmp_path / "a.png" / "numbers.json"
    code, _, err = command("predict", trained.folder, good, "-o", tmp_path / "out", "--json", blocked)
    assert code == 2
    assert f"--json {blocked}: {tmp_path / 'a.png'} is a file, not a folder" in err


def test_names_with_brackets_are_printed_as_they_are(trained, tmp_path, command):
    folder = tmp_path / "[red] things:car:"
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    (folder / "[bold]b.png").write_bytes(b"")
    code, out, err = command("predict", trained.folder, folder, "-o", folder / "out")
    assert code == 0, err
    assert f"{folder / '[bold]b.png'}: the file is empty" in out
    assert f"{folder / 'out'}  (" in out
    code, _, err = command("predict", folder / "[/x].safetensors", folder)
    assert code == 2
    assert "[red] things:car:/[/x].safetensors does not exist" in err


# ------------------------------------------------------------------------------------------ JSON files


def strict(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path}: {name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_json_files_hold_the_numbers_and_are_valid(world, trained, tmp_path, command):
    config = world.write_config(tmp_path / "c.yaml", {"train.max_steps": 1})
    numbers = tmp_path / "sub" / "numbers.json"  # the folder is made
    assert command("train", config, "-o", tmp_path / "run", "--json", numbers)[0] == 0
    assert strict(numbers)["step"] == 1
    assert strict(numbers)["metrics"] == strict(tmp_path / "run" / "metrics.json")["epochs"][-1]["metrics"]
    assert command("eval", trained.folder, config, "-o", tmp_path / "eval", "--json", numbers)[0] == 0
    assert strict(numbers)["datasets"]["cars"]["APl"] is None
    assert command("check", config, "--json", numbers)[0] == 0
    assert strict(numbers)
    pictures = world.root / "cars" / "val_*.png"
    assert command("predict", trained.folder, pictures, "-o", tmp_path / "out", "--json", numbers)[0] == 0
    assert strict(numbers) == strict(tmp_path / "out" / "predictions.json")


# ------------------------------------------------------------------------------------- instant commands

WITHOUT_TORCH = """
import sys
from crossdet.commands.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "torchvision", "timm", "lightning_fabric", "scipy") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", "CONFIG"]])
def test_commands_that_start_without_torch(world, tmp_path, arguments):
    config = world.write_config(tmp_path / "c.yaml")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *(str(config) if a == "CONFIG" else a for a in arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=one_thread(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_weights_that_overflow_in_a_step_are_not_saved(world, tmp_path, monkeypatch):
    """The loss of the step was finite, the update was not: the checkpoint due after it must not be written."""
    update = training._optimiser_step

    def overflow(run, *arguments):
        result = update(run, *arguments)
        if run.progress.step == 2:
            with torch.no_grad():
                run.network.box_subnet.predict.weight.mul_(float("inf"))
        return result

    monkeypatch.setattr(training, "_optimiser_step", overflow)
    config = world.config({"train.checkpoint_steps": 1, "train.epochs": 1})
    with pytest.raises(RunError, match=r"no longer finite after step 3 .*last saved state is kept"):
        train(config, output=tmp_path / "run")
    assert load_state(tmp_path / "run" / "state.pt")["progress"]["step"] == 2


def test_weights_that_overflow_before_a_state_is_saved(world, tmp_path, monkeypatch):
    def overflow(run, *arguments):
        with torch.no_grad():
            run.network.box_subnet.predict.weight.mul_(float("inf"))
        return {name: torch.ones(()) for name in run.network.terms}, None

    monkeypatch.setattr(training, "_optimiser_step", overflow)
    config = world.config({"train.checkpoint_steps": 1, "train.epochs": 1})
    with pytest.raises(RunError, match=r"no longer finite after step 1 .*not saved; nothing was saved yet\. "):
        train(config, output=tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_gradient_that_overflows_is_no_traceback_where_gradients_are_clipped(world, tmp_path, monkeypatch):
    update = training._optimiser_step

    def overflow(run, *arguments):
        if run.progress.step == 2:
            run.network.box_subnet.predict.weight.register_hook(lambda gradient: gradient * float("inf"))
        return update(run, *arguments)

    monkeypatch.setattr(training, "_optimiser_step", overflow)
    config = world.config({"train.checkpoint_steps": 1, "train.epochs": 1, "train.clip_norm": 10.0})
    with pytest.raises(RunError, match=r"no longer finite after step 3 .*last saved state is kept"):
        train(config, output=tmp_path / "run")
    assert load_state(tmp_path / "run" / "state.pt")["progress"]["step"] == 2
