"""The plan of a lifelong sequence, and its numbers from made-up JSONs, by hand."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from crossdet import Config
from crossdet.config.schema import DatasetConfig
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import UserError
from crossdet.experiments.lifelong_figure import ALL, class_lines, draw_generations
from crossdet.experiments.lifelong_plan import (
    METHODS,
    Plan,
    chosen_methods,
    make_plan,
    order_of_arrival,
    restricted,
    roots_of,
    with_share,
)
from crossdet.experiments.lifelong_results import asked, old_classes, read_results
from crossdet.experiments.lifelong_tables import class_grid, markdown, mean_grid, notes, old_grid
from crossdet.jsonfiles import write_json


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
    with pytest.raises(UserError, match=r"frozen: generation 2 \(b\) brings no new class"):
        make_plan(config({"a": ["dog"], "b": ["dog"]}, labels={"merge": {"same_names": True}}), (), METHODS)


def test_stored_settings_do_not_name_the_machine(tmp_path):
    def split(name: str) -> dict[str, str]:
        return {"images": str(tmp_path / name / "images"), "annotations": str(tmp_path / name / "all.json")}

    rows = {name: {"format": "coco", "train": split(name)} for name in ("a", "b")}
    roots = roots_of(Config.from_dict({"datasets": rows}), tmp_path / "runs")
    assert roots == {tmp_path / "runs": "RUNS", tmp_path: "DATA"}


# ------------------------------------------------------------------------------------------- the numbers

PLAN = Plan((("one",), ("two",)), (("a", "b"), ("c",)), {})


def result(
    method: str, seed: int, generation: int, per_class: dict[str, float], **more: Any
) -> dict[str, Any]:
    return {
        "tool": "crossdet lifelong",
        "sequence": PLAN.to_json(),
        "method": method,
        "seed": seed,
        "generation": generation,
        "overrides": [],
        "extend_overrides": [],
        "share": "1/4",
        "diverged": None,
        "hardware": {"cpus": 2},
        "val": {"per_class": {name: {"AP50": value} for name, value in per_class.items()}},
        "union": None,
        **more,
    }


def old(before: float, after: float, low: float, high: float) -> dict[str, Any]:
    row = {"AP50": {"before": before, "after": after, "low": low, "high": high}}
    return {"old": {"val": {"classes": {"a": row, "b": row}, "mean": row}}}


@pytest.fixture
def results(tmp_path: Path) -> Any:
    contents = [
        result("start", 0, 1, {"a": 0.8, "b": 0.6}),
        result("start", 1, 1, {"a": 0.6, "b": 0.4}),
        result("replay", 0, 2, {"a": 0.8, "b": 0.58, "c": 0.5}, **old(0.7, 0.69, -0.03, 0.01)),
        result("replay", 1, 2, {"a": 0.6, "b": 0.4, "c": 0.4}, **old(0.5, 0.5, -0.01, 0.01)),
        result("distill", 0, 2, {"a": 0.6, "b": 0.6, "c": 0.5}, **old(0.7, 0.6, -0.15, -0.05)),
        result("joint", 0, 2, {"a": 0.9, "b": 0.7, "c": 0.5}),
        result("joint", 1, 2, {"a": 0.9, "b": 0.7, "c": 0.5}),
        result(
            "frozen", 0, 2, {"a": 0.8, "b": 0.6, "c": 0.1}, old_weights_unchanged=True, **old(0.7, 0.7, 0, 0)
        ),
        result("fine_tune", 0, 2, {}, diverged="the loss is not finite\nsaved", val=None),
    ]
    for content in contents:
        write_json(tmp_path / "{method}_seed{seed}_gen{generation}.json".format(**content), content)
    return read_results(tmp_path)


def test_old_classes_and_shares_by_hand(results):
    replay = old_classes(results, "replay", 2, "val")
    assert [round(one.difference, 6) for one in replay.values()] == [-1.0, 0.0]
    assert not any(one.is_loss for one in replay.values())
    (distill,) = old_classes(results, "distill", 2, "val").values()
    assert distill.is_loss
    assert distill.lost == ("a", "b")
    assert results.of_joint("replay", 2, "val") == pytest.approx({0: 1.0, 1: 0.8})
    assert results.by_seed("replay", 2, "val", ["a", "b", "c"])[0] == pytest.approx((80 + 58 + 50) / 3)
    assert results.by_seed("replay", 1, "val", ["a", "b"]) == pytest.approx({0: 70, 1: 50})  # start's
    assert results.by_seed("fine_tune", 2, "val", ["a"]) == {}
    assert results.places() == ["val"]


def test_what_is_asked_by_hand(results):
    loss, significant, of_joint, kept, frozen = asked(results, "val")
    assert (loss.value, loss.met) == ("0.5 lost", True)  # mean of 1.0 and 0.0
    assert (significant.value, significant.met) == ("0 of 2 generations and seeds", True)
    assert (of_joint.value, of_joint.met) == ("90 %", False)
    assert (kept.value, kept.met) == ("86 %", False)  # 0.6 / 0.7
    assert (frozen.value, frozen.met) == ("1 of 1 generations and seeds", True)


def test_tables_by_hand(results):
    rows = {row[0]: row[1:] for row in old_grid(results, "val")[1]}
    assert "fine-tuning on the newest" not in rows
    assert rows["replay"] == [
        "2", "2", "60.0 ± 14.1", "59.5 ± 13.4", "-0.5 ± 0.7", "-2.0 to +1.0", "0 of 2", "99 %",
        "45.0 ± 7.1", "90 %", "",
    ]  # fmt: skip
    assert rows["distill, no old images"][6] == "1 of 1 (a, b)"
    assert rows["frozen"][-1] == "yes"
    means = {row[0]: row[1:] for row in mean_grid(results, "val")[1]}
    assert means["joint training on everything"][1] == "70.0 ± 0.0"
    assert class_grid(results, "val")[0][2:] == [results.title(m) for m in results.methods()]
    cells = {
        row[0]: dict(zip(results.methods(), row[2:], strict=True)) for row in class_grid(results, "val")[1]
    }
    assert cells["b"]["distill"] == "50.0 ± 14.1 → 60.0"
    assert cells["b"]["joint"] == "70.0 ± 0.0"
    assert cells["c"]["replay"] == "45.0 ± 7.1"
    assert any(
        "fine_tune, generation 2, seed 0, diverged: the loss is not finite" in n for n in notes(results)
    )
    assert "| What is asked" not in markdown(results)
    assert "**What is asked on the validation images" in markdown(results)


def test_lines_of_the_figure(results, tmp_path):
    lines = class_lines(results, "val", "c")
    assert lines["replay"] == {2: [50.0, 40.0]}
    assert class_lines(results, "val", ALL)["distill"][1] == pytest.approx([70, 50])
    assert class_lines(results, "val", "a")["joint"] == {
        2: [90.0, 90.0]
    }  # its first generation is everybody's
    with pytest.raises(UserError, match="nothing was measured on union; it has: val"):
        draw_generations(results, tmp_path / "x.png", "union")
    with pytest.raises(UserError, match=r"expected a file name that ends in \.png"):
        draw_generations(results, tmp_path / "x.gif")


def test_results_that_cannot_be_read_together(tmp_path):
    write_json(tmp_path / "start_seed0_gen1.json", result("start", 0, 1, {}))
    write_json(tmp_path / "replay_seed0_gen2.json", result("replay", 0, 2, {}, share="1/2"))
    with pytest.raises(UserError, match=r"start_seed0_gen1\.json has another share"):
        read_results(tmp_path)
    write_json(tmp_path / "replay_seed0_gen2.json", {"tool": "another"})
    with pytest.raises(UserError, match=r"not a result of `crossdet lifelong run`"):
        read_results(tmp_path)


def test_the_block_of_the_results_page(results, tmp_path):
    """As `make results` writes it: data/lifelong/NAME -> Markdown and a figure."""
    spec = importlib.util.spec_from_file_location(
        "make_results", Path(__file__).parents[2] / "docs/make_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "data/lifelong/toys"
    folder.mkdir(parents=True)
    for file in tmp_path.glob("*.json"):
        shutil.copy(file, folder)
    text = module.block("lifelong toys", tmp_path / "data", tmp_path / "images")
    assert text.startswith("### Lifelong sequence toys")
    assert "](images/lifelong_toys.png)" in text
    assert (tmp_path / "images/lifelong_toys.png").exists()
