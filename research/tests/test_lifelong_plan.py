"""The plan of a lifelong sequence, the config of every training, and the queue. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from crossdet import Config
from crossdet.config.chosen import start_of
from crossdet.config.schema import DatasetConfig
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import Diverged, UserError
from crossdet.files import write_json
from crossdet.models.card import WEIGHTS_FILE
from crossdet_research import jobs
from crossdet_research.lifelong import measure as lifelong_measure
from crossdet_research.lifelong import queue as lifelong
from crossdet_research.lifelong.plan import (
    METHODS,
    Settings,
    check_settings,
    chosen_methods,
    make_plan,
    order_of_arrival,
    read_union_test,
    resolve,
    restricted,
    roots_of,
    what_of,
    with_share,
)
from crossdet_research.lifelong.results import read_results
from crossdet_research.lifelong.tables import notes


def index(*classes: str) -> Index:
    builder = IndexBuilder("nowhere")
    builder.image("a.png", 10, 10)
    builder.box((1, 1, 5, 5), 0)
    return builder.build(classes)


def config(datasets: dict[str, list[str]], **sections: Any) -> Config:
    rows = {name: {"train": index(*c), "val": index(*c)} for name, c in datasets.items()}
    return Config.from_dict({"datasets": rows, **sections})


THREE = {"a": ["cat", "dog"], "b": ["dog", "owl"], "c": ["hound", "cat"]}
LABELS = {
    "merge": {"dog": ["a/dog", "b/dog", "c/hound"]},
    "distinct": ["cat"],
    "overlap": [["dog", "owl"]],
    "absent": {"a": ["owl", "c/cat"]},
    "not_exhaustive": {"b": ["dog"]},
}


# ------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("part", "share", "expected"),
    [(None, "1/4", "1/4"), (None, "1/1", None), ("1/2", "1/2", "1/4"), ("2/3", "3/4", "8/12")],
)
def test_a_share_of_a_part_is_a_part(part, share, expected):
    dataset = DatasetConfig(train=index("x"), part=part)
    shared = with_share(dataset, share)
    assert shared.part == expected
    rows = list(range(240))
    remainder, divisor = dataset.part_of or (0, 1)
    of_part = [r for r in rows if r % divisor == remainder]
    first, count = map(int, share.split("/"))
    remainder, divisor = shared.part_of or (0, 1)
    assert [r for r in rows if r % divisor == remainder] == of_part[first - 1 :: count]


def test_each_seed_replays_another_part():
    dataset = DatasetConfig(train=index("x"), part="2/2")
    parts = [with_share(dataset, "1/3", seed).part_of for seed in range(4)]
    kept = [set(range(remainder, 60, divisor)) for remainder, divisor in parts]
    assert kept[0] | kept[1] | kept[2] == set(range(1, 60, 2))
    assert not kept[0] & kept[1]
    assert kept[3] == kept[0]
    assert with_share(dataset, "1/1", 2).part == "2/2"


def test_classes_arrive_with_their_datasets():
    plan = make_plan(config(THREE, labels=LABELS), (), METHODS)
    assert plan.generations == (("a",), ("b",), ("c",))
    assert plan.classes == (("a/cat", "dog"), ("owl",), ("c/cat",))
    assert plan.datasets(2) == ["a", "b"]
    assert plan.known(3) == ["a/cat", "dog", "owl", "c/cat"]
    grouped = make_plan(config(THREE, labels=LABELS), ("c", "a, b"), METHODS)
    assert grouped.classes == (("dog", "c/cat"), ("a/cat", "owl"))


def test_rules_wait_for_what_they_speak_of():
    whole = config(THREE, labels=LABELS)
    plan = make_plan(whole, (), ())
    one = restricted(whole, plan, ["a"], 1).labels
    assert (one.merge, one.distinct, one.overlap) == ({"dog": ("a/dog",)}, ("cat",), ())
    assert (one.absent, one.not_exhaustive) == ({}, {})
    two = restricted(whole, plan, ["a", "b"], 2).labels
    assert two.merge == {"dog": ("a/dog", "b/dog")}
    assert (two.overlap, two.absent) == ((("dog", "owl"),), {"a": ("owl",)})
    assert two.not_exhaustive == {"b": ("dog",)}
    # an extension that leaves the old images out
    assert restricted(whole, plan, ["c"], 3).labels.merge == {"dog": ("c/hound",)}
    assert restricted(whole, plan, ["a", "b", "c"], 3).labels == whole.labels


def test_mistakes_in_the_sequence():
    with pytest.raises(UserError, match="at least two generations"):
        order_of_arrival(config({"a": ["x"]}), ())
    with pytest.raises(UserError, match=r"--methods repaly: unknown method; did you mean `replay`"):
        chosen_methods(["repaly"])
    without = config(THREE, labels=LABELS)
    rows = {name: d.model_copy(update={"val": None}) for name, d in without.datasets.items()}
    with pytest.raises(UserError, match=r"(?s)3 mistake.*datasets\.a: no `val` split and no `union_test`"):
        order_of_arrival(without.model_copy(update={"datasets": rows}), ())
    with pytest.raises(UserError, match=r"class 'dog' is in several datasets"):
        make_plan(config({"a": ["dog"], "b": ["dog"]}), (), ())
    with pytest.raises(UserError, match=r"frozen,frozen_adapter: generation 2 \(b\) brings no new class"):
        make_plan(config({"a": ["dog"], "b": ["dog"]}, labels={"merge": {"same_names": True}}), (), METHODS)


def test_stored_settings_do_not_name_the_machine(tmp_path):
    def split(name: str) -> dict[str, str]:
        return {"images": str(tmp_path / name / "images"), "annotations": str(tmp_path / name / "all.json")}

    rows = {name: {"format": "coco", "train": split(name)} for name in ("a", "b")}
    roots = roots_of(Config.from_dict({"datasets": rows}), tmp_path / "runs")
    assert roots == {tmp_path / "runs": "RUNS", tmp_path: "DATA"}


# ------------------------------------------------------------------------------------------- configs and queue


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A config of three datasets with a class each, and a union test of two images."""
    builder = IndexBuilder(tmp_path)
    for number in (1, 2):
        builder.image(f"{number}.png", 10, 10, image_id=number)
        builder.box((1, 1, 5, 5), 0)
    both = builder.build(("x",))
    names = ("a", "b", "c")
    for name in (*names, "test"):
        write_coco(builder.build(("a" if name == "test" else name,)), tmp_path / f"{name}.json")
    write_coco(both.take(np.array([1])), tmp_path / "dark.json")

    def split(name: str) -> dict[str, str]:
        return {"images": str(tmp_path), "annotations": str(tmp_path / f"{name}.json")}

    content = {
        "datasets": {n: {"format": "coco", "train": split(n), "val": split(n)} for n in names},
        "union_test": {"format": "coco", **split("test")},
        "train": {"lr": 0.04},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / "all.yaml"


def method(name: str) -> Any:
    return next(one for one in METHODS if one.name == name)


def resolved(settings: Settings, names: Sequence[str], seed: int = 0) -> dict[str, Config]:
    """Of the third generation."""
    plan = make_plan(settings.config(), (), METHODS)
    return {name: resolve(settings, plan, method(name), seed, 3) for name in names}


def test_only_methods_that_replay_know_old_datasets(files):
    found = resolved(Settings(files, replay_weight=3.0), [m.name for m in METHODS], seed=1)
    for name in ("fine_tune", "distill", "frozen", "frozen_adapter"):
        assert list(found[name].datasets) == ["c"]
    for name in ("replay", "distill_replay"):
        assert {name: (d.part, d.weight) for name, d in found[name].datasets.items()} == {
            "a": ("2/4", 3.0), "b": ("2/4", 3.0), "c": (None, 1.0),
        }  # fmt: skip
    modes = {name: c.extend.mode for name, c in found.items() if c.extend is not None and name != "joint"}
    assert modes == {
        "fine_tune": "replay", "replay": "replay", "distill": "distill", "distill_replay": "distill",
        "frozen": "frozen", "frozen_adapter": "frozen",
    }  # fmt: skip
    fine_tune, distill = found["fine_tune"], found["distill"]
    assert (fine_tune.train.plain, distill.train.plain) == (True, False)
    assert fine_tune.extend is not None
    assert distill.extend is not None
    assert (fine_tune.extend.fixed_statistics, distill.extend.fixed_statistics) == (False, True)
    assert "can be ignored" in method("fine_tune").remark


def test_extensions_begin_with_a_quarter_of_the_rate_that_the_config_means(files):
    """Random weights have a higher one than a trained backbone."""
    for weights in ("none", "imagenet"):
        settings = Settings(files, ("train.lr=null", f"model.weights={weights}"))
        found = resolved(settings, ("replay", "joint"))
        joint = found["joint"]
        assert found["replay"].train.lr == joint.train.rate(start_of(joint, extends=False)) / 4


def test_methods_have_overrides_of_their_own(files):
    settings = Settings(
        files, (), ("replay:train.lr=0.015", "train.lr=0.02", "distill:extend.match=5", "datasets.c.weight=2")
    )
    check_settings(settings)
    found = resolved(settings, [m.name for m in METHODS])
    assert {name: c.train.lr for name, c in found.items()} == {
        "fine_tune": 0.02, "replay": 0.015, "distill": 0.02, "distill_replay": 0.02, "frozen": 0.02,
        "frozen_adapter": 0.02, "joint": 0.04,
    }  # fmt: skip
    matched = {name for name, c in found.items() if c.extend is not None and c.extend.match == 5}
    assert matched == {"distill"}
    for wide in (found, resolved(Settings(files, ("extend.adapter=16",)), [m.name for m in METHODS])):
        adapters = {name: c.extend.adapter for name, c in wide.items() if name != "joint"}
        assert adapters == dict.fromkeys(adapters, 0) | {"frozen_adapter": 32}
    assert [c.datasets["c"].weight for c in found.values()] == [2, 2, 2, 2, 2, 2, 1]
    with pytest.raises(
        UserError, match=r"(?s)3 mistake.*--replay-weight nan.*'repaly'; did you mean `replay`.*'joint'"
    ):
        check_settings(Settings(files, (), ("repaly:train.lr=1", "joint:train.lr=1"), "1/4", float("nan")))
    for wrong in ("replay:train.lrr=0.1", "train.lr=-1", "replay:train.lr"):
        with pytest.raises(UserError, match=f"  - --extend-set {wrong}: "):
            resolved(Settings(files, (), (wrong,)), ["replay"])


def test_parts_of_the_union_test_and_validation_images_as_one(files):
    def union(*places: str, of_val: bool = False, file: Path = files) -> Any:
        settings = Settings(file, places=places, union_of_val=of_val)
        whole = settings.config()
        return read_union_test(whole, make_plan(whole, (), METHODS), settings)

    dark = f"dark={files.parent / 'dark.json'}"
    assert union(dark).parts == {"dark": [1]}
    with pytest.raises(UserError, match=r"(?s)2 mistake.*--place dark: expected NAME=FILE.*each name once"):
        union(dark, "dark", dark)
    with pytest.raises(UserError, match=r"--union-of-val: takes the place of `union_test`"):
        union(of_val=True)
    content = yaml.safe_load(files.read_text())
    del content["union_test"]
    alone = files.with_name("alone.yaml")
    alone.write_text(yaml.safe_dump(content, sort_keys=False))
    assert list(union(of_val=True, file=alone).vals.datasets) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"--place: a part of the `union_test`, but the config has none"):
        union(dark, file=alone)


