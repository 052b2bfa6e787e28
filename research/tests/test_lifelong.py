"""The numbers and tables of a lifelong sequence, by hand from made-up JSONs."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from crossdet.errors import UserError
from crossdet.files import write_json
from crossdet_research.lifelong.figure import ALL, class_lines, draw_generations
from crossdet_research.lifelong.plan import Plan
from crossdet_research.lifelong.results import read_results, worst_class
from crossdet_research.lifelong.tables import (
    as_json,
    class_grid,
    class_part_grid,
    markdown,
    mean_grid,
    notes,
    old_grid,
    step_grid,
)

PLAN = Plan((("one",), ("two",)), (("a", "b"), ("c",)), {})


def result(method: str, seed: int, generation: int, per_class: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "tool": "crossdet lifelong",
        "sequence": PLAN.to_json(),
        "method": method,
        "seed": seed,
        "generation": generation,
        "overrides": [],
        "extend_overrides": [],
        "share": "1/4",
        "queue": {"seeds": [0, 1], "methods": ["replay", "joint"], "every_joint": False},
        "diverged": None,
        "hardware": {"cpus": 2},
        "val": {"per_class": {name: {"AP50": value} for name, value in per_class.items()}},
        "union": None,
        **more,
    }


Row = tuple[float, float, float, float]
"""Before, after, low, high."""


def old(mean: Row, classes: dict[str, Row], unlabelled: Sequence[str] = ("b",)) -> dict[str, Any]:
    """The mean of the unlabelled ones is that of the first."""

    def row(values: Row | None) -> dict[str, Any]:
        return {"AP50": dict(zip(("before", "after", "low", "high"), values or [None] * 4, strict=True))}

    rest = {"classes": [*unlabelled], "mean": row(classes[unlabelled[0]] if unlabelled else None)}
    place = {"classes": {n: row(c) for n, c in classes.items()}, "mean": row(mean), "unlabelled": rest}
    return {"old": {"val": place}}


def write(folder: Path, *contents: dict[str, Any]) -> None:
    for content in contents:
        write_json(folder / "{method}_seed{seed}_gen{generation}.json".format(**content), content)


@pytest.fixture
def results(tmp_path: Path) -> Any:
    alone = {"queue": {"seeds": [0], "methods": ["distill", "frozen", "fine_tune"], "every_joint": False}}
    same = old((0.7, 0.7, 0, 0), {"a": (0.8, 0.8, 0, 0), "b": (0.6, 0.6, 0, 0)})
    replay = [
        old((0.7, 0.69, -0.03, 0.01), {"a": (0.8, 0.8, -0.01, 0.02), "b": (0.6, 0.58, -0.06, 0.02)}),
        old((0.5, 0.5, -0.01, 0.01), {"a": (0.6, 0.6, -0.02, 0.02), "b": (0.4, 0.4, -0.02, 0.02)}),
    ]
    distill = old((0.7, 0.6, -0.15, -0.05), {"a": (0.8, 0.6, -0.25, -0.1), "b": (0.6, 0.6, -0.05, 0.05)})
    write(
        tmp_path,
        result("start", 0, 1, {"a": 0.8, "b": 0.6}),
        result("start", 1, 1, {"a": 0.6, "b": 0.4}),
        result("replay", 0, 2, {"a": 0.8, "b": 0.58, "c": 0.5}, **replay[0]),
        result("replay", 1, 2, {"a": 0.6, "b": 0.4, "c": 0.4}, **replay[1]),
        result("distill", 0, 2, {"a": 0.6, "b": 0.6, "c": 0.5}, **distill, **alone),
        result("joint", 0, 2, {"a": 0.9, "b": 0.7, "c": 0.5}),
        result("joint", 1, 2, {"a": 0.9, "b": 0.7, "c": 0.5}),
        result("frozen", 0, 2, {"a": 0.8, "b": 0.6, "c": 0.1}, old_weights_unchanged=True, **same, **alone),
        result("fine_tune", 0, 2, {}, **alone | {"diverged": "the loss is not finite\nsaved", "val": None}),
    )
    return read_results(tmp_path)


def test_old_classes_and_shares_by_hand(results):
    replay = results.old_classes("replay", 2, "val")
    assert [round(one.difference, 6) for one in replay.values()] == [-1.0, 0.0]
    assert not any(one.is_loss for one in replay.values())
    name, differences = worst_class(replay)
    assert (name, differences) == ("b", pytest.approx([-2.0, 0.0]))
    rest = results.old_classes("replay", 2, "val", unlabelled=True)
    assert [round(one.difference, 6) for one in rest.values()] == [-2.0, 0.0]
    (distill,) = results.old_classes("distill", 2, "val").values()
    assert distill.is_loss
    assert distill.lost == ("a",)
    assert results.old_classes("distill", 2, "val", unlabelled=True)[0].lost == ()
    assert results.of_joint("replay", 2, "val") == pytest.approx({0: 1.0, 1: 0.8})
    assert results.by_seed("replay", 2, "val", ["a", "b", "c"])[0] == pytest.approx((80 + 58 + 50) / 3)
    assert results.by_seed("replay", 1, "val", ["a", "b"]) == pytest.approx({0: 70, 1: 50})  # start's
    assert results.by_seed("fine_tune", 2, "val", ["a"]) == {}
    assert results.places() == ["val"]


def test_classes_with_new_labels_do_not_hide_what_the_others_lose(tmp_path, monkeypatch):
    """a is labelled again in the last generation, b is not."""
    plan = Plan((("one",), ("two",), ("three",)), (("a",), ("b",), ("c",)), {})
    monkeypatch.setitem(globals(), "PLAN", plan)
    queue = {"queue": {"seeds": [0], "methods": ["distill"], "every_joint": False}}
    second = old((0.5, 0.5, 0, 0), {"a": (0.5, 0.5, 0, 0)}, ("a",))
    third = old((0.5, 0.5, -0.02, 0.02), {"a": (0.5, 0.7, 0.1, 0.3), "b": (0.5, 0.3, -0.3, -0.1)})
    write(
        tmp_path,
        result("start", 0, 1, {"a": 0.5}, **queue),
        result("distill", 0, 2, {"a": 0.5, "b": 0.5}, **queue, **second),
        result("distill", 0, 3, {"a": 0.7, "b": 0.3, "c": 0.5}, **queue, **third),
    )
    results = read_results(tmp_path)
    assert results.kept_to_end("distill", "val") == pytest.approx({0: 1.0})
    assert results.kept_to_end("distill", "val", unlabelled=True) == pytest.approx({0: 0.6})
    rows = old_grid(results, "val")[1]
    assert [row[9:11] for row in rows] == [["", "a 0.00"], ["-20.00", "b -20.00"]]
    content = as_json(results)["places"]["val"]["methods"]["distill"]
    assert content["old_unlabelled"][3][0]["difference"] == pytest.approx(-20)
    assert content["worst_class"][3]["class"] == "b"
    # in a generation that labels all old classes again there is nothing without new labels
    third = old((0.5, 0.5, 0, 0), {"a": (0.5, 0.7, 0, 0), "b": (0.5, 0.3, 0, 0)}, ())
    write(tmp_path, result("distill", 0, 3, {"a": 0.7, "b": 0.3, "c": 0.5}, **queue, **third))
    old_row = old_grid(read_results(tmp_path), "val")[1][1]
    assert old_row[9] == ""


def test_tables_by_hand(results):
    rows = {row[0]: row[1:] for row in old_grid(results, "val")[1]}
    assert "fine-tuning on the newest" not in rows
    assert rows["replay"] == [
        "2", "2", "60.0 ± 14.1", "59.5 ± 13.4", "-0.50 ± 0.71", "-2.00 to +1.00", "0 of 2", "99 %",
        "-1.00 ± 1.41", "b -1.00 ± 1.41", "45.0 ± 7.1", "90 %", "",
    ]  # fmt: skip
    assert rows["distill, no old images"][6] == "1 of 1 (a)"
    assert rows["frozen"][-1] == "yes"
    means = {row[0]: row[1:] for row in mean_grid(results, "val")[1]}
    assert means["joint training on everything"][1] == "70.0 ± 0.0"
    assert class_grid(results, "val")[0][2:] == [results.title(m) for m in results.methods()]
    cells = {row[0]: dict(zip(results.methods(), row[2:], strict=True)) for row in class_grid(results, "val")[1]}
    assert cells["b"]["distill"] == "50.0 ± 14.1 → 60.0"
    assert cells["b"]["joint"] == "70.0 ± 0.0"
    assert cells["c"]["replay"] == "45.0 ± 7.1"
    assert any("fine_tune, generation 2, seed 0, diverged: the loss is not finite" in n for n in notes(results))
    assert "**Old and new classes on the validation images" in markdown(results)


@pytest.mark.parametrize(
    ("share", "weight", "note"),
    [
        ("1/4", 2, "1/4 of the old images, with each seed the next part, each 2 times as likely to be drawn as"),
        ("1/1", 1, "all old images"),
    ],
)
def test_the_share_of_replay_is_said(tmp_path, share, weight, note):
    own = {"share": share, "replay_weight": weight}
    write(tmp_path, result("start", 0, 1, {}), result("replay", 0, 2, {}, **own))
    assert any(line.startswith(f"replay sees {note}") for line in notes(read_results(tmp_path)))


def test_parts_of_the_union_test_are_a_table(tmp_path):
    parts = {"dark": {"AP50": 0.25, "per_class": {}}, "bright": {"AP50": 0.75, "per_class": {}}}
    write(tmp_path, result("start", 0, 1, {}), result("replay", 0, 2, {}, union_parts=parts))
    page = markdown(read_results(tmp_path))
    assert "by part of the union test**" in page
    assert "| replay | 25.0 | 75.0 |" in page
    assert as_json(read_results(tmp_path))["union_parts"]["dark"]["replay"][2] == {0: 25.0}


def test_classes_on_parts_of_the_union_test_are_a_table(tmp_path):
    def parts(**dark: float) -> dict[str, Any]:
        per_class = {name: {"AP50": value} for name, value in dark.items()}
        dark_part = {"AP50": 0.5, "per_class": per_class}
        return {"union_parts": {"dark": dark_part, "bright": {"AP50": None, "per_class": {}}}}

    write(
        tmp_path,
        result("start", 0, 1, {}, **parts(a=0.5, b=0.75)),
        result("replay", 0, 2, {}, **parts(a=0.125, b=0.625, c=1.0)),
    )
    header, rows = class_part_grid(read_results(tmp_path))[:2]
    assert header == ["class", "arrives", "part", "replay"]
    assert rows == [  # of the other part nothing is known
        ["a", "1", "dark", "50.0 → 12.5"],
        ["b", "1", "dark", "75.0 → 62.5"],
        ["c", "2", "dark", "100.0"],
    ]


def test_steps_are_counted_with_those_of_the_generations_before(tmp_path):
    for seed in (0, 1):
        write(
            tmp_path,
            result("start", seed, 1, {"a": 0.5}, steps=600),
            result("replay", seed, 2, {"a": 0.5}, steps=1200),
            result("joint", seed, 2, {"a": 0.5}, steps=1200),
            result("fine_tune", seed, 2, {"a": 0.5}),  # of a version that did not say
        )
    found = read_results(tmp_path)
    headers, rows = step_grid(found)[:2]
    assert headers[1:3] == ["generation 1", "generation 2"]
    assert rows == [
        [found.title("fine_tune"), "600", "", "", ""],
        [found.title("replay"), "600", "1200", "1800", "150 %"],
        [found.title("joint"), "600", "1200", "1200", "100 %"],
    ]
    assert "**Optimiser steps**" in markdown(found)


def test_steps_of_three_generations_add_up(tmp_path):
    plan = Plan((("one",), ("two",), ("three",)), (("a",), ("b",), ("c",)), {}).to_json()
    steps = {("start", 1): 10, ("replay", 2): 20, ("replay", 3): 30, ("joint", 3): 30}
    for (method, generation), many in steps.items():
        write(tmp_path, result(method, 0, generation, {}, steps=many) | {"sequence": plan})
    rows = {row[0]: row[1:] for row in step_grid(read_results(tmp_path))[1]}
    assert rows["replay"] == ["10", "20", "30", "60", "200 %"]
    assert rows["joint training on everything"] == ["10", "", "30", "30", "100 %"]


def test_lines_of_the_figure(results, tmp_path):
    lines = class_lines(results, "val", "c")
    assert lines["replay"] == {2: [50.0, 40.0]}
    assert class_lines(results, "val", ALL)["distill"][1] == pytest.approx([70, 50])
    assert class_lines(results, "val", "a")["joint"] == {2: [90.0, 90.0]}  # its first generation is everybody's
    with pytest.raises(UserError, match="nothing was measured on union; it has: val"):
        draw_generations(results, tmp_path / "x.png", "union")
    with pytest.raises(UserError, match=r"expected a file name that ends in \.png"):
        draw_generations(results, tmp_path / "x.gif")


def test_results_that_cannot_be_read_together(tmp_path):
    own = {"share": "1/2", "extend_overrides": ["train.lr=0.1"]}
    write(tmp_path, result("start", 0, 1, {}), result("distill", 0, 2, {}), result("replay", 0, 2, {}, **own))
    found = notes(read_results(tmp_path))  # each method has settings of its own
    assert "settings other than the config's, of replay: train.lr=0.1" in found
    assert not any("of distill" in note for note in found)
    write(tmp_path, result("replay", 1, 2, {}, **own | {"share": "1/4"}))
    with pytest.raises(UserError, match=r"replay_seed1_gen2\.json has another share than the others of replay"):
        read_results(tmp_path)
    write(tmp_path, result("replay", 1, 2, {}, **own | {"overrides": ["train.epochs=1"]}))
    with pytest.raises(UserError, match=r"replay_seed1_gen2\.json has another overrides than the others "):
        read_results(tmp_path)
    write_json(tmp_path / "replay_seed0_gen2.json", {"tool": "another"})
    with pytest.raises(UserError, match=r"not a result of `crossdet-research lifelong run`"):
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
    assert text.startswith("![AP50 over the generations](images/lifelong_toys.png)\n\n<details>")
    assert "### Lifelong sequence toys" in text
    assert (tmp_path / "images/lifelong_toys.png").exists()
