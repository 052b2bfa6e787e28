"""The ablation: its measures by hand, its methods and configs, its tables and figures from made-up JSONs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.errors import ConfigError, Diverged, UserError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.operating import judge
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.union import UnionTest
from crossdet.files import write_json
from crossdet_research import jobs
from crossdet_research.ablation.measure import (
    calibration_error,
    folded,
    learning_curve,
    loss_spikes,
    open_test,
    own_numbers,
    pooled_ap50,
    recall_at_precision,
    stability,
    training_seconds,
    union_ids,
    union_measures,
)
from crossdet_research.ablation.methods import FURTHER, METHODS, chosen_methods, expert, methods_of, stands_for
from crossdet_research.ablation.queue import AblationJob, SplitFolder, open_split_folder, resolve, run_ablation

# ------------------------------------------------------------------------------------------- single numbers


def flags(*values: int) -> np.ndarray:
    return np.array(values, bool)


def test_recall_at_precision_by_hand() -> None:
    scores, hits = np.array([0.6, 0.9, 0.7, 0.8]), flags(1, 1, 0, 1)  # by score: hit, hit, miss, hit
    assert recall_at_precision(scores, hits, 4, 0.9) == 0.5  # precisions 1, 1, 2/3, 3/4
    assert recall_at_precision(scores, hits, 4, 0.75) == 0.75  # a later threshold may be better again
    assert recall_at_precision(np.array([0.9, 0.9]), flags(1, 0), 2) == 0  # no threshold between equal scores
    assert recall_at_precision(np.zeros(0), flags(), 3) == 0
    assert np.isnan(recall_at_precision(scores, hits, 0))


def test_calibration_error_by_hand() -> None:
    scores, hits = np.array([0.15, 0.15, 0.95]), flags(0, 1, 1)
    # bin 1: |0.15 - 1/2| for two of three; bin 9: |0.95 - 1| for one of three
    assert calibration_error(scores, hits) == pytest.approx(2 / 3 * 0.35 + 1 / 3 * 0.05)
    assert calibration_error(np.array([1.0, 1.0]), flags(1, 1)) == 0
    assert np.isnan(calibration_error(np.zeros(0), flags()))


def test_pooled_ap_by_hand_and_of_one_class_as_coco_has_it() -> None:
    scores, hits = np.array([0.9, 0.8, 0.7]), flags(1, 0, 1)
    assert pooled_ap50(scores, hits, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert pooled_ap50(scores, hits, 4) == pytest.approx((26 + 25 * 2 / 3) / 101)  # two are never found
    assert pooled_ap50(np.zeros(0), flags(), 2) == 0
    rng = np.random.default_rng(0)
    boxes = np.array([[20.0 * i, 0, 20 * i + 10, 10] for i in range(12)])
    truth = truth_of(boxes, np.zeros(12, int), np.arange(12) % 3)
    rows = rng.integers(0, 12, 30)
    moved = boxes[rows] + rng.choice([0.0, 100.0], (30, 1))
    found = DetectionArrays(moved, rng.random(30), np.zeros(30, int), truth.image_of_box[rows])
    judged = judge(truth, found, [0])
    ours = pooled_ap50(judged.scores, judged.hits, 12)
    assert ours == pytest.approx(coco_scores(truth, found, [0]).scores["AP50"])


def test_scores_that_do_not_mean_the_same_cost_the_pooled_ap_only() -> None:
    """Each class ranks its own detections perfectly; one scores its errors above the other's hits."""
    scores, hits = np.array([0.9, 0.8, 0.3, 0.2]), flags(1, 0, 1, 0)
    assert [pooled_ap50(scores[r], hits[r], 1) for r in ([0, 1], [2, 3])] == [1, 1]
    assert pooled_ap50(scores, hits, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_loss_spikes_by_hand() -> None:
    losses = np.ones(40)
    losses[[5, 25, 30]] = 9.0, 3.1, 3.0  # too early; a spike; three times is not above three times
    assert loss_spikes(losses) == 1
    assert loss_spikes(losses[:20]) == 0
    assert loss_spikes(np.array([2.0] * 20 + [6.1, 6.1])) == 2


def rows_of(losses: list[float], norms: list[str], per_epoch: int) -> list[dict[str, str]]:
    return [
        {
            "step": str(i + 1),
            "epoch": str(i // per_epoch + 1),
            "loss": str(loss),
            "gradient_norm": norm,
            "images_per_second": str(10.0 * (i // per_epoch + 1)),
        }
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def test_stability_looks_at_epochs_that_begin_after_the_warm_up() -> None:
    losses = [1.0] * 5 + [50.0] * 5 + [1.0] * 25 + [4.0] + [1.0] * 4  # ten steps per epoch; a wild warm-up
    rows = rows_of(losses, [str(float(i)) for i in range(40)], 10)
    found = stability(rows, 1.0, 29.5)
    assert found["loss_spikes"] == 1
    assert found["losses_judged"] == 10
    assert found["loss_max_after_warmup"] == 4
    assert (found["gradient_norm_median"], found["gradient_norm_max"]) == (19.5, 39)
    assert found["gradient_norm_p99"] == pytest.approx(38.61)
    assert found["clipped"] == 0.25
    assert stability(rows, 1.5, None)["losses_judged"] == 0  # the warm-up ends inside the second epoch
    silent = stability(rows_of([1.0], [""], 1), 0, None)
    assert silent["gradient_norm_median"] is None
    assert silent["clipped"] is None


def test_seconds_and_curve_of_a_run() -> None:
    epochs = [
        {"epoch": 1, "step": 2, "datasets": {"left": {"images": 30}, "right": {"images": 10}}},
        {
            "epoch": 2,
            "step": 4,
            "datasets": {"left": {"images": 40}},
            "metrics": {"datasets": {"left": {"per_class": {"a": {"AP": 0.5}, "b": {"AP": 0.1}}}}},
        },
    ]
    assert training_seconds(rows_of([1.0] * 4, [""] * 4, 2), epochs) == 40 / 10 + 40 / 20
    parts = {"left": {"classes": ["a"]}}
    assert learning_curve(epochs, parts) == [{"epoch": 2, "step": 4, "datasets": {"left": 0.5}}]


def test_a_part_is_judged_by_its_own_classes() -> None:
    """The references are scored on all classes, unmerged models under other names."""
    parts = {"left": {"classes": ["a", "b"]}, "right": {"classes": ["b", "c"]}}
    metrics = {
        "datasets": {
            "left": {"per_class": {"a": {"AP": 0.4}, "left/b": {"AP": 0.2}, "c": {"AP": 0.9}}},
            "right": {"per_class": {"b": {"area": 0.5}, "c": {"area": float("nan")}}},
        }
    }
    assert own_numbers(metrics, parts) == {"left": pytest.approx(0.3), "right": 0.5}
    assert own_numbers({}, parts) == {}


# ------------------------------------------------------------------------------------------- union test


def truth_of(boxes: Any, labels: Any, images: Any) -> GroundTruth:
    boxes = np.asarray(boxes, np.float64)
    return GroundTruth(
        image_ids=np.arange(int(max(images)) + 1),
        boxes=boxes,
        labels=np.asarray(labels),
        crowd=np.zeros(len(boxes), bool),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        image_of_box=np.asarray(images),
    )


def test_unmerged_classes_become_one() -> None:
    parts = {"red", "white"}
    names = ["red/a", "white/a", "b", "red/x", "blue/a", "d/e"]
    assert union_ids(names, ["a", "b", "d/e"], parts).tolist() == [0, 0, 1, -1, -1, 2]


def test_folding_keeps_the_better_of_two_on_one_object() -> None:
    ids = np.array([0, 0, 1, -1])
    box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]
    found = DetectionArrays(
        np.array([box, near, far, box, box, near], float),
        np.array([0.5, 0.6, 0.4, 0.3, 0.9, 0.2]),
        np.array([0, 1, 1, 2, 3, 1]),
        np.array([0, 0, 0, 0, 0, 1]),
    )
    kept = folded(found, ids, 0.5)
    # the first is the second once more; class 3 is unknown; another class and another image stay
    assert kept.scores.tolist() == [0.6, 0.4, 0.3, 0.2]
    assert kept.labels.tolist() == [1, 1, 2, 1]  # still the detector's, for its thresholds
    assert len(folded(found, np.array([0, 1, 2, -1]), 0.5).scores) == 5  # nothing is shared: nothing is dropped


def two_looks() -> UnionTest:
    """One picture with an `a` and a `b`, in colour, where `a` is labelled, and in grey, where `b` is."""
    boxes = [[0, 0, 20, 20], [40, 0, 60, 20]]
    index = IndexBuilder("").build(("a", "b"))
    home = {"colour": frozenset("a"), "grey": frozenset("b")}
    return UnionTest(
        index, truth_of(boxes * 2, [0, 1, 0, 1], [0, 0, 1, 1]), ("a", "b"), np.array(["colour", "grey"]), home
    )


def test_union_measures_by_hand() -> None:
    """Found: `a` in colour (0.9), `b` in grey (0.8), `a` in grey weakly (0.2); `b` fires on the `a` in colour (0.4)
    and in the background of grey (0.35)."""
    a, b = [0, 0, 20, 20], [40, 0, 60, 20]
    found = DetectionArrays(
        np.array([a, b, a, a, [0, 50, 20, 70]], float),
        np.array([0.9, 0.8, 0.2, 0.4, 0.35]),
        np.array([0, 1, 0, 1, 1]),
        np.array([0, 1, 1, 0, 1]),
    )
    no = np.zeros((2, 2), bool)
    m = union_measures(two_looks(), found, np.array([0, 1]), np.array([0.3, 0.38]), no)
    assert m["complete"]
    half = 51 / 101  # precision 1 up to a recall of 0.5, at 101 recalls
    assert m["per_class"]["a"]["AP50"] == pytest.approx(1)
    assert m["per_class"]["b"]["AP50"] == pytest.approx(half)
    assert m["AP50"] == pytest.approx((1 + half) / 2)
    cells = {(look, c): row for look, r in m["per_look"].items() for c, row in r["per_class"].items()}
    assert {key for key, row in cells.items() if row["home"]} == {("colour", "a"), ("grey", "b")}
    assert (m["home_AP50"], m["foreign_AP50"]) == (pytest.approx(1), pytest.approx(0.5))
    assert (m["home_found_confidently"], m["foreign_found_confidently"]) == (1, 0)
    assert m["recall_at_precision"] == pytest.approx((1 + 0.5) / 2)
    assert m["found_confidently"] == 0.5
    assert m["best_score"] == pytest.approx((0.9 + 0.2 + 0.8 + 0) / 4)
    # of two images: above 0.3 one `b` on an `a` and one elsewhere; above its own 0.38 only the first
    assert m["false_positives"]["confident"] == {"on_other_objects": 0.5, "elsewhere": 0.5}
    assert m["false_positives"]["own_threshold"] == {"on_other_objects": 0.5, "elsewhere": 0}
    # best F1: `a` with both (0.2 and the floor 0.05), `b` with the first alone (0.8 and 0.4)
    assert m["threshold_range"] == pytest.approx(0.6 - 0.125)
    assert m["calibration_error"] == pytest.approx(((0.1 + 0.8) / 2 + (0.2 + 0.4 + 0.35) / 3) / 2)
    # one ranking: hit .9, hit .8, miss .4, miss .35, hit .2; of four objects
    assert m["pooled_AP50"] == pytest.approx((51 + 25 * 3 / 5) / 101)
    # an object that both classes may share is no "other object"
    shared = union_measures(two_looks(), found, np.array([0, 1]), np.array([0.3, 0.38]), ~no)
    assert shared["false_positives"]["confident"] == {"on_other_objects": 0, "elsewhere": 1}


def test_the_union_test_is_read_with_its_looks(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path)
    for number, look in enumerate(("original", "grey_dark"), 1):
        builder.image(f"{look}/val/x.png", 8, 8, image_id=number)
        builder.box((1, 1, 5, 5), number)
    (tmp_path / "test").mkdir()
    (tmp_path / "images").mkdir()
    write_coco(builder.build(("a", "b", "c")), tmp_path / "test/all.json")
    test = open_test(tmp_path, APART["parts"])
    assert test.domain_of.tolist() == ["original", "grey_dark"]
    assert test.labelled_in == {"original": {"a"}, "grey_dark": {"b", "c"}}
    assert test.truth.labels.tolist() == [1, 2]


def test_an_expert_is_measured_on_what_it_knows() -> None:
    found = DetectionArrays(np.array([[0, 0, 20, 20]], float), np.array([0.9]), np.zeros(1, int), np.zeros(1, int))
    m = union_measures(two_looks(), found, np.array([0]), np.array([0.3]), np.zeros((1, 1), bool))
    assert not m["complete"]
    assert list(m["per_class"]) == ["a"]
    assert m["AP50"] == pytest.approx(51 / 101)


# ------------------------------------------------------------------------------------------- methods


def summary_of(parts: dict[str, list[str]], conflict: float = 1.0, look: str = "original") -> dict[str, Any]:
    rows = {
        name: {"classes": c, "look": "original", "images": 10 + 5 * i} for i, (name, c) in enumerate(parts.items())
    }
    rows[next(reversed(rows))]["look"] = look
    return {"parts": rows, "conflict": conflict, "conflict_by": "choose", "val_images": 4, "seed": 0}


APART = summary_of({"left": ["a"], "right": ["b", "c"]}, look="grey_dark")
SHARED = summary_of({"left": ["a", "b"], "right": ["b", "c"]})


def test_without_shared_classes_merging_is_no_experiment() -> None:
    said: list[str] = []
    assert [m.name for m in methods_of(APART)] == [
        "naive", "aware", "same_positives", "full", "aware_no_foreground", "expert_left", "expert_right",
    ]  # fmt: skip
    assert [m.name for m in methods_of(SHARED)][:7] == [m.name for m in METHODS]
    names = [m.name for m in chosen_methods(["naive_merged", "naive", "expert"], APART, said.append)]
    assert names == ["naive", "expert_left", "expert_right"]
    assert said == ["no class is labelled by several parts: naive_merged is the same training as naive"]
    assert stands_for(METHODS[0], APART) == ["naive", "naive_merged"]
    assert stands_for(METHODS[0], SHARED) == ["naive"]
    marked = {**SHARED, "conflict_by": "mark"}  # the marks are of merged classes
    assert "naive" not in [m.name for m in methods_of(marked)]
    assert [m.name for m in chosen_methods(["naive", "aware"], marked, said.append)] == ["naive_merged", "aware"]
    assert said[1] == "marked objects are regions of merged classes: naive is the same training as naive_merged"
    with pytest.raises(UserError, match=r"(?s)--methods awre: unknown method; did you mean `aware`.*--methods x"):
        chosen_methods(["awre", "x"], SHARED, said.append)


def split_folder(root: Path, summary: dict[str, Any]) -> SplitFolder:
    for name in ("naive", "aware", "expert_right"):
        parts = ["right"] if name == "expert_right" else list(summary["parts"])
        content = {
            "datasets": {
                p: {"format": "coco", "train": {"images": "images", "annotations": f"{p}/train.json"}}
                for p in parts
            },
            "labels": {"merge": {"same_names": True}},
            "train": {
                "recipe": "paper",
                "epochs": 6,
                "steps": [4.0, 5.0],
                "warmup_epochs": 0.5,
                "plain": name == "naive",
            },
            "union_test": {"format": "coco", "images": "images", "annotations": "test/all.json"},
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    write_json(root / "split.json", {"tool": "crossdet split", "complete": True, "wrote": ["images"], **summary})
    return open_split_folder(root)


def test_configs_of_the_methods(tmp_path: Path) -> None:
    split = split_folder(tmp_path, SHARED)
    assert split.summary == SHARED
    by_name = {m.name: m for m in METHODS}
    assert resolve(split, by_name["naive"], 3).labels.distinct == ("b",)
    assert resolve(split, by_name["naive"], 3).train.plain
    assert resolve(split, by_name["naive"], 3).seed == 3
    assert resolve(split, by_name["naive_merged"], 0).labels.distinct == ()
    assert resolve(split, by_name["aware_distinct"], 0).labels.distinct == ("b",)
    assert not resolve(split, by_name["aware_no_foreground"], 0).loss.foreground_negatives
    assert resolve(split, by_name["aware"], 0).loss.foreground_negatives
    # 25 images of 15: as many optimiser steps, also of a schedule that is given
    train = resolve(split, expert("right"), 0).train
    assert (train.epochs, train.steps, train.warmup_epochs) == (10, (6.6667, 8.3333), 0.8333)
    longer = resolve(split, expert("right"), 0, ["train.epochs=12"]).train
    assert (longer.epochs, longer.steps) == (20, (6.6667, 8.3333))
    assert resolve(split, expert("right"), 0, ["train.max_steps=9"]).train.epochs == 6


def test_settings_are_compared_without_what_belongs_to_a_machine(tmp_path: Path) -> None:
    split = split_folder(tmp_path, SHARED)
    weights = tmp_path / "elsewhere" / "net.safetensors"
    one = resolve(split, METHODS[1], 0, ["train.workers=7", f"model.weights={weights}", "output=here"])
    plain = jobs.comparable(one, split.roots)
    assert str(tmp_path) not in json.dumps(plain)
    assert plain["datasets"]["left"]["train"]["annotations"] == ["SPLIT/left/train.json"]
    assert plain["model"]["weights"] == "net.safetensors"
    other = resolve(split, METHODS[1], 0, [f"model.weights={tmp_path / 'net.safetensors'}"])
    assert list(jobs.differences(plain, jobs.comparable(other, split.roots))) == []
    changed = jobs.comparable(resolve(split, METHODS[1], 0, ["train.lr=1.0"]), split.roots)
    with pytest.raises(UserError, match=r"other settings; differing: model\.weights, train\.lr"):
        jobs.check_same(changed, plain, tmp_path)


def test_taught_methods_are_run_where_they_are_named(tmp_path: Path) -> None:
    split = split_folder(tmp_path, SHARED)
    assert not {m.name for m in chosen_methods([], SHARED, print)} & {m.name for m in FURTHER}
    by_experts, by_itself = chosen_methods(["aware_pseudo", "aware_pseudo_self"], SHARED, print)
    taught = resolve(split, by_experts, 3)
    assert taught.pseudo is not None
    runs = tmp_path / "runs"
    weights = [runs / name / "model.safetensors" for name in ("expert_left_seed3", "expert_right_seed3")]
    assert taught.pseudo.teachers == tuple(weights)
    itself = resolve(split, by_itself, 3).pseudo
    assert itself is not None
    assert itself.teachers == "self"
    assert resolve(split, METHODS[1], 3).pseudo is None
    assert (taught.pseudo.negative_weight, itself.negative_weight) == (1, 0.5)
    names = ["aware_pseudo_positives", "aware_pseudo_self_positives"]
    positives = [resolve(split, method, 3).pseudo for method in chosen_methods(names, SHARED, print)]
    assert [p and p.negative_weight for p in positives] == [0, 0]
    assert [p and p.teachers for p in positives] == [taught.pseudo.teachers, "self"]


def test_overrides_of_teachers_reach_those_who_have_some(tmp_path: Path) -> None:
    split = split_folder(tmp_path, SHARED)
    words = ["pseudo.negative_weight=0.5", "train.lr=0.01"]
    for method in (METHODS[0], METHODS[1], expert("right")):
        config = resolve(split, method, 0, words)
        assert config.pseudo is None
        assert config.train.lr == 0.01
    for method in FURTHER[:2]:
        taught = resolve(split, method, 0, words).pseudo
        assert taught is not None
        assert taught.negative_weight == 0.5
    with pytest.raises(ConfigError, match="negativ_weight"):
        resolve(split, FURTHER[0], 0, ["pseudo.negativ_weight=0.5"])


def test_overrides_of_teachers_that_make_no_sense_are_told(tmp_path: Path) -> None:
    split = split_folder(tmp_path, SHARED)

    def run(names: list[str], override: str) -> None:
        run_ablation(split, tmp_path / "out", chosen_methods(names, SHARED, print), [0], [override])

    with pytest.raises(UserError, match=r"beta=2: none of the methods has teachers; name one of aware_pseudo,"):
        run(["aware", "expert"], "pseudo.beta=2")
    with pytest.raises(UserError, match=r"1 mistake.*\n.*aware_pseudo_positives has its own pseudo\.negative_w"):
        run(["aware_pseudo", "aware_pseudo_positives"], "pseudo.negative_weight=0.5")
    for override in ("pseudo.teachers=self", "pseudo={beta: 2.0}"):
        with pytest.raises(UserError, match=r"aware_pseudo has its own pseudo\.teachers; leave out one"):
            run(["aware_pseudo"], override)


def test_the_queue_has_the_teachers_before_those_who_are_taught(tmp_path: Path, monkeypatch) -> None:
    """Those without a finished run are added; where one diverged nobody is taught; a lost run is told."""
    split = split_folder(tmp_path, SHARED)
    (tmp_path / "expert_left.yaml").write_text((tmp_path / "expert_right.yaml").read_text())
    trained: list[str] = []
    finished: set[str] = set()

    def train(config: Any, run_dir: Path, what: Any) -> dict[str, Any]:
        trained.append(run_dir.name)
        if run_dir.name == "expert_right_seed1":
            raise Diverged("the loss is not finite")
        finished.add(run_dir.name)
        return {"epoch": 1, "step": 1}

    monkeypatch.setattr(jobs, "train_on", train)
    monkeypatch.setattr(jobs, "finished_record", lambda run: {"step": 1} if run.name in finished else None)
    monkeypatch.setattr(AblationJob, "result", lambda job, record, diverged: {
        "config": job.what, "summary": job.split.summary, "diverged": diverged, "overrides": job.given
    })  # fmt: skip
    said: list[str] = []
    methods = chosen_methods(["aware_pseudo", "aware", "expert_right"], SHARED, print)
    finished.add("expert_left_seed0")
    files = run_ablation(split, tmp_path / "out", methods, [0, 1], say=said.append)
    assert trained == [
        "aware_seed0", "expert_right_seed0", "aware_pseudo_seed0",
        "aware_seed1", "expert_right_seed1", "expert_left_seed1",
    ]  # fmt: skip
    assert len(files) == 6
    assert any("aware_pseudo, seed 1: it is taught by expert_left, in the queue as well" in s for s in said)
    assert any("left out; no finished training of what is to teach it: expert_right" in s for s in said)
    what = json.loads((tmp_path / "out" / tmp_path.name / "aware_pseudo_seed0.json").read_text())["config"]
    assert what["pseudo"]["teachers"] == ["expert_left_seed0", "expert_right_seed0"]
    # nothing is added for what is finished, and the same settings elsewhere are the same
    trained.clear()
    run_ablation(split, tmp_path / "out", methods[:1], [0], say=said.append)
    assert trained == []
    # another method with the same teachers, which are trained once; settings of teachers are not theirs
    trained.clear()
    both = chosen_methods(["aware_pseudo", "aware_pseudo_self", "aware"], SHARED, print)
    more = ["train.lr=0.01", "pseudo.beta=0.5"]
    out = tmp_path / "more"
    methods_with = [*both, FURTHER[2]]
    finished.clear()
    files = run_ablation(split, out, methods_with, [0], more, say=said.append)
    assert trained == [
        "aware_pseudo_self_seed0", "aware_seed0", "expert_left_seed0", "expert_right_seed0",
        "aware_pseudo_seed0", "aware_pseudo_positives_seed0",
    ]  # fmt: skip
    for file in files:
        content = json.loads(file.read_text())
        assert content["overrides"] == (more if "pseudo" in file.name else more[:1])
        assert (content["config"]["pseudo"] is not None) == ("pseudo" in file.name)
    # a teacher with a result whose run is gone would not be trained again
    finished.clear()
    (tmp_path / "out" / tmp_path.name / "aware_pseudo_seed0.json").unlink()
    with pytest.raises(UserError, match=r"its teacher expert_right has a result, .*but no finished run"):
        run_ablation(split, tmp_path / "out", methods[:1], [0], say=said.append)


def test_a_folder_without_a_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no split"):
        open_split_folder(tmp_path)
    write_json(tmp_path / "split.json", {"tool": "crossdet split", "complete": False})
    with pytest.raises(UserError, match="not written to its end"):
        open_split_folder(tmp_path)
