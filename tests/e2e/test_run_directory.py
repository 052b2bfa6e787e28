"""Every rule of the run directory, and data that change, on the tiny world."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from short_runs import STEPS_PER_EPOCH, run, same, steps, weights

from crossdet import Config, RunError, UserError, load_detector, train
from crossdet.config.sources import open_sources
from crossdet.data.index import NO_LABELS
from crossdet.data.loading import epoch_batches
from crossdet.runs.building import build_fabric, training_data
from crossdet.training.state import RunState

# ------------------------------------------------------------------------------------ the run directory


def test_a_run_is_not_mixed_with_another(world, short, tmp_path):
    before = (short / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run; continue it with --resume.*--overwrite"):
        run(world, short)
    assert (short / "model.safetensors").read_bytes() == before


def test_overwrite_replaces_a_run(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    (folder / "eval_old/curves").mkdir(parents=True)
    (folder / "eval_old.json").write_text("{}")
    (folder / ".state.pt.ab12cd").write_text("of a training that was killed")
    run(world, folder, {"train.max_steps": 1}, overwrite=True)
    assert len(steps(folder)) == 1
    assert not {"eval_old", "eval_old.json", ".state.pt.ab12cd"} & {entry.name for entry in folder.iterdir()}


def test_overwrite_leaves_what_no_training_wrote(world, short, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    (folder / "notes").mkdir()
    (folder / "notes/today.txt").write_text("better with more dogs")
    (folder / "best.onnx").write_text("exported")
    (folder / "eval_notes.md").write_text("mine")
    run(world, folder, {"train.max_steps": 1}, overwrite=True)
    assert (folder / "notes/today.txt").exists()
    assert (
        f"{folder}: left there, not known as part of a run: best.onnx, eval_notes.md, notes"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_another_config_is_no_run(options, world, tmp_path):
    """Above all not the folder of the data, beside whose config `crossdet new` wrote it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "config.yaml").write_text("# Written by `crossdet new`.\ndatasets: {}\n")
    (folder / "labels.json").write_text("a month's work")
    with pytest.raises(UserError, match=r"holds a config.yaml that no training is known to have written"):
        run(world, folder, **options)
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.yaml", "labels.json"]
    assert (folder / "config.yaml").read_text().startswith("# Written by `crossdet new`.")


