"""`crossdet-research ablation`: two steps of each training on a tiny split, the queue, and what it draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from worlds import CAR, FACE, HEIGHT, WIDTH, make_world

from crossdet import load_config, load_detector, train
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import ConfigError, RunError, UserError
from crossdet.training import state as training_state
from crossdet_research.ablation.command import app
from crossdet_research.ablation.methods import FURTHER
from crossdet_research.split.files import write_split
from crossdet_research.split.plan import split_dataset

METHODS = "naive,aware_distinct,same_positives,expert_left"
SIGN = (60, 60, 220)
TWO_STEPS = ("--set", "train.max_steps=2")


def command(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def picture_index(root: Path, count: int) -> Index:
    """Grey pictures with a car, a face and a sign each."""
    rng = np.random.default_rng(count)
    builder = IndexBuilder(root)
    root.mkdir()
    for number in range(count):
        builder.image(f"{number}.png", HEIGHT, WIDTH, image_id=number + 1)
        pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        for label, colour in enumerate((CAR, FACE, SIGN)):
            x, y = 2 + 20 * label, int(rng.integers(0, HEIGHT - 16))
            pixels[y : y + 14, x : x + 16] = colour
            builder.box((x, y, x + 16, y + 14), label)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return builder.build(("car", "face", "sign"))


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """A split of 8 pictures: `face` is labelled by both parts, which differ in look."""
    root = tmp_path_factory.mktemp("ablation")
    plan = split_dataset(
        picture_index(root / "train", 8),
        picture_index(root / "val", 2),
        {"left": ["car", "face"], "right": ["face", "sign"]},
        looks={"right": "grey_dark"},
    )
    recipe = make_world(root / "world").settings()
    sections = {key: recipe[key] for key in ("model", "input", "train", "eval")}
    write_split(plan, root / "toys", {**sections, "seed": 0})
    return root / "toys"


@pytest.fixture(scope="module")
def results(toys) -> Path:
    output = toys.parent / "results"
    command("run", toys, "--methods", METHODS, "--seeds", "0", "-o", output, *TWO_STEPS)
    return output / "toys"


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_two_steps_of_each_kind(results, toys):
    assert {f.stem for f in results.iterdir()} == {f"{m}_seed0" for m in METHODS.split(",")}
    for method in METHODS.split(","):
        content = read(results / f"{method}_seed0.json")
        assert (content["steps"], content["seed"], content["diverged"]) == (2, 0, None)
        assert content["summary"]["parts"]["right"]["look"] == "grey_dark"
        assert content["seconds"] > 0
        assert content["training_seconds"] > 0
        assert content["version"]["training"] == content["version"]["measurement"]
        assert content["curve"][-1]["step"] == 2
        assert set(content["union"]["per_look"]) == {"original", "grey_dark"}
        assert content["union"]["images"] == 4
        assert str(toys) not in json.dumps(content)
        expert = method == "expert_left"
        assert set(content["union"]["per_class"]) == {"car", "face", *([] if expert else ["sign"])}
        assert content["union"]["complete"] is not expert
        assert set(content["protocols"]) == {"left", *([] if expert else ["right"])}
    classes = set(load_detector(toys / "runs/naive_seed0").classes)
    assert classes == {"car", "left/face", "right/face", "sign"}
    assert read(results / "naive_seed0.json")["config"]["train"]["plain"] is True
    assert set(load_detector(toys / "runs/same_positives_seed0").classes) == {"car", "face", "sign"}
    looks = read(results / "naive_seed0.json")["union"]["per_look"]
    home = {(look, c) for look, row in looks.items() for c, r in row["per_class"].items() if r["home"]}
    assert home == {("original", "car"), ("original", "face"), ("grey_dark", "face"), ("grey_dark", "sign")}


def test_finished_ones_are_skipped_and_other_settings_are_refused(results, toys):
    before = {file: file.stat().st_mtime_ns for file in toys.parent.rglob("*") if file.is_file()}
    words = ("run", toys, "--methods", METHODS, "--seeds", "0", "-o", results.parent)
    assert command(*words, *TWO_STEPS).count("finished, skipped") == 4
    with pytest.raises(UserError, match=r"(?s)4 training\(s\) cannot be used.*differing: train\.lr"):
        command(*words, *TWO_STEPS, "--set", "train.lr=0.5")
    with pytest.raises(UserError, match=r"runs/naive_seed0 was made with other settings"):
        command(*words[:-1], toys.parent / "other", *TWO_STEPS, "--set", "train.lr=0.5")
    after = {file: file.stat().st_mtime_ns for file in toys.parent.rglob("*") if file.is_file()}
    assert after == before


def test_the_rule_for_queries_with_one_part_open(toys):
    """Each changes one key of the loss of D-FINE, and no other network has it."""
    opened = [m for m in FURTHER if any(text.startswith("loss.") for text in m.overrides)]
    ours = load_config(toys / "aware.yaml", ["model={name: dfine}"])
    changed = []
    for method in opened:
        loss = load_config(toys / f"{method.base}.yaml", ["model={name: dfine}", *method.overrides]).loss
        changed += [key for key, value in dict(loss).items() if value != getattr(ours.loss, key)]
        with pytest.raises(ConfigError, match=r"loss\.\w+"):
            load_config(toys / f"{method.base}.yaml", method.overrides)
    assert changed == ["selection", "flips", "free_quality", "foreground"]


def test_the_experts_teach_and_are_trained_before(results, toys, tmp_path):
    """After two steps they find nothing right: nothing is taught, and that is told."""
    words = ("run", toys, "--seeds", "0", "-o", tmp_path, *TWO_STEPS)
    with pytest.raises(UserError, match=r"pseudo\.from_epoch.*the teacher would never label"):
        command(*words, "--methods", "aware_pseudo_self")
    # the experts do not know the key
    text = command(*words, "--methods", "aware_pseudo", "--set", "pseudo.beta=0.5")
    assert "aware_pseudo, seed 0: it is taught by expert_right, in the queue as well" in text
    content = read(tmp_path / "toys/aware_pseudo_seed0.json")
    assert content["taught"]["teachers"] == ["expert_left_seed0", "expert_right_seed0"]
    assert set(content["taught"]["datasets"]) <= {"left", "right"}
    assert content["config"]["pseudo"]["teachers"] == ["expert_left_seed0", "expert_right_seed0"]
    assert (content["steps"], content["steps_with_teachers"]) == (2, 6)
    assert "pseudo.beta=0.5" in content["overrides"]
    assert not any("pseudo" in text for text in read(tmp_path / "toys/expert_right_seed0.json")["overrides"])
    assert str(toys) not in json.dumps(content)
    table = command("table", tmp_path / "toys")
    assert "aware, labels by the experts" in table
    shutil.rmtree(toys / "runs/aware_pseudo_seed0")
    words = ("run", toys, "--methods", "aware_pseudo", "--seeds", "0", "-o", tmp_path / "other")
    with pytest.raises(UserError, match=r"runs/expert_left_seed0 was made with other settings"):
        command(*words, *TWO_STEPS, "--set", "train.lr=0.5")


def test_a_run_of_plain_train_is_measured_as_it_is(toys, tmp_path):
    run_dir = toys / "runs/aware_seed5"
    config = load_config(toys / "aware.yaml", ["seed=5", "train.max_steps=2", "train.log_every=1"])
    train(config, output=run_dir)
    weights = (run_dir / "model.safetensors").stat().st_mtime_ns
    words = ("run", toys, "--methods", "aware", "--seeds", "5", "-o", tmp_path)
    with pytest.raises(UserError, match=r"runs/aware_seed5 was made with other settings; .*train\.max_steps"):
        command(*words)
    text = command(*words, *TWO_STEPS)
    assert "measured" in text
    content = read(tmp_path / "toys/aware_seed5.json")
    assert content["hardware_is"] == "of the measurement"
    assert content["union"]["complete"]
    assert (run_dir / "model.safetensors").stat().st_mtime_ns == weights
    # a copy of the split elsewhere knows its runs again; nothing is trained
    shutil.copytree(toys, tmp_path / "moved/toys")
    moved = ("run", tmp_path / "moved/toys", "--methods", "aware,full", "--seeds", "5", "--measure-only")
    text = command(*moved, "-o", tmp_path / "again", *TWO_STEPS)
    assert "no finished training, left out" in text
    assert read(tmp_path / "again/toys/aware_seed5.json")["union"] == content["union"]


def test_an_interrupted_queue_goes_on_where_it_was_stopped(results, toys, tmp_path, monkeypatch):
    save_if_due = training_state.RunState.save_if_due

    def stop(self, recipe):
        self.stop.set()
        save_if_due(self, recipe)

    copy = tmp_path / "toys"
    shutil.copytree(toys, copy, ignore=shutil.ignore_patterns("runs"))
    words = ("run", copy, "--methods", "naive", "--seeds", "0", "-o", tmp_path / "out", *TWO_STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(training_state.RunState, "save_if_due", stop)
        with pytest.raises(RunError, match=r"(?s)interrupted after step 1.*run the same command again"):
            command(*words)
    assert not (tmp_path / "out").exists()
    command(*words)
    one, two = (read(f / "naive_seed0.json") for f in (results, tmp_path / "out/toys"))
    assert one["union"] == two["union"]
    assert one["config"] == two["config"]


def test_a_diverged_training_is_a_result(toys, tmp_path):
    runs = tmp_path / "wild"
    words = ("run", toys, "--methods", "naive,expert_right", "--seeds", "0", "-o", tmp_path, "--runs", runs)
    wild = ("train.lr=1e30", "train.warmup_epochs=0", "train.clip_norm=null", "train.max_steps=4")
    text = command(*words, *(word for key in wild for word in ("--set", key)))
    assert text.count("diverged: the loss is not finite") == 2
    content = read(tmp_path / "toys/naive_seed0.json")
    assert "not finite" in content["diverged"]
    assert str(toys.parent.parent) not in json.dumps(content)
    assert content["overrides"] == list(wild)
    assert (content["union"], content["epochs"]) == (None, None)
    assert "1 diverged" in command("table", tmp_path / "toys", "--markdown", tmp_path / "table.md")
    assert "naive concatenation | 0 (1 diverged)" in (tmp_path / "table.md").read_text()


def test_tables_curves_sweep_and_pictures(results, toys, tmp_path):
    text = command("table", results, "--markdown", tmp_path / "t.md", "--json", tmp_path / "t.json")
    assert "recovered share" in text
    assert set(read(tmp_path / "t.json")["tables"]) >= {"scores", "confidence", "looks", "training"}
    command("curves", results, "-o", tmp_path / "curves.png")
    command("sweep", results.parent, "--plot", tmp_path / "sweep.png", "--markdown", tmp_path / "s.md")
    assert "| toys | original, grey_dark | 8 | 100 |" in (tmp_path / "s.md").read_text()
    runs = (toys / "runs/naive_seed0", toys / "runs/same_positives_seed0")
    command("pictures", toys, *runs, "-o", tmp_path / "pictures.png", "--score", "0.05")
    with Image.open(tmp_path / "pictures.png") as sheet:
        width, height = 560, 420  # 64x48 enlarged
        assert sheet.size == (3 * width + 16, 2 * (height + 22) + 8)
    with pytest.raises(UserError, match="--image 2: expected 0 to 1"):
        command("pictures", toys, *runs, "-o", tmp_path / "no.png", "--image", "2")


def test_mistakes_of_the_command_line(toys, tmp_path):
    with pytest.raises(UserError, match=r"--seeds x: expected whole numbers"):
        command("run", toys, "--seeds", "0,x")
    with pytest.raises(UserError, match=r"did you mean `naive`"):
        command("run", toys, "--methods", "naiv")
    with pytest.raises(UserError, match=r"holds no split"):
        command("run", tmp_path)
