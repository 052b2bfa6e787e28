"""`crossdet-research split`: the files it writes and their pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from mixed_pictures import CLASSES, PARTS, SIZE, index_of
from PIL import Image
from typer.testing import CliRunner
from worlds import make_world

from crossdet.check import inspect
from crossdet.config import Config, load_config
from crossdet.data.formats.coco import read_coco, write_coco
from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.types import Flag
from crossdet_research.split.command import _open, split
from crossdet_research.split.files import write_split
from crossdet_research.split.plan import split_dataset

COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config over 16 + 5 pictures that show up to three classes, with the tiny network of `worlds.py`."""
    root = tmp_path_factory.mktemp("source")
    for split_name, count in (("train", 16), ("val", 5)):
        shown = [{"a", "b", "c"}, {"a", "b"}, {"c"}, {"a"}] * 4
        index = index_of(shown[:count], root / split_name)
        (root / split_name).mkdir()
        for row in range(len(index)):
            rng = np.random.default_rng([row, count])
            noise = rng.integers(100, 110, (SIZE, SIZE, 3)).astype(np.uint8)
            rows = index.rows(row)
            for (x1, y1, x2, y2), label in zip(index.boxes[rows].astype(int), index.labels[rows], strict=True):
                noise[y1:y2, x1:x2] = COLOURS[CLASSES[label]]
            Image.fromarray(noise).save(root / split_name / index.names[row])
        write_coco(index, root / f"{split_name}.json")
    recipe = make_world(root / "world").settings()
    config = {
        "datasets": {
            "toys": {"format": "coco", **{s: {"images": s, "annotations": f"{s}.json"} for s in ("train", "val")}}
        },
        **{key: recipe[key] for key in ("model", "input", "train", "eval")},
    }
    (root / "toys.yaml").write_text(json.dumps(config))
    return root


def run(*arguments: str | Path) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(split)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    message = str(result.exception) if isinstance(result.exception, UserError) else result.output
    return result.exit_code, message


BOTH = ("--part", "left=a", "--part", "right=b,c")


