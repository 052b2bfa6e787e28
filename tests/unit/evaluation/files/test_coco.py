"""`crossdet score coco`: the numbers of pycocotools, and what it says about wrong files."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crossdet.evaluation.files.coco import _names

from .helpers import curves, refused, scored

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BOX = [10, 10, 20, 20]


def instances(**sections: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": BOX}],
    }
    return {**content, **sections}


def result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 5, "bbox": BOX, "score": 0.5, **changes}


def files(folder: Path, truth: Any, results: Any) -> tuple[Path, Path]:
    for name, content in (("gt.json", truth), ("dt.json", results)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "gt.json", folder / "dt.json"


def random_set(seed: int, step: float = 0.25) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Shuffled ids, ties, crowds, wrong `area`, `ignore`, degenerate boxes, on a grid of `step` pixels.

    Sizes are also 32 and 96, the bounds of small and medium, and detections half as wide as their box.
    """
    rng = np.random.default_rng(seed)
    images, categories = (rng.permutation(90)[:9] + 1).tolist(), [3, 1, 44]
    annotations: list[dict[str, Any]] = []
    for number in range(1, 46):
        box = [*(rng.integers(0, 200, 2) * step), *rng.choice([0, 8, 20.25, 32, 40, 96], 2)]
        annotations.append(
            {
                "id": number,
                "image_id": int(rng.choice(images[:7])),
                "category_id": int(rng.choice(categories)),
                "bbox": [float(v) for v in box],
                "area": float(rng.choice([box[2] * box[3], 1024, 9216, 12.5])),
                "iscrowd": int(rng.random() < 0.15),
                "ignore": int(rng.random() < 0.3),
            }
        )
    results = []
    for _ in range(150):
        near = annotations[rng.integers(len(annotations))]
        box = np.array(near["bbox"]) * [1, 1, *rng.choice([0.5, 1, 1.25], 2)]
        box[:2] += rng.integers(-8, 9, 2) * step * (rng.random() < 0.6)
        results.append(
            {
                "image_id": near["image_id"] if rng.random() < 0.9 else int(rng.choice(images)),
                "category_id": near["category_id"],
                "bbox": box.tolist(),
                "score": round(float(rng.random()), 1),
            }
        )
    truth = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": f"class {number}"} for number in [*categories, 7]],
        "annotations": annotations,
    }
    return truth, results


def pycocotools_scores(truth: Path, results: Path, most: int = 100) -> tuple[list[float], COCOeval]:
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(truth))
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(str(results)), "bbox")
        evaluator.params.maxDets = [1, min(10, most - 1), most]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist(), evaluator


@pytest.mark.parametrize("step", [0.25, 0.1])  # exact in binary, and not
@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_pycocotools(seed: int, step: float, tmp_path: Path) -> None:
    paths = files(tmp_path, *random_set(seed, step))
    record, _ = scored(tmp_path, "coco", *paths)
    want, evaluator = pycocotools_scores(*paths)
    have = [-1 if record[key] is None else record[key] for key in SCORES]
    np.testing.assert_allclose(have, want, atol=1e-9)
    precision = evaluator.eval["precision"]
    for row, number in enumerate((1, 3, 7, 44)):
        values = precision[:, :, row, 0, 2]
        if number == 7:  # no ground truth
            assert record["per_class"]["class 7"] == {"AP": None, "AP50": None, "boxes": 0}
        else:
            assert record["per_class"][f"class {number}"]["AP"] == pytest.approx(values.mean(), abs=1e-9)
            assert record["per_class"][f"class {number}"]["AP50"] == pytest.approx(values[0].mean(), abs=1e-9)


def test_classes_of_one_name_are_told_apart() -> None:
    """Also where the name that is made for one of them is that of another."""
    items = [{"name": name} for name in ("a", "a", "a (1)", "b")]
    names = _names(items, np.arange(1, 5))
    assert list(names) == [1, 2, 3, 4]
    assert len(set(names.values())) == 4
    assert (names[2], names[4]) == ("a (2)", "b")


