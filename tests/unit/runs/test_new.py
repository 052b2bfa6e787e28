"""`crossdet new`: layouts of the formats become a config that `crossdet check` takes as it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from crossdet.config import load_config
from crossdet.config.sources import open_sources
from crossdet.data.formats import FORMATS
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.voc import write_voc
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.formats.wider_pedestrian import write_wider_pedestrian
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.runs.new import recognise, write_new

from ..data.formats.helpers import sample_index, save_image

QUICK = ("--set", "model.backbone=test_efficientnet", "--set", "model.weights=none")


def yolo(root: Path) -> None:
    for split in ("train", "val"):
        write_yolo(sample_index(root / "images" / split), root, split)


def roboflow_yolo(root: Path) -> None:
    """Pictures and labels of a split beside each other, the paths of `data.yaml` one folder too high."""
    for split in ("train", "valid", "test"):
        write_yolo(sample_index(root / split / "images"), root / "made", split)
        shutil.move(root / "made/labels" / split, root / split / "labels")
    shutil.rmtree(root / "made")
    keys = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    (root / "data.yaml").write_text(yaml.safe_dump({**keys, "nc": 2, "names": ["cat", "dog"]}))


def coco(root: Path) -> None:
    for split in ("train", "val"):
        write_coco(sample_index(root / f"{split}2017"), root / f"annotations/instances_{split}2017.json")
    (root / "annotations/captions_train2017.json").write_text('{"images": [], "annotations": []}')


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid", "test"):
        write_coco(sample_index(root / split), root / split / "_annotations.coco.json")


def voc(root: Path) -> None:
    """Its validation pictures show a class that the training pictures do not."""
    for split, other in (("train", "dog"), ("val", "bird")):
        index = sample_index(root / split, ("cat", other))
        write_voc(index, root, split)
        for kind, folder in (("xml", "Annotations"), ("png", split)):
            target = root / ("made" if kind == "xml" else "JPEGImages")
            target.mkdir(exist_ok=True)
            for file in (root / folder).iterdir():
                file.rename(target / f"{split}_{file.name}")
        sets = root / f"ImageSets/Main/{split}.txt"
        sets.write_text("".join(f"{split}_{line}\n" for line in sets.read_text().split()))
    shutil.rmtree(root / "Annotations")
    (root / "made").rename(root / "Annotations")


def roboflow_voc(root: Path) -> None:
    for split in ("train", "valid"):
        write_voc(sample_index(root / split), root / "made", split)
        for xml in (root / "made/Annotations").iterdir():
            xml.rename(root / split / xml.name)
    shutil.rmtree(root / "made")


def wider_face(root: Path) -> None:
    for split in ("train", "val"):
        index = sample_index(root / f"WIDER_{split}/images", ("face",))
        write_wider_face(index, root / f"wider_face_split/wider_face_{split}_bbx_gt.txt")


def wider_pedestrian(root: Path) -> None:
    for split in ("train", "val"):
        index = sample_index(root / split, ("pedestrian", "cyclist"))
        write_wider_pedestrian(index, root / f"{split}_annotations.txt", root / f"{split}_ignore.txt", 2018)


def one_file(root: Path, names: list[str]) -> None:
    """COCO without splits: pictures of these names with a cat each."""
    builder = IndexBuilder(root)
    for name in names:
        save_image(root / name)
        builder.image(name, 80, 100)
        builder.box((10, 20, 30, 60), 0)
    write_coco(builder.build(("cat",)), root / "all.json")


LAYOUTS = {
    yolo: "yolo", roboflow_yolo: "yolo", coco: "coco", roboflow_coco: "coco", voc: "voc", roboflow_voc: "voc",
    wider_face: "wider_face", wider_pedestrian: "wider_pedestrian",
}  # fmt: skip


@pytest.mark.parametrize(("layout", "format"), LAYOUTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_layout_passes_check(layout, format, tmp_path, monkeypatch, crossdet):
    layout(tmp_path / "data/some set")
    monkeypatch.chdir(tmp_path)
    done = crossdet("new", "data", "--json", "new.json")
    assert done.returncode == 0, done.stderr
    assert "some set: " in done.stdout
    config = load_config("config.yaml")
    (dataset,) = config.datasets.values()
    assert list(config.datasets) == ["some set"]
    assert dataset.format == format
    assert dataset.train is not None
    assert dataset.val is not None
    record = json.loads(Path("new.json").read_text())["datasets"]["some set"]
    splits = {"train", "val", "test"} if layout in (roboflow_yolo, roboflow_coco) else {"train", "val"}
    assert record["images"] == dict.fromkeys(splits, 3)
    done = crossdet("check", "config.yaml", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_format_is_found():
    assert {FORMATS[name].find for name in LAYOUTS.values()} == {kind.find for kind in FORMATS.values()}


def test_several_datasets_are_not_merged_unasked(tmp_path, crossdet):
    """Equal names stay apart, and none is a negative for the other."""
    for name, layout in (("one", yolo), ("two", roboflow_coco), ("three", wider_face), ("four", wider_pedestrian)):
        layout(tmp_path / "data" / name)
    file = tmp_path / "mine.yaml"
    done = crossdet("new", tmp_path / "data", "-o", file)
    assert done.returncode == 0, done.stderr
    config = load_config(file)
    assert set(config.datasets) == {"one", "two", "three", "four"}
    assert set(config.labels.distinct) == {"cat", "dog"}
    assert {frozenset(pair) for pair in config.labels.overlap} == {
        frozenset({f"one/{name}", f"two/{name}"}) for name in ("cat", "dog")
    }
    assert config.labels.merge == {}
    assert crossdet("check", file, *QUICK).returncode == 0

    # what the comments say, done: one class of every name
    lines = file.read_text().splitlines()
    keep = [line for line in lines if not line.startswith(("  distinct:", "  overlap:"))]
    file.write_text("\n".join(keep).replace("# merge: {same_names: true}", "merge: {same_names: true}"))
    config = load_config(file)
    assert config.labels.merge == {"same_names": True}
    assert open_sources(config).space.classes == ("pedestrian", "cyclist", "cat", "dog", "face")

    # as it is written, each comment alone may be taken for what is so
    for line in lines:
        if line.startswith("  # ") and line.split()[1] in ("merge:", "absent:", "not_exhaustive:"):
            kept = keep if "merge:" in line else lines
            file.write_text("\n".join(line.replace("# ", "", 1) if line == own else own for own in kept))
            open_sources(load_config(file))

    # every commented key is one that the config knows
    commented = [line.strip().removeprefix("# ") for line in lines if line.startswith("  # ")]
    keys = [line for line in commented if line.split(":")[0] in ("absent", "not_exhaustive", "drop", "merge")]
    assert len(keys) == 3
    for line in keys:
        extra = yaml.safe_load(line)
        file.write_text(yaml.safe_dump({**yaml.safe_load("\n".join(lines)), "labels": {**extra}}))
        load_config(file)


def test_likely_duplicates_are_the_example(tmp_path):
    """Not two names that happen to be first."""
    for name, classes in (
        ("one", ("fish", "person")),
        ("two", ("Person", "bird")),
        ("three", ("person", "tv monitor")),
    ):
        write_coco(sample_index(tmp_path / "data" / name, classes), tmp_path / "data" / name / "all.json")
    file = tmp_path / "mine.yaml"
    write_new(tmp_path / "data", file)
    space = open_sources(load_config(file)).space
    ids = [
        space.index(name, source) for name, source in (("one", "person"), ("two", "Person"), ("three", "person"))
    ]
    assert len(set(ids)) == 3
    assert space.overlap_array[np.ix_(ids, ids)].sum() == 6  # none is a negative at the objects of another
    lines = file.read_text().splitlines()
    merge = "  # merge: {same_names: true, person: [one/person, two/Person, three/person]}"
    keep = [line for line in lines if not line.startswith(("  distinct:", "  overlap:"))]
    file.write_text("\n".join(line.replace("# ", "") if line == merge else line for line in keep))
    space = open_sources(load_config(file)).space
    assert sorted(space.classes) == ["bird", "fish", "person", "tv monitor"]


@pytest.mark.parametrize("boxed", [False, True])
def test_likely_names_without_a_box_take_no_part(boxed, tmp_path):
    """One dataset lists zebra, the other Zebra, with a box or without: the config can be read either way."""
    for name, classes in (("one", ("cat", "zebra")), ("two", ("dog", "Zebra"))):
        index = sample_index(tmp_path / "data" / name, classes)
        if name == "one" or not boxed:
            index = replace(index, labels=np.zeros_like(index.labels))
        write_coco(index, tmp_path / "data" / name / "all.json")
    write_new(tmp_path / "data", tmp_path / "c.yaml")
    space = open_sources(load_config(tmp_path / "c.yaml")).space
    assert space.classes == (("cat", "dog", "Zebra") if boxed else ("cat", "dog"))


def test_roboflows_copies_stay_on_one_side(tmp_path):
    one_file(tmp_path / "data/set", [f"street_{row // 3}_jpg.rf.{row}abc.png" for row in range(36)])
    write_new(tmp_path / "data", tmp_path / "c.yaml")
    sources = open_sources(load_config(tmp_path / "c.yaml"))
    train, val = ({n.split("_jpg")[0] for n in getattr(sources, s)["set"].names} for s in ("train", "val"))
    assert (len(train), len(val), train & val) == (10, 2, set())


def test_one_dataset_has_a_section_for_its_comments(tmp_path, crossdet):
    yolo(tmp_path / "data")
    file = tmp_path / "mine.yaml"
    assert crossdet("new", tmp_path / "data", "-o", file).returncode == 0
    load_config(file)
    file.write_text(file.read_text().replace("  # not_exhaustive:", "  not_exhaustive:"))
    assert load_config(file).labels.not_exhaustive == {"data": ("cat",)}


def test_a_file_instead_of_its_folder(tmp_path, crossdet):
    yolo(tmp_path / "data")
    done = crossdet("new", tmp_path / "data/data.yaml", "-o", tmp_path / "mine.yaml")
    assert done.returncode == 2
    assert f"did you mean its folder, {tmp_path / 'data'}?" in done.stderr


def test_other_labels_of_the_same_pictures_are_told(tmp_path):
    index = sample_index(tmp_path / "images")
    for name in ("train", "val", "train_coarse", "notes"):
        write_coco(index, tmp_path / f"{name}.json")
    (tmp_path / "notes.json").write_text("[1]")
    (tmp_path / "broken.yaml").write_text("names: [a]\ntrain: nowhere\n")
    found = recognise(tmp_path)
    (dataset,) = found.datasets
    assert set(dataset.splits) == {"train", "val"}
    told = "\n".join(found.notes)
    assert "train_coarse.json: other labels of the pictures of" in told
    assert "notes.json: the file holds a list" in told
    assert "'nowhere' is no folder and no file" in told


def test_coco_whose_names_are_of_another_machine(tmp_path):
    one_file(tmp_path / "set/images", ["a.png", "b.png"])
    content = json.loads((tmp_path / "set/images/all.json").read_text())
    for path, told in (("images\\", ""), ("/data/upload/3/", "a.png is there: did the export write other paths?")):
        for image, name in zip(content["images"], ("a.png", "b.png"), strict=True):
            image["file_name"] = path + name
        (tmp_path / "set/images/all.json").unlink(missing_ok=True)
        (tmp_path / "set/result.json").write_text(json.dumps(content))
        if not told:
            (dataset,) = recognise(tmp_path).datasets
            assert dataset.indexes["train"].path(0) == tmp_path / "set/images/a.png"
            continue
        with pytest.raises(UserError) as error:
            recognise(tmp_path)
        assert f"such as /data/upload/3/a.png, was found; {tmp_path}/set/images/{told}" in str(error.value)


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_pictures_that_are_spelt_otherwise(format, tmp_path):
    root = tmp_path / "set"
    for split, ending in (("train", "PnG"), ("val", "Png")):
        index = sample_index(root / "images" / split)
        FORMATS[format].write(index, root / split if format == "voc" else root, split)
        for name in index.names:
            (root / "images" / split / name).rename(root / "images" / split / name.replace("png", ending))
    (dataset,) = recognise(tmp_path).datasets
    for split, ending in (("train", "PnG"), ("val", "Png")):
        assert dataset.indexes[split].path(0) == root / f"images/{split}/a.{ending}"


def test_json_of_anything_is_no_news(tmp_path):
    """Label Studio writes one beside the labels of YOLO."""
    yolo(tmp_path / "cats")
    (tmp_path / "cats/notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    (tmp_path / "cats/more.json").write_text('{"images": []}')
    (note,) = recognise(tmp_path).notes
    assert note.startswith(f"{tmp_path}/cats/more.json: missing key `annotations`")


def test_a_broken_dataset_is_told_and_left_out(tmp_path):
    for name in ("good", "bad"):
        yolo(tmp_path / name)
    (tmp_path / "bad/labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    found = recognise(tmp_path)
    assert [(d.name, set(d.splits)) for d in found.datasets] == [("bad", {"val"}), ("good", {"train", "val"})]
    assert any("class 7 is not in `names`" in note for note in found.notes)


def test_yolo_without_any_names_is_told(tmp_path):
    write_yolo(sample_index(tmp_path / "dogs/images/train"), tmp_path / "dogs", "train")
    write_yolo(sample_index(tmp_path / "cats/images/train"), tmp_path / "cats", "train")
    (tmp_path / "cats/data.yaml").unlink()
    for name in ("captions/a", "captions/b"):  # texts about pictures are no labels
        save_image(tmp_path / f"{name}.jpg", 10, 10)
        text = "27 24 30 28 31 plane 0\n" if name[-1] == "b" else "a dog on a lawn in the sun\n"
        (tmp_path / f"{name}.txt").write_text(text)
    (note,) = recognise(tmp_path).notes
    assert note.startswith(f"{tmp_path}/cats: 3 pictures with labels of YOLO, whose classes are 0, 1, without")
    assert note.endswith(f"write {tmp_path}/cats/data.yaml with the keys `train`, `val` and `names`")


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_yolo_without_a_data_yaml(place, tmp_path, crossdet):
    """As LabelImg, Label Studio and CVAT write it: the message holds what has to be written."""
    yolo(tmp_path / "cats")
    (tmp_path / "cats/data.yaml").unlink()
    (tmp_path / "cats" / place).write_text("cat\ndog: big\n\n")
    done = crossdet("new", tmp_path, "-o", tmp_path / "c.yaml")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert f"cats/{place}: class names of YOLO labels without a data.yaml; write " in said
    assert "cats/data.yaml: {train: images/train, val: images/val, names: [cat, 'dog: big']}" in said
    text = said[said.index("{") : said.rindex("}") + 1]
    (tmp_path / "cats/data.yaml").write_text(text)
    write_new(tmp_path, tmp_path / "c.yaml")
    sources = open_sources(load_config(tmp_path / "c.yaml"))
    assert {split: len(getattr(sources, split)["cats"]) for split in ("train", "val")} == {"train": 3, "val": 3}
    assert sources.space.classes == ("cat", "dog: big")


def test_a_list_of_names_of_what_is_annotated_already(tmp_path):
    yolo(tmp_path / "cats")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    coco(tmp_path / "coco")
    (tmp_path / "coco/classes.txt").write_text("cat\ndog\n")
    for picture in (tmp_path / "coco/train2017").glob("*.png"):
        picture.with_suffix(".txt").write_text("a cat on a mat")
    found = recognise(tmp_path)
    assert [dataset.name for dataset in found.datasets] == ["cats", "coco"]
    assert not any("classes.txt" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "folder", "told"),
    [
        ("cat\n\ndog\n", "pictures", "a line between its names is blank"),
        ("cat\ndog\n", "val", "its folders of splits lie in each other"),
    ],
)
def test_nothing_is_proposed_where_it_would_be_a_guess(names, folder, told, tmp_path):
    for home in (tmp_path / "pets", tmp_path / "pets" / folder):
        sample_index(home)
        (home / "a.txt").write_text("1 .5 .5 .2 .2\n")
    (tmp_path / "pets/classes.txt").write_text(names)
    with pytest.raises(UserError) as error:
        recognise(tmp_path)
    assert f"{told}, so write {tmp_path}/pets/data.yaml yourself" in str(error.value)
    assert "{" not in str(error.value)


def test_names_are_of_folders_and_different(tmp_path):
    for layout in (wider_face, coco):  # side by side in one folder
        layout(tmp_path / "mixed")
    yolo(tmp_path / "a/set")
    yolo(tmp_path / "b/set")
    names = [dataset.name for dataset in recognise(tmp_path).datasets]
    assert names == ["mixed_coco", "mixed_wider_face", "set", "set_yolo"]
    assert [dataset.name for dataset in recognise(tmp_path / "mixed").datasets] == names[:2]


def test_a_test_split_is_one_of_the_config(tmp_path):
    roboflow_coco(tmp_path / "data")
    write_new(tmp_path / "data", tmp_path / "config.yaml")
    dataset = load_config(tmp_path / "config.yaml").datasets["data"]
    found = [getattr(dataset, split).annotations[0].parent.name for split in ("train", "val", "test")]
    assert found == ["train", "valid", "test"]


def test_what_lies_in_a_run_is_no_dataset(tmp_path):
    """An audit writes a COCO file of what may be unlabelled."""
    yolo(tmp_path / "pets")
    run = tmp_path / "runs/first"
    write_coco(sample_index(run / "pictures"), run / "audit/unlabelled_pets.json")
    (run / "config.yaml").touch()
    assert len(recognise(tmp_path).datasets) == 2
    (run / "steps.csv").touch()
    assert [dataset.name for dataset in recognise(tmp_path).datasets] == ["pets"]


def test_the_test_split_stands_in(tmp_path):
    roboflow_coco(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/valid")
    write_new(tmp_path / "data", tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "the test split, as there is no other" in text
    dataset = load_config(tmp_path / "config.yaml").datasets["data"]
    assert dataset.val.annotations[0].parent.name == "test"


def test_strange_names(tmp_path):
    write_coco(sample_index(tmp_path / "data/no: #<x>", ("a\nb: #", "*c")), tmp_path / "data/no: #<x>/all.json")
    write_new(tmp_path / "data", tmp_path / "config.yaml")
    assert list(load_config(tmp_path / "config.yaml").datasets) == ["no: #<x>"]


def test_mistakes(tmp_path, crossdet):
    (tmp_path / "empty").mkdir()
    done = crossdet("new", tmp_path / "empty", "-o", tmp_path / "c.yaml")
    assert (done.returncode, (tmp_path / "c.yaml").exists()) == (2, False)
    assert "was recognised as one of coco, voc" in done.stderr
    assert crossdet("new", tmp_path / "gone").returncode == 2
    yolo(tmp_path / "data")
    (tmp_path / "c.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"c\.yaml exists"):
        write_new(tmp_path / "data", tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == "mine"
    assert crossdet("new", tmp_path / "data", "-o", tmp_path / "c.yaml", "--overwrite").returncode == 0


def test_a_split_that_cannot_be_read_stays_in_sight(tmp_path, crossdet):
    """Its classes would be taught by nobody."""
    yolo(tmp_path / "data/pets")
    wider_face(tmp_path / "data/faces")
    label = next(iter(sorted((tmp_path / "data/pets/labels/train").glob("*.txt"))))
    label.write_text("7 .5 .5 .2 .2\n" * 40)
    file = tmp_path / "c.yaml"
    assert crossdet("new", tmp_path / "data", "-o", file).returncode == 0
    (line,) = (line for line in file.read_text().splitlines() if line.startswith("    # train: could not be read"))
    assert "class 7 is not in `names`" in line
    assert line.endswith("(and 39 more)")
    done = crossdet("check", file, *QUICK)
    assert "no training boxes in any dataset for cat, dog" in " ".join(done.stdout.split())


def test_what_is_listed_without_a_box(tmp_path):
    """Where others have boxes of it, objects that nobody marked must not become background."""
    yolo(tmp_path / "pets")
    wider_face(tmp_path / "faces")
    data = tmp_path / "pets/data.yaml"
    content = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**content, "names": ["cat", "dog", "face", "zebra"]}))
    write_new(tmp_path, tmp_path / "config.yaml")
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert "  unlabelled: {pets: [face]}" in lines
    assert not any("distinct" in line for line in lines)  # there is nothing of pets' that another thing could be
    assert "  drop: [pets/zebra]" in lines


def test_every_comment_holds_once_its_sign_is_taken_away(tmp_path):
    """With the merge that it says it needs, in place of `distinct` and `overlap`."""
    three = {
        "p": (["Person", "cars"], [0, 1]),
        "q": (["person", "car"], [0, 1]),
        "r": (["pedestrian", "Car"], [0, 1]),
    }
    holds(tmp_path / "b", {"p": (["plate"], [0]), "q": (["plate"], [0])}, "not_exhaustive", None)
    holds(tmp_path / "c", three, "not_exhaustive", "merge: {Person: [p/Person, q/person, r/pedestrian], ")


def test_a_list_of_names_that_several_share_and_each_labels_in_part(tmp_path):
    """As exports of one project have it: what `new` writes asks nothing, and makes no class without an object."""
    both = ["plate", "cup"]
    made(tmp_path, {"p": (both, [0]), "q": (both, [1])})
    write_new(tmp_path, tmp_path / "config.yaml")
    sources = open_sources(load_config(tmp_path / "config.yaml"))
    assert sources.space.classes == ("plate", "cup")
    assert not sources.listed_only
    assert [sources.space.trusted_array(name).tolist() for name in "pq"] == [[True, False], [False, True]]


def test_what_a_dataset_lists_without_a_box_while_several_have_some(tmp_path):
    """Whether these mean the same is not known, so there is no class of that name to be unlabelled."""
    made(tmp_path, {"p": (["plate", "cup"], [0]), "q": (["cup"], [0]), "r": (["cup"], [0])})
    file = tmp_path / "config.yaml"
    write_new(tmp_path, file)
    sources = open_sources(load_config(file))
    assert sources.space.classes == ("plate", "q/cup", "r/cup")
    assert sources.space.trusted_array("p").tolist() == [True, False, False]
    text = file.read_text().replace("  # merge: {same_names: true}", "  merge: {same_names: true}")
    lines = [line for line in text.splitlines() if not line.startswith(("  distinct:", "  overlap:"))]
    file.write_text("\n".join(lines))
    merged = open_sources(load_config(file)).space
    assert merged.classes == ("plate", "cup")
    assert merged.trusted_array("p").tolist() == [True, False]


def made(root: Path, datasets: dict[str, tuple[list[str], list[int]]]) -> None:
    """datasets: name -> its classes, and those with boxes."""
    for name, (classes, boxed) in datasets.items():
        for split in ("train", "val"):
            index = sample_index(root / name / "images" / split, ("x",))
            labels = np.where(np.asarray(index.labels) < 0, -1, np.resize(boxed, len(index.labels)))
            labels = labels.astype(index.labels.dtype)
            whole = replace(index, classes=tuple(classes), category_ids=np.arange(len(classes)), labels=labels)
            write_yolo(whole, root / name, split)


def holds(root: Path, datasets: dict[str, tuple[list[str], list[int]]], rule: str, merge: str | None) -> None:
    """datasets: of `made`. rule: the comment. merge: begins the one it needs."""
    made(root, datasets)
    file = root / "config.yaml"
    write_new(root, file)
    lines, kept, chosen = file.read_text().splitlines(), [], []
    for line in lines:
        goes_on = line.startswith("     ") and not (kept and kept[-1])
        if merge is not None and (line.startswith(("  distinct:", "  overlap:")) or goes_on):
            kept.append("")
        elif line.startswith((f"  # {rule}:", f"  # {merge}")):
            chosen.append(line)
            kept.append(line.replace("# ", "", 1))
        else:
            kept.append(line)
    assert len(chosen) == (1 if merge is None else 2)
    file.write_text("\n".join(kept))
    open_sources(load_config(file))


def test_a_data_yaml_that_cannot_be_read_is_told(tmp_path):
    """And not as pictures without names, for which one would be written over it."""
    for name in ("mine", "other"):
        yolo(tmp_path / name)
    data = tmp_path / "mine/data.yaml"
    data.write_text('train: "C:\\data"\nnames: [cat, dog]\n')
    told = "\n".join(recognise(tmp_path).notes)
    assert f"{data}: " in told
    assert "unknown escape character" in told
    assert "without their names" not in told


def test_one_damaged_xml_does_not_hide_the_others(tmp_path):
    """Wherever it sorts."""
    voc(tmp_path)
    first = min((tmp_path / "Annotations").iterdir())
    first.write_text(first.read_text()[:50])
    assert any(f"{first.name}" in note for note in recognise(tmp_path).notes)


def test_a_part_of_another_class_is_no_negative_of_it(tmp_path, crossdet):
    """Nor is it proposed to be absent from pictures that show it under the wider name."""
    for name, own in (("people", "person"), ("walkers", "pedestrian")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        write_coco(sample_index(folder, (own, "car" if name == "people" else "truck")), folder / "all.json")
    file = tmp_path / "config.yaml"
    assert crossdet("new", tmp_path / "data", "-o", file).returncode == 0
    text = file.read_text()
    config = load_config(file)
    assert config.labels.overlap == (("person", "pedestrian"),)
    assert "  # merge: {person: [people/person, walkers/pedestrian]}" in text
    assert "by their names part of" not in crossdet("check", file).stdout
    assert "  # absent: {walkers: [car]}" in text
    kept = [line for line in text.splitlines() if not line.startswith("  overlap:")]
    file.write_text("\n".join(kept).replace("# merge: {person", "merge: {person"))
    assert open_sources(load_config(file)).space.classes == ("person", "car", "truck")
    assert open_sources(load_config(file)).space.trusted("walkers").tolist() == [True, False, True]
    file.write_text(
        file.read_text().replace("# not_exhaustive: {walkers: [person]}", "not_exhaustive: {walkers: [person]}")
    )
    assert open_sources(load_config(file)).space.trusted("walkers").tolist() == [False, False, True]


def test_who_labels_the_whole_by_another_spelling_labels_more_than_a_part(tmp_path):
    """It was told of the wrong one: background that can be trusted was given up."""
    made(tmp_path, {"p": (["cup", "mug"], [0, 1]), "q": (["Cup", "plate"], [0, 1])})
    write_new(tmp_path, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "# merge: {cup: [p/cup, q/Cup, p/mug]}" in text
    assert "unless their pictures show nothing else of that class" not in text


def test_three_names_of_one_class(tmp_path, crossdet):
    """Each comment that merges is whole; with `overlap` left in, what became of its name is told."""
    for name, own in (("shop", "person"), ("zoo", "human"), ("road", "pedestrian")):
        folder = tmp_path / "data" / name
        write_coco(sample_index(folder, (own, f"{name} thing")), folder / "all.json")
    file = tmp_path / "config.yaml"
    write_new(tmp_path / "data", file)
    text = file.read_text()
    likely = "# merge: {person: [shop/person, zoo/human]}"
    whole = "# merge: {person: [shop/person, zoo/human, road/pedestrian]}"
    assert f"  {likely}\n" in text
    assert f"  {whole}\n" in text
    assert crossdet("check", file, *QUICK).stdout.count("same class, not merged") == 0  # `overlap` is an answer
    without = "\n".join(line for line in text.splitlines() if not line.startswith("  overlap:"))
    file.write_text(without.replace(whole, whole[2:]))
    assert len(open_sources(load_config(file)).space.sources_of(0)) == 3
    file.write_text(text.replace(likely, likely[2:]))
    with pytest.raises(UserError, match=r"overlap: unknown unified class 'human'; zoo/human is 'person' here"):
        open_sources(load_config(file))


def test_a_share_is_held_out_where_there_is_no_validation_split(tmp_path, crossdet):
    """Without one nothing is scored, and thresholds have nothing to be chosen on."""
    file = tmp_path / "config.yaml"
    (tmp_path / "data").mkdir()
    write_coco(sample_index(tmp_path / "data/few"), tmp_path / "data/few/all.json")
    write_new(tmp_path / "data", file)
    assert "    # val: 1/6  # only 3 pictures: too few to hold some out\n" in file.read_text()
    one_file(tmp_path / "data/many", [f"{row}.png" for row in range(13)])
    done = crossdet("new", tmp_path / "data", "-o", file, "--overwrite")
    assert "many: coco, 1 class, images: train 13, 1/6 of them held out as val" in " ".join(done.stdout.split())
    config = load_config(file)
    assert (config.datasets["few"].val, config.datasets["many"].val) == (None, "1/6")
    sources = open_sources(config)
    assert len(sources.train["many"]) + len(sources.val["many"]) == 13
    assert len(sources.val["many"]) in range(1, 6)
    assert (
        "    val: 1/6  # about every 6th training picture, by its name; not trained on then\n" in file.read_text()
    )