def test_no_run_where_its_data_are(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    shutil.copytree(world.root, folder / "pictures", dirs_exist_ok=True)
    inside = {f"datasets.cars.train.{key}": str(folder / "pictures" / name) for key, name in
              (("images", "cars"), ("annotations", "cars_train.json"))}  # fmt: skip
    with pytest.raises(UserError, match=r"holds what is trained on \(.*pictures/cars"):
        run(world, folder, inside, overwrite=True)
    assert (folder / "pictures/cars_train.json").exists()
    with pytest.raises(UserError, match="holds what is trained on"):
        run(world, world.root)


def test_a_run_of_before_its_config_had_a_first_line_is_known(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    config = folder / "config.yaml"
    config.write_text("".join(config.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="already holds a run"):
        run(world, folder)


def test_overwrite_deletes_nothing_that_is_no_run(world, tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match="is no run directory; it is not deleted"):
        run(world, folder, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        run(world, folder / "thesis.tex", overwrite=True)
    assert (folder / "thesis.tex").read_text() == "ten years"


def test_a_mistake_costs_neither_the_old_run_nor_the_new_name(world, short, tmp_path):
    """A config that cannot be built leaves the run it should replace, and no half-made one."""
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    wrong = {"model.backbone": "no_such_backbone"}
    with pytest.raises(UserError, match="no_such_backbone"):
        run(world, folder, wrong, overwrite=True)
    assert same(weights(folder), weights(short))
    with pytest.raises(UserError, match="no_such_backbone"):
        run(world, tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()


def test_resume_refuses_another_config_and_names_the_key(world, short):
    with pytest.raises(
        UserError, match=r"another config; differing: train\.lr, loss\.gamma|loss\.gamma, train\.lr"
    ):
        run(world, short, {"train.lr": 0.5, "loss.gamma": 1.0}, resume=True)


def test_a_key_that_is_newer_than_the_run_had_its_default(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    del written["train"]["group_aspect"]
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match="nothing to resume"):
        run(world, folder, resume=True)
    with pytest.raises(UserError, match=r"another config; differing: train\.group_aspect"):
        run(world, folder, {"train.group_aspect": False}, resume=True)


def test_resume_of_a_finished_run_says_so(world, short):
    with pytest.raises(UserError, match="this run is finished; there is nothing to resume"):
        run(world, short, resume=True)
    # keys that change nothing may differ
    with pytest.raises(UserError, match="finished"):
        run(world, short, {"train.workers": 1, "train.log_every": 7, "eval.batch_size": 2}, resume=True)


def test_a_run_goes_on_where_its_data_have_moved(world, tmp_path):
    """The same weights as where they stayed; other labels there are refused by their content."""
    few = {"datasets.cars.part": "1/2", "train.epochs": 1, "train.eval_every": 0}
    train(world.config(few), output=tmp_path / "stayed")
    shutil.copytree(tmp_path / "stayed", tmp_path / "run")
    moved = replace(world, root=tmp_path / "elsewhere")
    shutil.copytree(world.root, moved.root)
    train(world.config(few | {"train.epochs": 2}), output=tmp_path / "stayed", resume=True)
    train(moved.config(few | {"train.epochs": 2}), output=tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "stayed"))
    assert str(moved.root) in (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(UserError, match=r"differing: train\.lr\. Resume"):
        train(moved.config(few | {"train.epochs": 3, "train.lr": 0.5}), output=tmp_path / "run", resume=True)
    written = (tmp_path / "run/config.yaml").read_text()
    picture = moved.root / "cars/train_0.png"
    kept = picture.read_bytes()
    picture.write_bytes(kept + b" ")
    with pytest.raises(UserError, match=r"1 of \d+ pictures are other files, such as train_0\.png \([\d,]+ bytes"):
        train(moved.config(few | {"train.epochs": 3}), output=tmp_path / "run", resume=True)
    picture.write_bytes(kept)
    labels = moved.root / "cars_train.json"
    content = json.loads(labels.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 0.5
    labels.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be resumed, it would go on with something else"):
        train(moved.config(few | {"train.epochs": 3}), output=tmp_path / "run", resume=True)
    assert (tmp_path / "run/config.yaml").read_text() == written  # a refusal changes nothing


def test_a_finished_run_goes_on_for_more_epochs(world, tmp_path, capsys):
    """The rate does not depend on the number of epochs here: as if it had been trained for two at once."""
    few = {"datasets.cars.val": None, "datasets.faces": None, "datasets.cars.part": "1/2", "train.epochs": 1}
    more = few | {"train.epochs": 2}
    train(world.config(few), output=tmp_path / "run")
    with pytest.raises(UserError, match="there is nothing to resume"):
        train(world.config(few), output=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"differing: train\.lr\. Resume"):  # the epochs are no mistake beside it
        train(world.config(more | {"train.lr": 0.5}), output=tmp_path / "run", resume=True)
    train(world.config(more), output=tmp_path / "run", resume=True)
    assert (
        "train.epochs: 1 -> 2, as if it had begun with 2: its learning rates are the same"
        in capsys.readouterr().out
    )
    train(world.config(more), output=tmp_path / "whole")
    assert [row["step"] for row in steps(tmp_path / "run")] == [row["step"] for row in steps(tmp_path / "whole")]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"differing: train\.epochs"):  # fewer are not what was trained
        train(world.config(few), output=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"differing: train\.epochs, train\.max_steps"):
        train(world.config(more | {"train.epochs": 3, "train.max_steps": 99}), output=tmp_path / "run", resume=True)


def test_resume_without_a_state_starts_at_the_beginning(world, short, tmp_path):
    run(world, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(short))


def test_resume_with_a_damaged_state_says_so(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    state = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.raises(UserError, match=r"training state .*state\.pt cannot be read"):
        run(world, folder, resume=True)


# ----------------------------------------------------------------------------------------------- data


def test_indexes_from_python_train_as_their_files(world, short, tmp_path):
    settings = world.settings()
    settings["train"]["max_steps"] = 3
    settings["datasets"] = {
        "cars": {"train": world.cars["train"], "val": world.cars["val"]},
        "faces": {"train": world.faces["train"], "val": world.faces["val"]},
    }
    train(Config.from_dict(settings), output=tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(short))
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "an index of 12 images, given from Python" in text


def test_what_may_become_background_by_mistake_is_told(world, tmp_path, capsys):
    """By `train`, too: not everybody calls `check` first."""
    settings = world.settings()
    settings["train"]["max_steps"] = 1
    faces = replace(world.faces["train"], classes=("Cars",))
    unlabelled = replace(world.cars["train"], skipped={NO_LABELS: ["street.jpg"]})
    settings["datasets"] = {"cars": {"train": unlabelled}, "faces": {"train": faces}}
    train(Config.from_dict(settings), output=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "warning: cars train: 1 images have no label file, such as street.jpg, and count as pictures" in printed
    assert "warning: likely the same class, not merged: cars/car and faces/Cars" in printed


def test_without_val_there_are_no_scores(world, tmp_path):
    folder = tmp_path / "run"
    record = run(world, folder, {"datasets.cars.val": None, "datasets.faces.val": None})
    assert "metrics" not in record
    assert not (folder / "best.safetensors").exists()
    assert json.loads((folder / "metrics.json").read_text())["best"] is None
    assert load_detector(folder).classes == ("car", "face")


def test_short_epochs_do_not_all_write(world, tmp_path, monkeypatch):
    written, save = [], RunState.save_state
    monkeypatch.setattr(RunState, "save_state", lambda run: (written.append(run.progress.step), save(run)))
    monkeypatch.setattr("crossdet.training.loop.STEPS_APART", 7)
    changes = {"train.max_steps": 23, "train.epochs": 4}
    run(world, tmp_path / "run", changes | {"datasets.cars.val": None, "datasets.faces.val": None})
    assert written == [6, 18, 23, 23]  # the first epoch, the third (12 is too early), the last, and the end


def test_val_of_one_dataset_only(world, tmp_path):
    record = run(world, tmp_path / "run", {"datasets.faces.val": None, "train.max_steps": 1})
    assert set(record["metrics"]["datasets"]) == {"cars"}


def test_config_without_train_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no dataset of the config has a `train` split"):
        run(world, tmp_path / "run", {"datasets.cars.train": None, "datasets.faces.train": None})


def test_too_few_images_for_the_processes(world):
    dataset = training_data(world.config(), open_sources(world.config()))
    with pytest.raises(UserError, match="24 training images are too few for 25"):
        epoch_batches(dataset.sizes(), dataset.draw_weights(), 4, 0, 0, min_batch=25)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_and_named_once(world, tmp_path, capsys, workers):
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    broken = root / "cars" / "train_3.png"
    broken.write_bytes(broken.read_bytes()[:150])
    changes = {
        "train.max_steps": 2 * STEPS_PER_EPOCH,
        "train.workers": workers,
        "datasets.cars.train.images": str(root / "cars"),
    }
    record = run(world, tmp_path / "run", changes)
    lines = [line for line in capsys.readouterr().out.splitlines() if "another image takes its place" in line]
    assert len(lines) == 1  # though both epochs drew it
    assert "train_3.png" in lines[0]
    assert record["datasets"]["cars"]["images"] == 12  # the epoch stays complete
    assert record["unreadable"] == 1


def test_a_part_without_readable_images_stops_the_run(world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    for file in (root / "cars").glob("train_*.png"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"12 images in a row cannot be read, the last one: .*the file is empty"):
        run(world, tmp_path / "run", {"datasets.cars.train.images": str(root / "cars")})


def test_no_other_accelerator_is_taken_unasked(world, monkeypatch):
    """Apple's GPU has no float64, which the guard and the totals want."""
    monkeypatch.setattr("lightning_fabric.accelerators.mps.MPSAccelerator.is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build_fabric(world.config({"train.accelerator": "auto"})).device.type == "cpu"


def test_cuda_is_refused_where_there_is_none(world, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no GPU here; use auto or cpu"):
        build_fabric(world.config({"train.accelerator": "cuda"}))