def test_the_limit_of_detections_is_that_of_pycocotools(tmp_path: Path) -> None:
    paths = files(tmp_path, *random_set(7))
    record, printed = scored(tmp_path, "coco", *paths, "--max-detections", 3)
    _, evaluator = pycocotools_scores(*paths, 3)
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    assert record["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    assert record["AP"] < scored(tmp_path, "coco", *paths)[0]["AP"]
    assert "the best 3 detections per image and class count, also for AR100" in printed


def test_equal_scores_rank_by_image_id_not_by_the_order_of_images(tmp_path: Path) -> None:
    """Image 1 has a right detection, image 2 a wrong one of the same score: the right one comes first."""
    truth = instances(images=[{"id": 2}, {"id": 1}])
    wrong = result(image_id=2)
    record, _ = scored(tmp_path, "coco", *files(tmp_path, truth, [wrong, result()]))
    assert record["AP"] == pytest.approx(1)
    truth["annotations"][0]["image_id"] = 2
    record, _ = scored(tmp_path, "coco", *files(tmp_path, truth, [wrong, result()]))
    assert record["AP"] == pytest.approx(0.5)


def test_shuffled_results_with_different_scores_give_the_same_numbers(tmp_path: Path) -> None:
    truth, results = random_set(3)
    for row, item in enumerate(results):
        item["score"] = 0.001 * row
    first, _ = scored(tmp_path, "coco", *files(tmp_path, truth, results))
    again, _ = scored(tmp_path, "coco", *files(tmp_path, truth, results[::-1]))
    assert first == again


def test_a_missing_area_is_that_of_the_box_and_a_missing_crowd_flag_is_no_crowd(tmp_path: Path) -> None:
    record, _ = scored(tmp_path, "coco", *files(tmp_path, instances(), [result()]))
    assert record["APs"] == pytest.approx(1)
    assert record["APm"] is None


def test_numbers_as_texts_count_as_in_training(tmp_path: Path) -> None:
    def as_texts(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        keys = ("id", "image_id", "category_id", "iscrowd")
        return [{k: str(v) if k in keys and type(v) is int else v for k, v in item.items()} for item in items]

    truth, results = random_set(3)
    texts = {key: as_texts(items) for key, items in truth.items()}
    assert {one["iscrowd"] for one in texts["annotations"]} == {"0", "1"}
    record, _ = scored(tmp_path, "coco", *files(tmp_path, texts, as_texts(results)))
    assert record == scored(tmp_path, "coco", *files(tmp_path, truth, results))[0]
    for one in truth["annotations"]:
        one["iscrowd"] = bool(one["iscrowd"])
    assert record == scored(tmp_path, "coco", *files(tmp_path, truth, results))[0]


def test_no_results_score_zero(tmp_path: Path) -> None:
    record, printed = scored(tmp_path, "coco", *files(tmp_path, instances(), []))
    assert (record["AP"], record["AR100"]) == (0, 0)
    assert record["per_class"] == {"cat": {"AP": 0, "AP50": 0, "boxes": 1}}
    assert ["AP50", "0.00"] in [line.split() for line in printed.splitlines()]


def test_without_ground_truth_there_is_no_number(tmp_path: Path) -> None:
    record, _ = scored(tmp_path, "coco", *files(tmp_path, instances(annotations=[]), [result()]))
    assert all(record[key] is None for key in SCORES)


def test_two_classes_of_one_name_keep_apart_by_their_ids(tmp_path: Path) -> None:
    truth = instances(categories=[{"id": 5, "name": "cat"}, {"id": 6, "name": "cat"}, {"id": 9, "name": "dog"}])
    record, printed = scored(tmp_path, "coco", *files(tmp_path, truth, [result()]), "--per-class")
    assert {name: row["boxes"] for name, row in record["per_class"].items()} == {
        "cat (5)": 1,
        "cat (6)": 0,
        "dog": 0,
    }
    assert any(line.split() == ["cat", "(5)", "100.00", "100.00", "1"] for line in printed.splitlines())


def test_unknown_categories_are_left_out_and_counted(tmp_path: Path) -> None:
    truth = instances()
    truth["annotations"].append({"id": 2, "image_id": 1, "category_id": 8, "bbox": BOX})
    truth["annotations"].append({"id": 3, "image_id": 4, "category_id": 5, "bbox": BOX})
    results = [result(), result(category_id=70, score=0.9), result(category_id=71)]
    record, printed = scored(tmp_path, "coco", *files(tmp_path, truth, results))
    assert record["AP"] == pytest.approx(1)
    assert "2 results left out: their category_id (70, 71) is not among the ground truth's categories" in printed
    assert "1 annotations left out: their category_id (8) is not among the ground truth's categories" in printed
    assert "1 annotations left out: their image_id (4) is not among the ground truth's images" in printed


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    truth, results = files(tmp_path, instances(), [result()])
    results.write_bytes(b"\xef\xbb\xbf" + json.dumps([result()], indent=1).replace("\n", "\r\n").encode())
    assert scored(tmp_path, "coco", truth, results)[0]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (result(score=float("nan")), "results[1].score: NaN, expected a finite number"),
        (result(score="0.5"), 'results[1].score: "0.5", expected a finite number'),
        (result(score=None), "results[1].score: null, expected a finite number"),
        (result(bbox=[1, 2, float("inf"), 4]), "results[1].bbox: [1, 2, Infinity, 4], expected four finite"),
        (result(bbox=[1, 2, 3]), "results[1].bbox: [1, 2, 3], expected four finite numbers"),
        (result(bbox=[1, 2, 3, 10**400]), "results[1].bbox: "),
        ({"image_id": 1, "category_id": 5, "score": 1}, "results[1].bbox: missing key, expected four finite"),
        (result(image_id="a"), 'results[1].image_id: "a", expected a whole number'),
        (result(category_id=True), "results[1].category_id: true, expected a whole number"),
        ([1, 2], "results[1]: a list, expected an object"),
    ],
)
def test_a_wrong_result_is_named(item: Any, message: str, tmp_path: Path) -> None:
    assert message in refused("coco", *files(tmp_path, instances(), [result(), item]))