def test_nothing_starts_from_a_training_that_diverged(files, monkeypatch):
    """Though its weights are there: they are written after every epoch."""
    begun = []

    def train(job: Any) -> dict[str, Any]:
        begun.append(job.title)
        job.run_dir.mkdir(parents=True, exist_ok=True)
        (job.run_dir / WEIGHTS_FILE).write_text(job.title)
        write_json(job.run_dir / jobs.NOTE, {"config": job.what, "parent": job.parent})
        if job.method.name == "replay" and job.generation == 2:
            raise Diverged("the loss is not finite")
        return {"epoch": 1, "step": 1}

    monkeypatch.setattr(lifelong.GenerationJob, "train", train)
    monkeypatch.setattr(lifelong_measure, "measure_generation", lambda *_: {"val": {"per_class": {}}})
    output = files.parent / "out"

    def run(*names: str) -> list[str]:
        said: list[str] = []
        lifelong.run_lifelong(Settings(files), output, chosen_methods(names), [0], say=said.append)
        return said

    expected = "[3/5] replay, generation 3, seed 0: left out, the generation before diverged"
    assert expected in run("replay", "distill")
    assert begun == [
        "start, generation 1, seed 0", "replay, generation 2, seed 0",
        "distill, generation 2, seed 0", "distill, generation 3, seed 0",
    ]  # fmt: skip
    assert expected in run("replay", "distill")  # now from the JSON
    assert len(begun) == 4
    # an earlier version went on from such weights
    late = jobs.read_json(output / "distill_seed0_gen3.json")
    plan = make_plan(Settings(files).config(), (), METHODS)
    roots = roots_of(Settings(files).config(), output / "runs")
    config = resolve(Settings(files), plan, method("replay"), 0, 3)
    parent = lifelong.file_digest(output / "runs/replay_seed0_gen2" / WEIGHTS_FILE)
    late |= {"method": "replay", "config": what_of(config, plan, roots), "parent": parent}
    write_json(output / "replay_seed0_gen3.json", late | {"share": "1/4", "replay_weight": 1.0})
    with pytest.raises(UserError, match=r"replay_seed0_gen3\.json was made from weights of a training that div"):
        run("replay")
    read = read_results(output)
    assert read.run("replay", 0, 3) is None
    assert read.run("distill", 0, 3) is not None
    assert any("replay, generation 3, seed 0: not counted" in note for note in notes(read))
