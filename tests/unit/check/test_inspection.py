"""`inspect` on tiny generated datasets: everything it reports, and what a person reads of it."""

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from crossdet.check import inspect, print_report
from crossdet.check.anchors_coverage import anchor_coverage
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.voc import write_voc
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.errors import UserError
from crossdet.types import Flag

from .made import BOX, configured, make, one_box, printed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))


def flat(text: str) -> str:
    """The text with all white space folded, so that line breaks do not matter."""
    return " ".join(text.split())


@pytest.fixture
def three_formats(tmp_path) -> Config:
    """COCO with a crowd, an empty image and a box it leaves out; VOC with a difficult one; WIDER FACE."""
    coco = make(
        tmp_path / "coco",
        ("person", "car"),
        [[(0, BOX, 0), (1, BOX, 0), (0, (0, 0, 60, 40), int(Flag.CROWD))], [], [(0, BOX, 0)]],
    )
    write_coco(coco, tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    content["annotations"].append({**content["annotations"][0], "id": 99, "bbox": [5, 5, 0, 9]})
    (tmp_path / "coco.json").write_text(json.dumps(content))
    voc = make(tmp_path / "voc/JPEGImages", ("Cars",), [[(0, BOX, 0), (0, BOX, int(Flag.DIFFICULT))]], seed=1)
    write_voc(voc, tmp_path / "voc", "train")
    faces = make(tmp_path / "faces", ("face",), [*one_box(1), [(0, BOX, int(Flag.INVALID))]], seed=2)
    write_wider_face(faces, tmp_path / "faces.txt")
    val = make(tmp_path / "faces_val", ("face",), one_box(2), seed=3)
    write_wider_face(val, tmp_path / "faces_val.txt")
    return configured(
        {
            "coco": {
                "format": "coco",
                "train": {"images": tmp_path / "coco", "annotations": tmp_path / "coco.json"},
            },
            "voc": {
                "format": "voc",
                "train": {
                    "images": tmp_path / "voc/JPEGImages",
                    "annotations": tmp_path / "voc/Annotations",
                    "image_set": "train",
                },
            },
            "faces": {
                "format": "wider_face",
                "train": {"images": tmp_path / "faces", "annotations": tmp_path / "faces.txt"},
                "val": {"images": tmp_path / "faces_val", "annotations": tmp_path / "faces_val.txt"},
            },
        },
        labels={"absent": {"voc": ["face"]}},
    )


def test_splits_are_counted(three_formats):
    report = inspect(three_formats)
    splits = {(s.dataset, s.split): s for s in report.splits}
    assert list(splits) == [("coco", "train"), ("voc", "train"), ("faces", "train"), ("faces", "val")]
    coco, faces = splits["coco", "train"], splits["faces", "train"]
    assert (coco.images, coco.empty_images, coco.boxes, coco.crowd) == (3, 1, 3, 1)
    assert coco.boxes_per_class == {"person": 2, "car": 1}
    assert [(reason, places.count) for reason, places in coco.skipped.items()] == [("box without area", 1)]
    assert "annotations[4]" in coco.skipped["box without area"].first[0]
    assert (splits["voc", "train"].boxes, splits["voc", "train"].difficult) == (2, 1)
    assert (faces.images, faces.boxes, faces.invalid, faces.empty_images) == (2, 1, 1, 1)
    assert all(s.files.checked == s.images and not s.files.bad for s in report.splits)
    assert report.errors == ()


def test_classes_and_their_states(three_formats):
    report = inspect(three_formats)
    classes = {c.name: c for c in report.classes}
    assert classes["car"].sources == ("coco/car",)
    assert classes["car"].states == {"coco": "labelled", "voc": "avoided", "faces": "avoided"}
    assert classes["face"].states == {"coco": "avoided", "voc": "absent", "faces": "labelled"}
    assert (classes["face"].train_boxes, classes["face"].trusting_images) == (1, 2 + 1)
    assert report.likely_duplicates == (("coco/car", "voc/Cars"),)
    assert any("likely the same class, not merged: coco/car and voc/Cars" in w for w in report.warnings)
    assert report.train_images == report.avoiding_images == 6


def test_the_printed_report(three_formats):
    text = printed(inspect(three_formats))
    lines = [line.rstrip() for line in text.splitlines()]
    table = [line.split() for line in lines if line.startswith(("  coco ", "  voc ", "  faces "))]
    assert ["coco", "train", "3", "1", "3", "2", "1", "0", "0"] in table
    assert ["coco", "●", "●", "·", "·"] in table
    assert ["voc", "·", "·", "●", "○"] in table
    assert "avoided regions" not in text  # a column without any number is left out
    assert "  faces, boxes train / val: face 1 / 2" in lines
    assert "coco train, left out: 1 x box without area" in text
    assert "  ○ known to be absent: background trusted" in lines
    assert "◐" not in text
    assert "6 of 6 training images (100%) have background that is avoided for at least one class." in flat(text)
    assert "Image files: all 8 looked at are there and have the annotated size." in text
    assert lines[-1].endswith("warning(s): training would run; read them first.")
    assert max(map(len, lines)) <= 100


def test_a_terminal_without_unicode(three_formats):
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict"), width=90)
    print_report(inspect(three_formats), console)
    console.file.flush()
    assert b"# labelled" in console.file.buffer.getvalue()


def test_json_holds_everything(three_formats):
    content = json.loads(inspect(three_formats).to_json())
    assert content["splits"][0]["boxes_per_class"] == {"person": 2, "car": 1}
    assert content["classes"][3]["states"]["voc"] == "absent"
    assert content["anchors"][0]["dataset"] == "coco"
    assert content["max_images"] is None


def test_canvases_and_what_they_cost(three_formats, tmp_path):
    """All pictures are 64 x 48 at the input, on canvases of 64 x 64."""
    report = inspect(three_formats)
    assert report.canvases is not None
    assert report.canvases.canvases == ((64, 64),)
    assert report.canvases.padding == 0.25
    assert "64 x 64 (100% of the pictures); 25% of their pixels are padding" in flat(printed(report))
    assert json.loads(report.to_json())["canvases"]["shares"] == [1.0]
    tall, wide = (make(tmp_path / name, (name,), one_box(3)) for name in ("tall", "wide"))
    tall = replace(tall, sizes=tall.sizes[:, ::-1].copy())
    two = inspect(configured({"a": {"train": tall}, "b": {"train": wide}}, input={"shorter": 50, "longer": 99}))
    assert "64 x 96 (50% of the pictures), 96 x 64 (50% of the pictures), 96 x 96 (0% of the" in flat(printed(two))
    assert "left over of all the others" in flat(printed(two))
    for off in ({"train": {"canvases": 0}}, {"train": {"recipe": "paper"}},
                {"model": {"name": "dfine", "square": 64}}):  # fmt: skip
        assert inspect(configured({"b": {"train": wide}}, **off)).canvases is None


def test_no_torch(three_formats, tmp_path):
    from crossdet.config import dump_config

    (tmp_path / "config.yaml").write_text(dump_config(three_formats))
    code = (
        "import sys; from rich.console import Console; from crossdet.config import load_config\n"
        "from crossdet.check import inspect, print_report\n"
        f"print_report(inspect(load_config({str(tmp_path / 'config.yaml')!r})), Console())\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Whose background" in done.stdout


def test_config_errors_stay_exceptions(tmp_path):
    config = configured({"a": {"format": "coco", "train": {"images": tmp_path, "annotations": "gone.json"}}})
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        inspect(config)


# ------------------------------------------------------------------------------------- labels and the matrix


def test_merged_dropped_and_in_part(tmp_path):
    a = make(tmp_path / "a", ("car", "truck", "dog"), [[(0, BOX, 0), (1, BOX, 0)]])
    b = make(tmp_path / "b", ("car", "cat"), [[(0, BOX, 0), (1, BOX, 0)]], seed=1)
    labels = {
        "merge": {"vehicle": ["a/car", "a/truck", "b/car"]},
        "drop": ["a/dog"],
        "not_exhaustive": {"b": ["cat"]},
    }
    report = inspect(configured({"a": {"train": a}, "b": {"train": b}}, labels=labels))
    vehicle, cat = report.classes
    assert (vehicle.sources, vehicle.train_boxes) == (("a/car", "a/truck", "b/car"), 3)
    assert cat.states == {"a": "avoided", "b": "not exhaustive"}
    assert report.dropped == ("a/dog",)
    assert len(report.partial_merges) == 1
    assert any(w.startswith("merge of unlike classes: 'vehicle': b brings only 'car'") for w in report.warnings)
    assert any(w.startswith("no training image gives background for cat") for w in report.warnings)
    assert not any("boxes of dog" in w for w in report.warnings)  # it is dropped
    text = printed(report)
    assert "  vehicle <- a/car, a/truck, b/car" in text
    assert "dropped: a/dog" in text
    assert "◐ labelled in part" in text


def test_classes_without_training_boxes(tmp_path):
    a = make(tmp_path / "a", ("cat", "dog"), one_box(1))
    b = make(tmp_path / "b", ("cat", "dog"), one_box(1), seed=1)
    report = inspect(configured({"a": {"train": a}, "b": {"train": b}}, labels={"merge": {"same_names": True}}))
    assert "a train: no boxes of dog" in report.warnings
    assert "no training boxes in any dataset for dog" in report.warnings
    assert report.avoiding_images == 0
    assert "Nothing is avoided: the background of every training image is a negative for every class." in flat(
        printed(report)
    )


def test_many_classes_are_grouped(tmp_path):
    a = make(tmp_path / "a", tuple(f"thing {i}" for i in range(30)), one_box(2))
    b = make(tmp_path / "b", ("[bold]", "face"), one_box(3), seed=1)
    report = inspect(configured({"a": {"train": a}, "b": {"train": b}}, labels={"absent": {"b": ["thing 7"]}}))
    text = flat(printed(report, width=160))
    assert "29 thing 0, thing 1, thing 2, thing 3, thing 4, thing 5 and 23 more a - b" in text
    assert "1 thing 7 a b -" in text
    assert "2 [bold], face b - a" in text
    assert (
        "a train: no boxes of thing 1, thing 2, thing 3, thing 4, thing 5, thing 6, thing 7, thing 8 and 21" in text
    )
    assert len(json.loads(report.to_json())["classes"]) == 32


def test_a_narrow_terminal_gets_the_matrix_in_blocks(tmp_path):
    names = tuple(f"a long class name {i}" for i in range(8))
    index = make(tmp_path / "a", names, one_box(1))
    text = printed(inspect(configured({"a": {"train": index}})), width=60)
    assert all(name in text for name in names)
    assert sum(line.split().count("●") for line in text.splitlines() if line.startswith("  a ")) == 8
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 60


def test_federated_images_trust_what_training_trusts(tmp_path):
    """The counts against the rows that the hybrid dataset hands to training."""
    from crossdet.config.sources import open_sources
    from crossdet.data.hybrid import HybridDataset, Part

    rng = np.random.default_rng(0)
    lists = {
        key: [rng.choice(6, rng.integers(0, 5), replace=False).tolist() for _ in range(40)]
        for key in ("negatives", "not_exhaustive")
    }
    images = [[(int(c), BOX, 0) for c in rng.integers(0, 6, rng.integers(0, 5))] for _ in range(40)]
    lvis = make(tmp_path / "a", tuple("abcdef"), images, **lists)
    other = make(tmp_path / "b", ("a", "g"), one_box(2), seed=1)
    labels = {
        "merge": {"same_names": True, "d_or_e": ["lvis/d", "lvis/e"]},
        "drop": ["lvis/b"],
        "absent": {"lvis": ["g"]},
        "not_exhaustive": {"lvis": ["c"]},
    }
    config = configured({"lvis": {"train": lvis}, "other": {"train": other}}, labels=labels)
    report = inspect(config)
    space = open_sources(config).space
    parts = [Part(x, row, space.ids(n, x.classes)) for row, (n, x) in enumerate([("lvis", lvis), ("other", other)])]
    hybrid = HybridDataset(parts, space, lambda image, boxes: (image, boxes))
    rows = [hybrid.annotations(*hybrid.locate(i))[1].numpy() for i in range(len(hybrid))]
    assert [c.trusting_images for c in report.classes] == np.sum(rows, 0).tolist()
    assert report.avoiding_images == sum(not row.all() for row in rows)
    merged = space.id_of("d_or_e")  # both have to be verified
    assert 0 < sum(row[merged] for row in rows) < sum(row[space.id_of("f")] for row in rows)
    assert report.federated == ("lvis",)
    states = {c.name: c.states["lvis"] for c in report.classes}
    assert (states["a"], states["g"]) == ("per image", "absent")
    assert "lvis (federated)" in printed(report)


# --------------------------------------------------------------------------------------------------- anchors


def test_anchor_recall_by_size(tmp_path):
    """Pictures of 64 x 48 at an input of 96: boxes grow by two; one is an anchor, one is too small for any."""
    rows = [(0, (2, 2, 10, 10), 0), (0, (20, 20, 22, 22), 0), (0, (0, 0, 40, 40), int(Flag.CROWD))]
    index = make(tmp_path / "a", ("cat",), [rows])
    config = configured({"a": {"train": index}}, input={"shorter": 96, "longer": 200})
    (anchors,) = inspect(config).network.datasets
    assert (anchors.boxes, anchors.recall) == (2, 0.5)
    assert (anchors.small_boxes, anchors.small, anchors.medium_boxes, anchors.medium) == (2, 0.5, 0, None)


@pytest.mark.parametrize(
    ("box", "hint"),
    [
        ((20, 20, 24, 24), "100% are smaller than the smallest anchor, 16 px: add a smaller scale to"),
        ((20, 5, 27, 45), "100% are too tall for the anchors, height / width about 5.7: add that to"),
        ((5, 20, 55, 28), "100% are too wide for the anchors, height / width about 0.16: add that to"),
    ],
)
def test_low_recall_names_the_fix(tmp_path, box, hint):
    index = make(tmp_path / "a", ("cat",), [[(0, box, 0)]])
    report = inspect(configured({"a": {"train": index}}))
    (warning,) = report.warnings
    assert "a train: anchors reach only 0% of the boxes with IoU >= 0.5 (`model.positive_iou`)" in warning
    assert hint in warning
    assert "`model.anchors." in warning
    assert "0% of 1" in printed(report)


def test_an_extension_is_not_told_to_change_anchors(tmp_path):
    index = make(tmp_path / "a", ("cat",), [[(0, (20, 5, 27, 45), 0)]])
    for matches, told in (
        (True, "is learnt from its best anchor all the same"),
        (False, "are not learnt: train anew"),
    ):
        config = configured({"a": {"train": index}}, model={"low_quality_matches": matches})
        (warning,) = anchor_coverage(config, open_sources(config), extends=True).warnings()
        assert "100% are too tall for the anchors, height / width about 5.7: anchors and input size are" in warning
        assert told in warning
        assert "`model.anchors" not in warning


def test_notes(tmp_path):
    index = make(tmp_path / "a", ("cat",), one_box(1))
    plain = inspect(configured({"a": {"train": index}}, train={"plain": True}))
    assert any("`train.plain` is on" in note for note in plain.notes)
    assert "a has no `val` split: no score for it" in plain.notes
    held_out = inspect(configured({"a": {"val": index}}))
    assert any("can only evaluate" in note for note in held_out.notes)
    assert held_out.network.datasets[0].split == "val"
    assert "No errors, no warnings." in printed(held_out)


def test_a_class_that_no_validation_picture_shows_is_told(tmp_path):
    """Nothing judges it, and its threshold stays the usual one."""
    names = ("cat", "dog", "zebra")
    train = make(tmp_path / "t", names, [*one_box(3), *one_box(2, 1)])
    val = make(tmp_path / "v", names, one_box(2), seed=1)
    notes = inspect(configured({"a": {"train": train, "val": val}})).notes
    assert "a val: no boxes of dog, so no score there, and no threshold from there" in notes
    dropped = configured({"a": {"train": train, "val": val}}, labels={"drop": ["a/dog"]})
    assert not any("so no score" in note for note in inspect(dropped).notes)
    both = make(tmp_path / "w", names, [*one_box(2), *one_box(1, 1)], seed=2)
    assert not any("so no score" in n for n in inspect(configured({"a": {"train": train, "val": both}})).notes)


def test_classes_of_one_name_that_are_kept_apart_are_told(tmp_path):
    """As `new` writes them, until somebody says that they are one."""
    datasets = {
        "a": {"train": make(tmp_path / "a", ("cat", "bird"), one_box(1))},
        "b": {"train": make(tmp_path / "b", ("cat",), one_box(1), seed=1)},
        "c": {"train": make(tmp_path / "c", ("Cats",), one_box(1), seed=2)},
    }
    labels = {"distinct": ["cat"], "overlap": [["a/cat", "b/cat"], ["a/cat", "Cats"], ["b/cat", "Cats"]]}
    (note,) = (n for n in inspect(configured(datasets, labels=labels)).notes if n.startswith("kept apart"))
    assert note == (
        "kept apart, each a class of its own: a/cat, b/cat, Cats. If they mean the same, `labels.merge: {cat: "
        "[a/cat, b/cat, c/Cats]}` in place of their entries in `distinct` and `overlap`"
    )
    merged = configured(datasets, labels={"merge": {"cat": ["a/cat", "b/cat", "c/Cats"]}})
    assert not any(n.startswith("kept apart") for n in inspect(merged).notes)


def test_pictures_that_are_made_much_larger_are_told(tmp_path):
    """They are 64 x 48."""
    datasets = {"a": {"train": make(tmp_path / "a", ("cat",), one_box(2))}}

    def told(**sections) -> list[str]:
        return [note for note in inspect(configured(datasets, **sections)).notes if "times as large" in note]

    (note,) = told(input={"shorter": 96, "longer": 160})
    assert "are made 2.0 times as large or more for the network (`input`, their shorter side is 48 pixels)" in note
    assert "about 4 times as long. Where objects are not tiny, try `input: {shorter: 64, longer: 80}`" in note
    assert not told(input={"shorter": 64, "longer": 107})
    assert not told(input={"shorter": 64, "longer": 64})


def test_objects_that_are_too_small_for_a_network_of_queries_are_told(tmp_path):
    """Of four one is large; a square of 64 makes the small ones 5 x 6.7 pixels."""
    small, large = [(0, (10, 10, 15, 15), 0)], [(0, BOX, 0)]
    datasets = {"a": {"train": make(tmp_path / "a", ("cat",), [small, small, small, large])}}

    def told(**model) -> list[str]:
        report = inspect(configured(datasets, model={"weights": "none", **model}))
        return [warning for warning in report.warnings if "finest features" in warning]

    (warning,) = told(name="dfine", size="nano", square=64)
    assert warning == (
        "a train: 75% of the boxes are smaller than 8 px at the network's input, whose finest features are 16 "
        "px apart: few of them will be found. To see them raise `model.square` (now 64), or take a larger "
        "`model.size`, which sees every 8 px"
    )
    (warning,) = told(name="rfdetr", size="nano", square=64)
    assert warning.endswith("To see them raise `model.square` (now 64)")
    assert not told(name="dfine", size="small", square=64)  # 8 pixels apart
    assert not told(name="dfine", size="nano", square=96)
    assert not told(name="retinanet")


def test_an_early_last_step_is_told(tmp_path):
    datasets = {"a": {"train": make(tmp_path / "a", ("car",), one_box(2))}}
    start = "`train.steps`: from epoch 5.5 of 24 on the learning rate is 0.01 of `train.lr`"
    early = inspect(configured(datasets, train={"recipe": "paper", "epochs": 24, "steps": [4.5, 5.5]}))
    assert [w[: len(start)] for w in early.warnings if "train.steps" in w] == [start]
    for train in ({"epochs": 24}, {"epochs": 11, "steps": [4.5, 5.5]}, {"epochs": 24, "steps": []}):
        early = inspect(configured(datasets, train={"recipe": "paper", **train}))
        assert not [w for w in early.warnings if "train.steps" in w]
