"""`crossdet-research lifelong`: three generations by every method, two steps each; table, figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner
from worlds import draw_split

from crossdet import load_config, load_detector
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.errors import RunError, UserError
from crossdet.models.card import file_digest, read_card
from crossdet.models.retinanet.growth import WEIGHT, by_class
from crossdet.models.weights import load_weights, save_weights, update_card
from crossdet.runs.evaluate import evaluate
from crossdet.training import state as training_state
from crossdet_research.lifelong.command import app
from crossdet_research.lifelong.measure import Looker, measure_generation, unchanged
from crossdet_research.lifelong.plan import UnionImages

METHODS = ("fine_tune", "replay", "distill", "distill_replay", "frozen", "frozen_adapter", "joint")
CHAINS = METHODS[:-1]


def command(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Every extension draws its generations, which takes as long as its two steps; see `test_extend_runs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossdet.runs.extend.draw_generations", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def config_file(world, tmp_path_factory) -> Path:
    """cars, faces, then `more`: faces again and a class of its own; its pictures are the union test."""
    root = tmp_path_factory.mktemp("sequence")
    names = [f"{i}.png" for i in range(6)]
    drawn = draw_split(np.random.default_rng(3), root / "more", names, "face")
    builder = IndexBuilder(root / "more")
    for row, name in enumerate(names):
        builder.image(name, 48, 64, image_id=row + 1)
        box = drawn.boxes[row].tolist()
        builder.box(box, 0)
        builder.box((box[0], box[1], box[0] + 8, box[1] + 8), 1)
    more = builder.build(("face", "corner"))
    write_coco(more, root / "more.json")
    write_coco(more.take(np.array([0, 2, 3])), root / "some.json")
    settings = world.settings()
    files = {"images": str(root / "more"), "annotations": str(root / "more.json")}
    settings["datasets"]["more"] = {"format": "coco", "train": dict(files), "val": dict(files)}
    settings["labels"] = {
        "merge": {"face": ["faces/face", "more/face"]},
        "overlap": [["face", "corner"]],
        "absent": {"cars": ["corner"]},
    }
    settings["union_test"] = {"format": "coco", **files}
    settings["train"] |= {"max_steps": 2, "eval_every": 0}
    (root / "all.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root / "all.yaml"


@pytest.fixture(scope="module")
def results(config_file) -> Path:
    output = config_file.parent / "results"
    place = f"some={config_file.parent / 'some.json'}"
    command("run", config_file, "--seeds", "0", "-o", output, "--replay-share", "1/3", "--place", place)
    return output


def test_a_json_per_method_and_generation(results, config_file):
    expected = {"start_seed0_gen1", "joint_seed0_gen3"}
    expected |= {f"{method}_seed0_gen{g}" for method in CHAINS for g in (2, 3)}
    assert {file.stem for file in results.glob("*.json")} == expected
    for file in results.glob("*.json"):
        content = read(file)
        assert content["sequence"] == {
            "generations": [["cars"], ["faces"], ["more"]],
            "classes": [["car"], ["face"], ["corner"]],
        }
        known = ["car", "face", "corner"][: content["generation"]]
        assert content["classes"] == known
        assert set(content["val"]["per_class"]) == set(known)
        assert content["steps"] == 2
        assert str(config_file.parent) not in file.read_text()
        # the union test shows no car: what is not there has no number
        assert content["union"] is None or set(content["union"]["per_class"]) <= {"face", "corner"}
        is_extension = content["method"] in CHAINS
        assert ("old" in content) is is_extension
        if is_extension:
            assert set(content["old"]["val"]["classes"]) == set(known[:-1])
            assert content["forgetting"]["classes"]
            # `faces` and `more` label no car, and `more` labels faces anew
            for place in filter(content.get, ("val", "union")):
                row = content["old"][place]
                assert set(row["unlabelled"]["classes"]) == {"car"} & set(row["classes"])
                assert row["worst"] in [*row["classes"], None]
        assert content["queue"] == {"seeds": [0], "methods": [*METHODS], "every_joint": False}
        if content["union"] is not None:
            part = content["union_parts"]["some"]
            assert part["images"] == 3
            assert set(part["per_class"]) == set(content["union"]["per_class"])
    for name in ("frozen", "frozen_adapter"):
        frozen = read(results / f"{name}_seed0_gen3.json")
        assert frozen["old_weights_unchanged"] is True
        row = frozen["old"]["val"]["mean"]["AP50"]
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert read(results / "replay_seed0_gen3.json")["old_weights_unchanged"] is False


def test_each_generation_comes_from_the_weights_file_before(results):
    for method in CHAINS:
        run = results / f"runs/{method}_seed0_gen3"
        before = results / f"runs/{method}_seed0_gen2"
        start = results / "runs/start_seed0_gen1"
        history = read_card(run).generations
        assert [g.parent for g in history] == [None, file_digest(start), file_digest(before)]
        assert load_detector(run).classes == ("car", "face", "corner")
        assert read(results / f"{method}_seed0_gen3.json")["parent"] == file_digest(before)


def test_what_each_method_trains_on(results):
    def trained_on(name: str) -> dict[str, Any]:
        config = load_config(results / f"runs/{name}/config.yaml")
        return {key: d.part for key, d in config.datasets.items() if d.train is not None}

    assert trained_on("start_seed0_gen1") == {"cars": None}
    for method in ("replay", "distill_replay"):
        assert trained_on(f"{method}_seed0_gen3") == {"cars": "1/3", "faces": "1/3", "more": None}
    assert trained_on("joint_seed0_gen3") == {"cars": None, "faces": None, "more": None}
    for method in ("fine_tune", "distill", "frozen", "frozen_adapter"):
        config = load_config(results / f"runs/{method}_seed0_gen3/config.yaml")
        assert list(config.datasets) == ["more"]  # no old images, for validation neither
        assert config.train.plain is (method == "fine_tune")
        assert config.extend.fixed_statistics is (method != "fine_tune")
        assert config.train.lr == (0.02 if "frozen" in method else 0.005)
        assert config.extend.adapter == (32 if method == "frozen_adapter" else 0)
    assert load_config(results / "runs/joint_seed0_gen3/config.yaml").train.lr == 0.02
    # a rule about a class that is not there yet waits for it
    assert load_config(results / "runs/replay_seed0_gen2/config.yaml").labels.absent == {}
    assert load_config(results / "runs/replay_seed0_gen3/config.yaml").labels.absent == {"cars": ("corner",)}


@pytest.fixture(scope="module")
def worse(trained, tmp_path_factory) -> Path:
    """The trained detector with noise on the rows of `car` in the last layer of the class subnet."""
    tensors, card = load_weights(trained.folder)
    rows = by_class(tensors[WEIGHT], 4)
    rows[:, 0] += 0.3 * torch.randn(rows[:, 0].shape, generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("worse") / "worse.safetensors"
    save_weights(file, tensors, card)
    return file


def test_numbers_are_those_of_eval(trained, worse, world):
    """Nothing competes for places here: looking for all classes at once changes nothing."""
    config = world.config({"datasets.faces.protocol": "coco"})
    looker = Looker(config.eval)
    parent, union = trained.folder / "model.safetensors", world.cars["val"]
    test = UnionImages(union, {"some": [3, 0]})
    content = measure_generation(worse, parent, config, test, looker, ["faces"])
    assert content["old_weights_unchanged"] is False
    for weights, key in ((parent, "before"), (worse, "after")):
        metrics = evaluate(weights, config)["datasets"]
        for name, class_name in (("cars", "car"), ("faces", "face")):
            for number in ("AP", "AP50"):
                expected = metrics[name]["per_class"][class_name][number]
                assert expected > (0.2 if key == "before" else 0)
                old = content["old"]["val"]["classes"][class_name][number]
                assert old[key] == pytest.approx(expected)
                if key == "after":
                    assert content["val"]["per_class"][class_name][number] == pytest.approx(expected)
                    assert content["datasets"][name][number] == pytest.approx(expected)
    car, face = (content["old"]["val"]["classes"][name]["AP50"] for name in ("car", "face"))
    assert car["difference"] < 0
    assert (face["difference"], face["low"], face["high"]) == (0, 0, 0)
    mean = content["old"]["val"]["mean"]["AP50"]
    assert mean["difference"] == pytest.approx(car["difference"] / 2)
    assert mean["low"] <= mean["difference"] <= mean["high"]
    # the union test shows the pictures of `cars`, with `car` alone
    assert content["union"]["per_class"]["car"] == content["val"]["per_class"]["car"]
    assert set(content["old"]["union"]["classes"]) == {"car"}
    # the newest dataset labels faces, so the rest of the old classes is `car`
    rest = content["old"]["val"]["unlabelled"]
    assert (rest["classes"], rest["mean"]["AP50"]) == (["car"], car)
    assert content["old"]["val"]["worst"] == "car"
    # in the order of the whole: equal scores, of which these weights give some, stand in the order of the pictures
    some = UnionImages(union.take(np.array([0, 3])))
    assert (
        content["union_parts"]["some"]
        == measure_generation(worse, None, config, some, Looker(config.eval))["union"]
    )


def test_validation_images_as_a_union_test(trained, world):
    """Every class is judged on the images of both datasets; the pictures of one show unlabelled cars or faces."""
    config = world.config()
    weights = trained.folder / "model.safetensors"
    content = measure_generation(weights, None, config, UnionImages(vals=config), Looker(config.eval))
    val, union = content["val"], content["union"]
    assert union["images"] == val["images"] == 10
    for name in ("car", "face"):
        assert union["per_class"][name]["boxes"] == val["per_class"][name]["boxes"]
        assert 0 < union["per_class"][name]["AP50"] < val["per_class"][name]["AP50"]


def test_weights_are_compared_bit_for_bit(trained, worse, results):
    assert unchanged(trained.folder, trained.folder)
    assert not unchanged(trained.folder, worse)
    runs = results / "runs"
    assert unchanged(runs / "start_seed0_gen1", runs / "frozen_seed0_gen2")
    assert not unchanged(runs / "frozen_seed0_gen2", runs / "start_seed0_gen1")  # it knows fewer classes


def test_finished_ones_are_skipped_and_other_settings_are_refused(results, config_file):
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*") if file.is_file()}
    words = ("run", config_file, "--seeds", "0", "-o", results)
    assert command(*words, "--replay-share", "1/3").count("finished, skipped") == 14
    with pytest.raises(UserError, match=r"(?s)4 training\(s\) cannot be used.*datasets\.cars\.part"):
        command(*words)
    with pytest.raises(UserError, match=r"(?s)12 training\(s\) cannot be used.*differing: train\.lr"):
        command(*words, "--replay-share", "1/3", "--extend-set", "train.lr=0.5")
    with pytest.raises(UserError, match=r"(?s)7 training\(s\) cannot be used.*sequence\.generations"):
        command(*words, "--replay-share", "1/3", "--generation", "faces", "--generation", "cars,more")
    after = {file: file.stat().st_mtime_ns for file in results.rglob("*") if file.is_file()}
    assert after == before


def test_an_interrupted_queue_goes_on_and_other_weights_are_noticed(results, config_file, tmp_path, monkeypatch):
    for name in ("start_seed0_gen1", "replay_seed0_gen2"):
        shutil.copytree(results / "runs" / name, tmp_path / "runs" / name)
    save_if_due = training_state.RunState.save_if_due

    def stop(self, recipe):
        self.stop.set()
        save_if_due(self, recipe)

    words = ("run", config_file, "--seeds", "0", "-o", tmp_path, "--methods", "replay", "--replay-share", "1/3")
    with monkeypatch.context() as patch:
        patch.setattr(training_state.RunState, "save_if_due", stop)
        with pytest.raises(RunError, match=r"(?s)interrupted after step 1.*run the same command again"):
            command(*words)
    assert not (tmp_path / "replay_seed0_gen3.json").exists()
    command(*words)
    one, two = (read(folder / "replay_seed0_gen3.json") for folder in (results, tmp_path))
    for key in ("val", "union", "old", "config"):
        assert one[key] == two[key], key
    update_card(tmp_path / "runs/start_seed0_gen1/model.safetensors", operating={})  # other weights
    with pytest.raises(UserError, match=r"replay_seed0_gen2\.json was made from other weights"):
        command(*words)


def test_a_diverged_generation_is_a_result_and_ends_its_chain(results, config_file, tmp_path):
    """One step per epoch: the first, with a learning rate of 0, leaves weights that are good."""
    shutil.copytree(results / "runs/start_seed0_gen1", tmp_path / "runs/start_seed0_gen1")
    wild = ("lr=1e30", "batch_size=16", "epochs=4", "warmup_epochs=4", "warmup_factor=0", "max_steps=4")
    wild = tuple(f"replay:train.{text}" for text in wild)
    words = ("run", config_file, "--seeds", "0", "-o", tmp_path, "--methods", "replay")
    text = command(*words, *(word for key in wild for word in ("--extend-set", key)))
    assert "diverged: the loss is not finite" in text
    assert "generation 3, seed 0: left out, the generation before diverged" in text
    assert (tmp_path / "runs/replay_seed0_gen2/model.safetensors").exists()
    assert not (tmp_path / "runs/replay_seed0_gen3").exists()
    content = read(tmp_path / "replay_seed0_gen2.json")
    assert "not finite" in content["diverged"]
    assert "val" not in content
    command("table", tmp_path, "--markdown", tmp_path / "table.md")
    assert "diverged" in (tmp_path / "table.md").read_text()


def test_table_and_figure(results, tmp_path):
    text = command("table", results, "--markdown", tmp_path / "t.md", "--json", tmp_path / "t.json")
    assert "Old and new classes" in text
    page = (tmp_path / "t.md").read_text()
    assert "| corner | 3 |" in page
    assert "by part of the union test" in page
    assert "1: cars (car); 2: faces (face); 3: more (corner)" in page
    content = read(tmp_path / "t.json")
    assert set(content["places"]["val"]["methods"]) == set(METHODS)
    for place in ("val", "union"):
        command("plot", results, "-o", tmp_path / f"{place}.png", "--on", place)
        with Image.open(tmp_path / f"{place}.png") as figure:
            assert figure.width > 900


def test_mistakes_are_told_before_any_training(config_file, tmp_path, world):
    def run(*words: str, file: Path = config_file) -> None:
        command("run", file, "--seeds", "0", "-o", tmp_path / "none", *words)

    with pytest.raises(UserError, match=r"--methods replai: unknown method; did you mean `replay`"):
        run("--methods", "replai")
    with pytest.raises(
        UserError, match=r"--extend-set replai:train\.lr=1: no extension is called 'replai'; did you"
    ):
        run("--extend-set", "replai:train.lr=1")
    with pytest.raises(UserError, match=r"(?s)3 mistake.*no dataset 'car'.*'faces' arrives 2.*'cars' is in no"):
        run("--generation", "faces", "--generation", "car,faces", "--generation", "more")
    for share in ("5/4", "0/4", "a quarter"):
        with pytest.raises(UserError, match=r"--replay-share .*: expected the n-th of so many parts"):
            run("--replay-share", share)
    with pytest.raises(UserError, match=r"frozen,frozen_adapter: generation 2 \(faces\) brings no new class"):
        run("--generation", "more", "--generation", "faces", "--generation", "cars")
    with pytest.raises(UserError, match=r"--seeds x"):
        command("run", config_file, "--seeds", "x", "-o", tmp_path / "none")
    with pytest.raises(UserError, match=r"datasets\.faces: no `train` split"):
        run(file=world.write_config(tmp_path / "untrained.yaml", {"datasets.faces.train": None}))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match=r"no result of `crossdet-research lifelong run`"):
        command("table", tmp_path)