def test_results_of_unknown_images_are_counted_with_the_first(tmp_path: Path) -> None:
    results = [result(), result(image_id=7), result(image_id=8)]
    message = refused("coco", *files(tmp_path, instances(), results))
    assert "2 of 3 results are of images that the ground truth does not have" in message
    assert "the first results[1].image_id 7" in message


@pytest.mark.parametrize(
    ("truth", "results", "message"),
    [
        (instances(), {"annotations": []}, "dt.json: the file holds an object, expected the COCO results list"),
        ([], [], "gt.json: the file holds a list, expected an object with `images`"),
        ({"images": []}, [], "annotations: missing key, expected a list of objects"),
        (instances(images=[{"id": 1}, {"id": 1}]), [], "images[1].id: 1 is already the id of images[0]"),
        (instances(categories=[{"name": "cat"}]), [], "categories[0].id: missing key, expected a whole number"),
        (
            instances(annotations=[{"image_id": 1, "category_id": 5, "bbox": BOX, "area": "big", "iscrowd": 2}]),
            [],
            'annotations[0].area: "big", expected a finite number',
        ),
        (instances(), '[{"image_id": 1,\n "cat', "dt.json:2: column 2: not valid JSON"),
        (instances(), "", "dt.json:1: column 1: not valid JSON"),
    ],
)
def test_a_wrong_file_is_named(truth: Any, results: Any, message: str, tmp_path: Path) -> None:
    assert message in refused("coco", *files(tmp_path, truth, results))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    truth, results = files(tmp_path, instances(), [])
    assert f"{tmp_path / 'no.json'}: cannot be read" in refused("coco", tmp_path / "no.json", results)
    assert f"{tmp_path}: cannot be read" in refused("coco", truth, tmp_path)
    results.write_bytes(b'["\xff"]')
    assert f"{results}: byte 2: not text in UTF-8" in refused("coco", truth, results)


def test_no_file_that_is_read_is_written_over(tmp_path: Path) -> None:
    paths = files(tmp_path, instances(), [])
    for file in paths:
        before = file.read_bytes()
        told = f"--json {file}: this file is read; choose another name"
        assert refused("coco", *paths, "--json", file) == told
        assert refused("lvis", *paths, "--json", file) == told
        assert refused("wider_pedestrian", *paths, "--json", file) == told
        assert file.read_bytes() == before
    results = tmp_path / "dets" / "curves.json"
    results.parent.mkdir()
    paths[1].rename(results)
    assert "--curves" in refused("coco", paths[0], results, "--curves", results.parent)
    (tmp_path / "dets" / "car.txt").write_text("")
    for protocol in ("voc", "wider_face"):
        found = refused(protocol, tmp_path, tmp_path / "dets", "--json", tmp_path / "dets" / "car.txt")
        assert found.endswith("car.txt: this file is read; choose another name")


def test_the_curves_carry_the_scores_and_the_methods_name(tmp_path: Path) -> None:
    paths = files(tmp_path, *random_set(1))
    record, printed = scored(tmp_path, "coco", *paths, "--curves", tmp_path / "c", "--name", "mine")
    have = curves(tmp_path / "c")
    assert have.keys() == {("gt", "coco", key) for key in ("AP", "AP50", "AP75")}
    for (_, _, key), ap in have.items():
        assert ap == pytest.approx(record[key])
    assert json.loads((tmp_path / "c" / "curves.json").read_text())["method"] == "mine"
    assert f"curves in {tmp_path / 'c'}" in printed


def test_scoring_does_not_import_torch(tmp_path: Path) -> None:
    truth, results = files(tmp_path, instances(), [result()])
    code = (
        "import sys; from crossdet.commands.score import app; "
        f"app(['coco', {str(truth)!r}, {str(results)!r}], standalone_mode=False); "
        "import crossdet.evaluation.files.voc, crossdet.evaluation.files.wider_face; "
        "import crossdet.evaluation.files.wider_pedestrian, crossdet.evaluation.files.wider_face_lists; "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