def test_the_command_writes_what_it_says(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--conflict", "0.25", "--conflict-by", "erase", "--look", "right=grey_dark")
    code, text = run(source / "toys.yaml", *BOTH, "--output", out, *options, "--json", tmp_path / "numbers.json")
    assert code == 0, text
    record = json.loads((out / "split.json").read_text())
    assert record["complete"]
    assert json.loads((tmp_path / "numbers.json").read_text()) == record
    assert record["conflict"] == 0.25
    for part, classes in PARTS.items():
        index = read_coco(out / part / "train.json", out / "images")
        assert index.classes == tuple(classes)
        row = record["parts"][part]
        assert len(index) == row["images"] == 8
        counts = np.bincount(index.labels, minlength=len(classes)).tolist()
        assert counts == list(row["boxes_labelled"].values())
        assert not any(index.skipped.values())
    check_colours(out, record)
    test = read_coco(out / "test" / "all.json", out / "images")
    assert len(test) == 10
    assert test.classes == CLASSES
    assert sorted(path.name for path in (out / "test").iterdir()) == [
        "all.json", "grey_dark.json", "original.json"]  # fmt: skip
    assert all(test.path(row).is_file() for row in range(len(test)))


def check_colours(out: Path, record: dict[str, Any]) -> None:
    """By the pixels alone: how many pictures of the part `left` still show an object that is not labelled."""
    index = read_coco(out / "left" / "train.json", out / "images")
    foreign = 0
    for row in range(len(index)):
        pixels = np.asarray(Image.open(index.path(row)).convert("RGB")).astype(int)
        near = [np.abs(pixels - COLOURS[name]).max(axis=2) < 40 for name in ("b", "c")]
        foreign += any(int(mask.sum()) > 50 for mask in near)
        boxes = index.rows(row)
        labelled = int((np.abs(pixels - COLOURS["a"]).max(axis=2) < 40).sum()) > 50
        assert labelled == (boxes.stop > boxes.start)
    assert foreign == record["parts"]["left"]["conflict_images"]


def test_unchanged_pictures_keep_their_bytes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(source / "toys.yaml", *BOTH, "--output", out)[0] == 0
    for path in (out / "images" / "original" / "train").iterdir():
        assert path.read_bytes() == (source / "train" / path.name).read_bytes()


def test_the_same_seed_writes_the_same_files(source: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        code, text = run(source / "toys.yaml", *BOTH, "--output", out, "--look", "left=blur_noise",
                         "--share", "0.25", "--seed", "5")  # fmt: skip
        assert code == 0, text
        found.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert found[0] == found[1]


def test_references_have_all_labels_and_crowds(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(source / "toys.yaml", *BOTH, "--output", out)[0] == 0
    whole = read_coco(source / "train.json", source)
    boxes = {name: whole.boxes[whole.rows(row)].tolist() for row, name in enumerate(map(str, whole.names))}  # type: ignore[call-overload]
    for part, own in PARTS.items():
        full = read_coco(out / part / "train_full.json", out / "images")
        same = read_coco(out / part / "train_same_positives.json", out / "images")
        for index in (full, same):
            assert index.classes == CLASSES
            for row in range(len(index)):
                assert index.boxes[index.rows(row)].tolist() == boxes[Path(index.names[row]).name]
        assert not full.flags.any()
        foreign = [CLASSES[label] not in own for label in same.labels]
        assert ((same.flags & Flag.CROWD) != 0).tolist() == foreign


def test_crowds_of_a_reference_are_no_negatives_of_their_class_only(source: Path, tmp_path: Path) -> None:
    """What same_positives.yaml promises, as the loss will see it: regions of the class, all background trusted."""
    from crossdet.runs.building import training_batches

    out = tmp_path / "out"
    assert run(source / "toys.yaml", *BOTH, "--output", out)[0] == 0
    batches, sources = training_batches(load_config(out / "same_positives.yaml"), 2)
    assert sources.space.classes == CLASSES
    for batch in batches:
        assert bool(batch.trusted.all())
        for target, dataset in zip(batch.targets, batch.dataset_ids.tolist(), strict=True):
            own = PARTS[sources.space.datasets[dataset]]
            crowd = (target.flags & int(Flag.CROWD)) != 0
            assert crowd.tolist() == [CLASSES[label] not in own for label in target.labels.tolist()]


@pytest.mark.parametrize("parts", [BOTH, ("--part", "left=a,b", "--part", "right=b,c")])
def test_naive_with_everything_marked_sees_what_same_positives_sees(
    source: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    """Level 0 of a sweep by marks; at 0.5 half of the pictures differ, in nothing but crowds."""
    from crossdet.runs.building import training_batches

    def seen(folder: Path, name: str) -> dict[tuple[int, int], tuple[Any, ...]]:
        config = load_config(folder / f"{name}.yaml", ["augment.flip=0"])
        batches, sources = training_batches(config, 4)
        assert sources.space.classes == ("a", "b", "c")
        found = {}
        for batch in batches:
            for row, target in enumerate(batch.targets):
                key = int(batch.dataset_ids[row]), int(batch.image_ids[row])
                what = (target.boxes.tolist(), target.labels.tolist(), target.flags.tolist())
                found[key] = (*what, batch.trusted[row].tolist())
        return found

    marked, half = tmp_path / "marked", tmp_path / "half"
    for folder, level in ((marked, "0"), (half, "0.5")):
        options = ("--conflict", level, "--conflict-by", "mark", "--output", folder)
        code, text = run(source / "toys.yaml", *parts, *options)
        assert code == 0, text
        assert "marked: " in text
    reference = seen(marked, "same_positives")
    assert len(reference) == 16
    assert seen(marked, "naive") == reference
    assert seen(half, "same_positives") == reference
    partly = seen(half, "naive")
    assert 0 < sum(partly[key] != reference[key] for key in reference) < 16
    for key, (_boxes, labels, flags, trusted) in partly.items():
        assert all(trusted)
        own = [(a, f) for a, f in zip(labels, flags, strict=True) if not f & int(Flag.CROWD)]
        whole = zip(reference[key][1], reference[key][2], strict=True)
        assert own == [(a, f) for a, f in whole if not f & int(Flag.CROWD)]
    report = inspect(load_config(half / "naive.yaml"))
    assert report.errors == ()
    record = json.loads((half / "split.json").read_text())
    assert record["conflict"] == 0.5
    assert sum(row["boxes_marked"] for row in record["parts"].values()) > 0
    assert not any(row["boxes_erased"] for row in record["parts"].values())


def test_all_configs_pass_check_and_share_one_recipe(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = ("--part", "left=b,c", "--part", "right=a,b")
    assert run(source / "toys.yaml", *parts, "--output", out, "--look", "left=warm")[0] == 0
    names = ("aware", "naive", "same_positives", "full", "expert_left", "expert_right")
    given = load_config(source / "toys.yaml")
    for name in names:
        config = load_config(out / f"{name}.yaml")
        report = inspect(config)
        assert report.errors == (), (name, report.errors)
        assert not [d for d in report.duplicates if d.leak]
        for section in ("model", "loss", "input", "augment", "eval", "seed"):
            assert getattr(config, section) == getattr(given, section), (name, section)
        assert config.train == given.train.model_copy(update={"plain": name == "naive"})
        assert config.union_test is not None
        if not name.startswith("expert"):
            assert [c.name for c in report.classes] == ["b", "c", "a"]  # the same order, for `audit --against`
    aware = inspect(load_config(out / "aware.yaml"))
    assert {c.name: [c.states[part] for part in ("left", "right")] for c in aware.classes} == {
        "a": ["avoided", "labelled"], "b": ["labelled", "labelled"], "c": ["labelled", "avoided"]}  # fmt: skip
    full = inspect(load_config(out / "full.yaml"))
    assert all(set(c.states.values()) == {"labelled"} for c in full.classes)


@pytest.mark.parametrize("name", ["aware", "same_positives"])
def test_a_written_config_trains(source: Path, tmp_path: Path, name: str) -> None:
    from crossdet.runs.train import train

    out = tmp_path / "out"
    assert run(source / "toys.yaml", *BOTH, "--output", out, "--look", "right=cold")[0] == 0
    record = train(load_config(out / f"{name}.yaml", ["train.max_steps=2", "train.eval_every=0"]))
    assert (out / "runs" / name / "model.safetensors").is_file()
    assert set(record["datasets"]) == {"left", "right"}


def test_no_foreign_folder_is_touched_and_runs_survive(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    for more in ((), ("--overwrite",)):
        code, text = run(source / "toys.yaml", *BOTH, "--output", mine, *more)
        assert code == 1
        assert "holds files and no split" in text
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    out = tmp_path / "out"
    assert run(source / "toys.yaml", *BOTH, "--output", out)[0] == 0
    (out / "runs").mkdir()
    (out / "runs" / "log").write_text("x")
    code, text = run(source / "toys.yaml", *BOTH, "--output", out)
    assert "already holds a split; replace it with --overwrite" in text
    others = ("--part", "one=a,b", "--part", "two=c")
    assert run(source / "toys.yaml", *others, "--output", out, "--overwrite")[0] == 0
    assert not (out / "left").exists()
    assert not (out / "expert_left.yaml").exists()
    assert (out / "one" / "train.json").is_file()
    assert (out / "runs" / "log").is_file()
    assert all((source / "train" / f"{row:03d}.png").is_file() for row in range(16))


def test_parts_by_patterns_are_those_by_names(source: Path, tmp_path: Path) -> None:
    assert run(source / "toys.yaml", *BOTH, "--output", tmp_path / "names")[0] == 0
    nothing = ("--part", "left=a*", "--part", "right=b*,c*,d*")
    code, message = run(source / "toys.yaml", *nothing, "--output", tmp_path / "patterns")
    assert code != 0
    assert "d*" in message
    patterns = ("--part", "left=a*", "--part", "right=b*,c*")
    assert run(source / "toys.yaml", *patterns, "--output", tmp_path / "patterns")[0] == 0
    for file in ("left/train.json", "right/train.json", "test/all.json", "aware.yaml"):
        assert (tmp_path / "patterns" / file).read_bytes() == (tmp_path / "names" / file).read_bytes()


def test_mistakes_of_the_command_line(source: Path, tmp_path: Path) -> None:
    file, out = source / "toys.yaml", tmp_path / "out"
    assert "--part left: expected NAME=CLASS,..." in run(file, "--part", "left", "--output", out)[1]
    twice = ("--part", "left=a", "--part", "left=b")
    assert "left is given twice" in run(file, *twice, "--output", out)[1]
    assert "expected one group in round brackets" in run(file, *BOTH, "--output", out, "--group-by", "a")[1]
    assert "unknown dataset 'toy'; did you mean 'toys'?" in run(file, *BOTH, "--output", out, "--dataset", "toy")[1]
    assert not out.exists()


def test_broken_pictures_are_all_named(source: Path, tmp_path: Path) -> None:
    index = read_coco(source / "train.json", tmp_path)
    for row in range(len(index)):
        (tmp_path / index.names[row]).write_bytes((source / "train" / index.names[row]).read_bytes())
    (tmp_path / "003.png").write_bytes(b"broken")
    (tmp_path / "004.png").unlink()
    plan = split_dataset(index, index, PARTS, looks={"left": "warm", "right": "warm"})
    with pytest.raises(UserError) as caught:
        write_split(plan, tmp_path / "out")
    assert "2 picture(s) cannot be used" in str(caught.value)
    assert "003.png" in str(caught.value)
    assert "004.png" in str(caught.value)


def test_names_that_lead_out_of_the_folder_stay_inside(source: Path, tmp_path: Path) -> None:
    builder = IndexBuilder(source / "val")
    for number in range(4):
        builder.image(f"../train/{number:03d}.png", SIZE, SIZE, image_id=number)
        builder.box((2, 2, 12, 14), number % 3)
    index = builder.build(CLASSES)
    write_split(split_dataset(index, index, PARTS), tmp_path / "deep" / "out")
    written = read_coco(tmp_path / "deep/out/left/train.json", tmp_path / "deep/out/images")
    assert all(".." not in written.names[row] and written.path(row).is_file() for row in range(len(written)))


def test_splitting_needs_no_torch() -> None:
    code = (
        "import sys, crossdet_research.split.command, crossdet_research.split.files, crossdet.config.sources;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("look", ["original", "warm"])
def test_pictures_with_strange_names_stay_in_the_folder(tmp_path: Path, look: str) -> None:
    root, folder = tmp_path / "pictures", tmp_path / "in" / "out"
    names = ["a b.png", "e/1.png", "E/1.png", "../beside/1.png", f"{root.parent}/beside/2.png", ".h/.x.png"]
    names += ["con/nul.png", "t\tb/n\nl.png", "c:d/*?.png", "..e/..x..png"]
    names += [f"{'l' * 240}/x.png", f"e/{'m' * 240}.png"]
    builder = IndexBuilder(root)
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * number, 90, 90)).save(root / name, "PNG")
        builder.image(name, 30, 40, image_id=number + 1)
        builder.box((1, 2, 11, 22), number % 2)
    index = builder.build(["a", "b"])
    before = set(tmp_path.rglob("*"))
    write_split(
        split_dataset(index, index, {"left": ["a"], "right": ["b"]}, looks=dict.fromkeys(["left", "right"], look)),
        folder,
    )
    made = {file for file in (folder / "images" / look / "val").rglob("*") if file.is_file()}
    assert len(made) == len(names)
    assert all(file.suffix.lower() in (".png", ".jpg") for file in made)
    assert {file for file in tmp_path.rglob("*") if folder not in (file, *file.parents)} == before | {folder.parent}


def test_places_of_no_class_are_negatives_for_none_in_naive_training_either(source: Path, tmp_path: Path) -> None:
    """Naive training had them as regions of the part's own classes, and lost to the references by more than what is
    not labelled."""
    from crossdet.runs.building import training_batches

    content = json.loads((source / "train.json").read_text())
    content["categories"].append({"id": 99, "name": "place"})
    extra = [
        {"id": 1000 + i, "image_id": image["id"], "category_id": 99, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
        for i, image in enumerate(content["images"])
    ]
    content["annotations"] += extra
    (source / "places.json").write_text(json.dumps(content))
    config = json.loads((source / "toys.yaml").read_text())
    config["datasets"]["toys"] |= {"ignore_classes": ["place"]}
    config["datasets"]["toys"]["train"]["annotations"] = "places.json"
    (source / "places.yaml").write_text(json.dumps(config))
    code, text = run(source / "places.yaml", *BOTH, "--output", tmp_path / "out")
    assert code == 0, text
    for name in ("naive", "aware", "same_positives", "full"):
        written = load_config(tmp_path / f"out/{name}.yaml", ["augment.flip=0"])
        assert inspect(written).errors == ()
        batches, sources = training_batches(written, 4)
        assert sources.space.classes == CLASSES
        for batch in batches:
            for row, target in enumerate(batch.targets):
                region = (target.flags & int(Flag.IGNORE_REGION | Flag.CROWD)) != 0
                corner = target.boxes.sum(1) == target.boxes.sum(1).min()  # the place is nearest to it
                there = {int(c) for c in target.labels[region & corner].tolist()}
                trusted = set(batch.trusted[row].nonzero().flatten().tolist())
                assert there == {-1} or trusted <= there, (name, there, trusted)
            assert bool(batch.trusted.all()) is (name != "aware")


def test_two_pictures_that_would_become_one_file_are_told(tmp_path: Path) -> None:
    """The second was left out, and its boxes lay on the first. What an earlier split wrote stays."""
    builder = IndexBuilder(tmp_path)
    for label, name in enumerate(("x/a.png", "x/a.png.jpg")):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
        builder.image(name, 30, 40, image_id=label + 1)
        builder.box((1, 2, 11, 22), label)
    index, out = builder.build(["a", "b"]), tmp_path / "out"
    parts = {"left": ["a"], "right": ["b"]}
    write_split(split_dataset(index, index, parts), out)
    before = set(out.rglob("*"))
    with pytest.raises(UserError, match=r"2 time\(s\) two pictures .* rename one of the two") as caught:
        write_split(split_dataset(index, index, parts, looks=dict.fromkeys(parts, "warm")), out, overwrite=True)
    for split_name in ("train", "val"):
        assert f"images/warm/{split_name}/x/a.png.jpg" in str(caught.value)
    assert f"{tmp_path}/x/a.png and {tmp_path}/x/a.png.jpg" in str(caught.value)
    assert set(out.rglob("*")) == before


@pytest.mark.parametrize(("said", "learnt"), [("positive", 0), ("ignore", int(Flag.IGNORE_REGION))])
def test_difficult_objects_are_regions_in_the_parts(tmp_path: Path, said: str, learnt: int) -> None:
    """The files of the parts know none: avoided ones became objects to be learnt, and all of them to be found."""
    builder = IndexBuilder(tmp_path)
    builder.image("x.jpg", 96, 96)
    builder.box((5, 10, 35, 40), 0)
    builder.box((50, 10, 80, 40), 1, int(Flag.DIFFICULT))
    index = builder.build(["cat", "dog"])
    config = Config.from_dict({"datasets": {"d": {"train": index, "val": index, "difficult": said}}})
    train, val = _open(config, "d")
    difficult = int(Flag.DIFFICULT)
    assert train.flags.tolist() == [0, difficult | learnt]
    assert val.flags.tolist() == [0, difficult | int(Flag.IGNORE_REGION)]
