"""The ablation's tables, differences and figures, from made-up JSONs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crossdet.errors import UserError
from crossdet.files import write_json
from crossdet_research.ablation.figures import curve_points, draw_learning_curves, draw_sweep, sweep_points
from crossdet_research.ablation.methods import FURTHER
from crossdet_research.ablation.results import (
    EXPERTS,
    UNION_AP,
    differences,
    read_all,
    read_results,
    recovered,
    recovered_share,
    sections,
    value_at,
)
from crossdet_research.ablation.tables import (
    as_json,
    damage_grid,
    grid,
    markdown,
    recovered_text,
    sweep_grid,
    sweep_markdown,
)
from crossdet_research.paired import COLUMNS


def summary_of(parts: dict[str, list[str]], conflict: float = 1.0, look: str = "original") -> dict[str, Any]:
    rows = {
        name: {"classes": c, "look": "original", "images": 10 + 5 * i} for i, (name, c) in enumerate(parts.items())
    }
    rows[next(reversed(rows))]["look"] = look
    return {"parts": rows, "conflict": conflict, "conflict_by": "choose", "val_images": 4, "seed": 0}


APART = summary_of({"left": ["a"], "right": ["b", "c"]}, look="grey_dark")
SHARED = summary_of({"left": ["a", "b"], "right": ["b", "c"]})


# ------------------------------------------------------------------------------------------- differences


def test_the_recovered_share_and_when_it_is_undefined() -> None:
    naive, reference = {0: 10.0, 1: 12.0, 2: 14.0}, {0: 20.0, 1: 22.0, 2: 24.0}
    found = recovered_share(naive, {0: 18.0, 1: 20.0, 2: 22.0, 3: 0.0}, reference)
    assert found["share"] == pytest.approx(0.8)
    assert (found["seeds"], found["gap"]) == ([0, 1, 2], 10)
    # gaps of 2, 3 and 7: mean 4, standard deviation 2.65, t = 2.62 where 4.30 is needed
    close = recovered_share(naive, naive, {0: 12.0, 1: 15.0, 2: 21.0})
    assert close["share"] is None
    assert close["why"] == "the gap of +4.0 (-2.6 to +10.6, 3 seeds) may be none"
    # 3, 4 and 5: t = 6.93
    assert recovered_share(naive, naive, {0: 13.0, 1: 16.0, 2: 19.0})["share"] == 0
    worse = recovered_share(reference, naive, naive)
    assert (worse["share"], worse["why"]) == (None, "there is no gap: -10.0 (-10.0 to -10.0, 3 seeds)")
    two = recovered_share({0: 10.0, 1: 12.0}, naive, reference)
    assert (two["share"], two["why"]) == (None, "the gap of +10.0 (2 seeds: not judged) is not judged")
    assert recovered_share({0: 1.0}, {0: 2.0}, {0: 9.0})["why"] == "the gap of +8.0 (1 seed) is not judged"
    assert recovered_share({}, {0: 2.0}, {0: 9.0})["why"] == "not all three have been run"


# ------------------------------------------------------------------------------------------- tables


def result(
    method: str, seed: int, ap: float | None, summary: dict[str, Any], split: str = "toys"
) -> dict[str, Any]:
    """A JSON as the queue writes it, with the numbers that matter here; ap None: it diverged."""
    part = method.removeprefix("expert_")
    known = (
        summary["parts"][part]["classes"]
        if part != method
        else sorted({c for p in summary["parts"].values() for c in p["classes"]})
    )
    looks = list(dict.fromkeys(p["look"] for p in summary["parts"].values()))
    union = None if ap is None else {
        "complete": part == method, "AP": ap, "AP50": ap + 0.2, "pooled_AP50": None,
        "per_class": {c: {"AP": ap, "AP50": ap + 0.2} for c in known},
        "per_look": {look: {"per_class": {c: {"AP50": ap} for c in known}} for look in looks},
    }  # fmt: skip
    trained = [part] if part != method else list(summary["parts"])
    curve = [{"epoch": e, "step": 10 * e, "datasets": dict.fromkeys(trained, e * (ap or 0) / 2)} for e in (1, 2)]
    return {
        "tool": "crossdet ablation", "split": split, "summary": summary, "method": method, "title": method,
        "seed": seed, "steps": 20, "diverged": "the loss is not finite at step 9" if ap is None else None,
        "union": union, "protocols": {} if ap is None else dict.fromkeys(trained, ap), "curve": curve,
        "training_seconds": 120.0, "overrides": ["train.lr=0.04"],
        "stability": {"gradient_norm_median": None, "loss_spikes": 1, "clipped": 0.5},
        "hardware": {"cpus": 2, "gpu": None},
    }  # fmt: skip


def write_results(folder: Path, values: dict[str, list[float | None]], summary: dict[str, Any]) -> Path:
    for method, many in values.items():
        for seed, ap in enumerate(many):
            write_json(folder / f"{method}_seed{seed}.json", result(method, seed, ap, summary, folder.name))
    return folder


VALUES: dict[str, list[float | None]] = {
    "naive": [0.10, 0.12, 0.11],
    "aware": [0.18, 0.20, 0.19],
    "same_positives": [0.20, 0.22, 0.21],
    "full": [0.3, None],
    "expert_left": [0.4],
    "expert_right": [0.1],
}


def cell(text: tuple[list[str], list[list[str]]], row: str, column: str) -> str:
    headers, rows = text[:2]
    return next(line for line in rows if line[0] == row)[headers.index(column)]


def test_tables_show_mean_spread_and_blanks(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "toys", VALUES, APART))
    shown = {s.key: s for s in sections(found)}
    scores = grid(found, shown["scores"])
    assert cell(scores, "naive concatenation", "union AP") == "11.0 ± 1.0"
    assert cell(scores, "naive concatenation", "seeds") == "3"
    assert cell(scores, "reference: full labels", "union AP") == "30.0"
    assert cell(scores, "reference: full labels", "seeds") == "1 (1 diverged)"
    assert cell(scores, "aware without foreground negatives", "union AP") == ""
    # every part and class by its expert; the mean over the classes a, b, c
    together = found.title(EXPERTS)
    assert (cell(scores, together, "left"), cell(scores, together, "right")) == ("40.0", "10.0")
    assert cell(scores, together, "union AP") == "20.0"
    training = grid(found, shown["training"])
    assert cell(training, "expert: left", "minutes of steps") == "2.0"
    assert "gradient norm, median" not in training[0]  # nobody has one
    looks = grid(found, shown["looks"])[0]
    assert {"a, original", "a, grey_dark *", "b, original *", "c, grey_dark"} <= set(looks)
    assert "calibration" in shown
    assert "confidence" not in shown  # these JSONs hold no such number
    text = markdown(found)
    assert "80 % (3 seeds; gap 10.0)" in text
    assert "| aware - naive | union AP | +8.0 ± 0.0 | 3 | +8.0 to +8.0 | yes |" in text
    assert "| full - same_positives | union AP | +10.0 | 1 (of 1 and 3) |  |  |" in text
    assert "| aware - experts | union AP | -2.0 | 1 (of 3 and 1) |  |  |" in text
    assert "full, seed 1, diverged: the loss is not finite at step 9" in text
    assert "naive stands for naive_merged, too" in text
    assert "settings other than the split's: train.lr=0.04" in text
    content = json.loads(json.dumps(as_json(found)))
    assert content["tables"]["scores"]["rows"]["naive"]["union AP"]["seeds"] == {"0": 10.0, "1": 12.0, "2": 11.0}
    first = content["differences"][0]
    assert (first["a"], first["b"], first["of"], first["verdict"]) == ("aware", "naive", "union AP", "yes")
    assert content["recovered"]["share"] == pytest.approx(0.8)


def test_half_of_the_experts_make_no_union(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "toys", {"naive": [0.1], "expert_left": [0.4]}, APART))
    scores = grid(found, sections(found)[0])
    assert cell(scores, found.title(EXPERTS), "left") == "40.0"
    assert cell(scores, found.title(EXPERTS), "right") == ""
    assert cell(scores, found.title(EXPERTS), "union AP") == ""
    assert recovered_text(found).endswith("undefined: not all three have been run")


def test_foreign_files_and_mixed_splits_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result"):
        read_results(tmp_path)
    folder = write_results(tmp_path / "toys", {"naive": [0.1]}, APART)
    write_json(folder / "aware_seed0.json", result("aware", 0, 0.2, SHARED))
    with pytest.raises(UserError, match="of another split"):
        read_results(folder)
    write_json(folder / "aware_seed0.json", {"method": "aware"})
    with pytest.raises(UserError, match=r"aware_seed0\.json: not a result"):
        read_results(folder)


def test_settings_of_teachers_are_compared_among_those_who_have_some(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "toys", {"aware": [0.1], "expert_left": [0.2]}, APART)

    def write(method: str, *overrides: str) -> None:
        content = {**result(method, 0, 0.3, APART), "overrides": list(overrides)}
        write_json(folder / f"{method}_seed0.json", content)

    write("aware_pseudo", "train.lr=0.04", "pseudo.beta=0.5")
    write("aware_pseudo_self_positives", "train.lr=0.04", "pseudo.beta=0.5")
    text = markdown(read_results(folder))
    assert "settings other than the split's: train.lr=0.04\n" in text
    assert "of methods with teachers also: pseudo.beta=0.5\n" in text
    write("aware_pseudo_self_positives", "train.lr=0.04")
    with pytest.raises(
        UserError, match=r"self_positives_seed0\.json was made with --set nothing, others with \['pseudo\.beta"
    ):
        read_results(folder)
    write("aware_pseudo_self_positives", "pseudo.beta=0.5")
    with pytest.raises(UserError, match=r"self_positives_seed0\.json was made with --set nothing, others"):
        read_results(folder)


def test_taught_methods_with_their_differences_and_the_steps_of_their_teachers(tmp_path: Path) -> None:
    values: dict[str, list[float | None]] = {"aware": [0.2], "same_positives": [0.25], "expert_left": [0.1]}
    folder = write_results(tmp_path / "toys", values, APART)
    training = next(s for s in sections(read_results(folder)) if s.key == "training")
    assert "steps with teachers" not in [*(c.title for c in training.columns), training.note]
    scores = {
        "aware_pseudo": 0.3, "aware_pseudo_positives": 0.28, "aware_pseudo_self": 0.26,
        "aware_pseudo_self_positives": 0.21,
    }  # fmt: skip
    for method, ap in scores.items():
        more = {} if "self" in method else {"steps_with_teachers": 60}
        write_json(folder / f"{method}_seed0.json", {**result(method, 0, ap, APART), **more})
    found = read_results(folder)
    assert found.methods()[-4:] == [m.name for m in FURTHER if m.name in scores]
    training = next(s for s in sections(found) if s.key == "training")
    shown = grid(found, training)
    for method, steps in (
        ("aware, labels by the experts", "60"),
        ("aware, labels by itself", ""),
        ("aware (paper)", ""),
    ):
        assert (cell(shown, method, "steps"), cell(shown, method, "steps with teachers")) == ("20", steps)
    assert "steps with teachers: " in training.note
    gaps = {(a, b): d.mean for a, b, column, d in differences(found) if column == UNION_AP}
    assert gaps[("aware_pseudo_positives", "aware")] == pytest.approx(8)
    assert gaps[("aware_pseudo_self_positives", "aware")] == pytest.approx(1)
    assert gaps[("aware_pseudo", "aware_pseudo_self")] == pytest.approx(4)
    assert gaps[("aware_pseudo_self", "same_positives")] == pytest.approx(1)
    assert gaps[("aware_pseudo", "aware_pseudo_positives")] == pytest.approx(2)


# ------------------------------------------------------------------------------------------- figures


def test_the_sweep_over_conflict(tmp_path: Path) -> None:
    for look in ("original", "grey_dark"):
        for conflict in (0.0, 0.5):
            summary = summary_of({"left": ["a"], "right": ["b"]}, conflict, look)
            values = {
                "naive": [0.3 - conflict / 5, 0.32 - conflict / 5],
                "aware": [0.3],
                "same_positives": [0.31, 0.33],
            }
            write_results(tmp_path / f"{look}_{conflict:g}", values, summary)  # type: ignore[arg-type]
    splits = read_all(tmp_path)
    assert [one.summary["conflict"] for one in splits] == [0, 0, 0.5, 0.5]
    headers, rows = sweep_grid(splits)[:2]
    assert [row[0] for row in rows] == ["original_0", "original_0.5", "grey_dark_0", "grey_dark_0.5"]
    assert rows[1][headers.index("naive")] == "21.0 ± 1.4"
    assert rows[1][headers.index("full")] == ""
    assert rows[0][headers.index("recovered")] == "undefined"
    assert rows[1][headers.index("aware - naive")] == "+10.0 (1 seed)"
    assert damage_grid(splits)[1][0][2:] == ["0 to 50", "-10.0 ± 0.0", "2", "", "2 seeds: not judged"]
    assert "**What more conflict changes in union AP of naive training**" in sweep_markdown(splits)
    one_look = [one for one in splits if one.looks == ["original"]]
    assert sweep_points(one_look, "naive") == {0: [30, 32], 50: pytest.approx([20, 22])}
    draw_sweep(splits, tmp_path / "sweep.png")
    width, height = Image.open(tmp_path / "sweep.png").size
    assert width > 2 * height * 0.9  # two panels
    with pytest.raises(UserError, match=r"ends in \.png"):
        draw_sweep(splits, tmp_path / "sweep.txt")
    with pytest.raises(UserError, match="no results"):
        read_all(tmp_path / "nothing")


def test_more_conflict_is_judged_level_by_level_and_between_the_ends(tmp_path: Path) -> None:
    parts = {"left": ["a"], "right": ["b"]}
    for conflict, values in ((0.0, [0.3, 0.31, 0.35]), (0.5, [0.29, 0.31, 0.34]), (1.0, [0.2, 0.21, 0.25])):
        write_results(tmp_path / f"at_{conflict:g}", {"naive": list(values)}, summary_of(parts, conflict))
    headers, rows = damage_grid(read_all(tmp_path))[:2]
    assert headers[2:] == ["conflict, %", *COLUMNS]
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        ("at_0.5", "0 to 50", "no"), ("at_1", "50 to 100", "yes"), ("at_1", "0 to 100", "yes"),
    ]  # fmt: skip


def test_one_ranking_stands_beside_the_mean_weighted_by_objects(tmp_path: Path) -> None:
    run = result("naive", 0, 0.1, APART)
    boxes = {"a": (90, 0.5), "b": (10, 0.1), "c": (0, None)}
    run["union"]["per_class"] = {c: {"AP": ap, "AP50": ap, "boxes": n} for c, (n, ap) in boxes.items()}
    write_json(tmp_path / "toys" / "naive_seed0.json", run)
    found = read_results(tmp_path / "toys")
    shown = next(grid(found, s) for s in sections(found) if s.key == "calibration")
    assert cell(shown, "naive concatenation", "AP50, mean weighted by objects") == "46.0"  # 0.9 * 50 + 0.1 * 10


def test_loss_spikes_are_blank_where_no_loss_was_judged() -> None:
    path = ("stability", "loss_spikes")
    assert value_at({"stability": {"loss_spikes": 0, "losses_judged": 3}}, path) == 0
    assert value_at({"stability": {"loss_spikes": 0, "losses_judged": 0}}, path) is None
    assert value_at({"stability": None}, path) is None


def test_some_tables_alone_without_what_was_not_run(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "toys", {"naive": [0.1], "aware": [0.2]}, APART))
    text = markdown(found, only=("training",))
    assert text.startswith("**Training**")
    assert "naive concatenation | 1 |" in text
    assert "full labels" not in text
    assert "**AP" not in text
    assert "Differences" not in text


@pytest.mark.parametrize("parts", [{"left": ["a"], "right": ["b"]}, {"left": ["a", "b"], "right": ["b"]}])
def test_levels_by_marks_share_their_trainings(tmp_path: Path, parts: dict[str, list[str]]) -> None:
    come = {**summary_of(parts, 0.9), "conflict_wanted": 1.0}
    values: dict[str, list[float | None]] = {"aware": [0.3, 0.31], "same_positives": [0.28], "full": [0.5]}
    naive = "naive_merged" if "b" in parts["left"] else "naive"  # where b is shared, `naive` is another training
    write_results(tmp_path / "all", {**values, "naive": [0.01], naive: [0.2]}, come)
    half = {**come, "conflict": 0.5, "conflict_by": "mark", "conflict_wanted": 0.5}
    write_results(tmp_path / "half", {naive: [0.24, 0.26]}, half)
    write_results(tmp_path / "painted", {"naive": [0.1]}, {**half, "conflict_by": "erase"})
    headers, rows = sweep_grid(read_all(tmp_path))[:2]
    shown = {row[0]: dict(zip(headers, row, strict=True)) for row in rows}
    assert list(shown) == ["all, all marked", "half", "painted", "all"]
    assert [shown[name]["naive"] for name in shown] == ["28.0", "25.0 ± 1.4", "10.0", "20.0"]
    for name in ("all, all marked", "half", "all"):
        assert (shown[name]["aware"], shown[name]["same_positives"]) == ("30.5 ± 0.7", "28.0")
    assert (shown["painted"]["aware"], shown["painted"]["full"]) == ("", "")
    draw_sweep(read_all(tmp_path), tmp_path / "sweep.png")


def test_seeds_of_several_levels_are_put_together(tmp_path: Path) -> None:
    come = {**summary_of({"left": ["a"], "right": ["b"]}), "conflict_wanted": 1.0}
    half = {**come, "conflict": 0.5, "conflict_by": "mark", "conflict_wanted": 0.5}
    write_results(tmp_path / "all", {"aware": [0.3]}, come)
    write_results(tmp_path / "half", {"aware": [0.3, 0.32]}, half)
    headers, rows = sweep_grid(read_all(tmp_path))[:2]
    assert [row[headers.index("aware")] for row in rows] == ["31.0 ± 1.4", "31.0 ± 1.4"]


def test_marks_of_another_deal_share_nothing(tmp_path: Path) -> None:
    come = {**summary_of({"left": ["a"], "right": ["b"]}), "conflict_wanted": 1.0}
    write_results(tmp_path / "all", {"aware": [0.3], "same_positives": [0.28]}, come)
    half = {**come, "conflict": 0.5, "conflict_by": "mark", "seed": 1}
    write_results(tmp_path / "half", {"naive": [0.24]}, half)
    headers, rows = sweep_grid(read_all(tmp_path))[:2]
    assert [(row[0], row[headers.index("aware")]) for row in rows] == [("half", ""), ("all", "30.0")]


def test_learning_curves(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "toys", VALUES, APART))
    assert curve_points(found.runs["naive"], "left") == {10: [5, 6, 5.5], 20: [10, 12, 11]}
    assert curve_points(found.runs["expert_left"], "right") == {}
    draw_learning_curves(found, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000
    assert recovered(found)["share"] == pytest.approx(0.8)
