"""What may be trained as background by mistake, and is told before a training starts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossdet import Index, LabelSpace
from crossdet.config import Config
from crossdet.config.chosen import start_of
from crossdet.config.doubts import label_warnings, training_warnings
from crossdet.config.files import parsed
from crossdet.config.listed_only import listed_only_problem
from crossdet.config.sources import Sources, open_sources
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.format import SplitFiles
from crossdet.data.formats.voc import write_voc
from crossdet.data.index import IndexBuilder
from crossdet.data.reading import read_split
from crossdet.errors import UserError
from crossdet.labels.edits import edited
from crossdet.models.architectures import ARCHITECTURES
from crossdet.types import Flag

WIDTH, HEIGHT = 100, 80
Boxes = list[tuple[tuple[float, float, float, float], int]]


def picture(folder: Path, number: int = 0) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.png"
    if not path.exists():
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return path.name


def index(folder: Path, classes: str, *pictures: Boxes) -> Index:
    builder = IndexBuilder(folder)
    for number, boxes in enumerate(pictures):
        builder.image(picture(folder, number), HEIGHT, WIDTH)
        for box, label in boxes:
            builder.box(box, label, place=f"row {len(builder._boxes)}")
    return builder.build(classes.split())


def config_of(labels: Any = None, **datasets: dict[str, Index | str]) -> Config:
    return Config.from_dict({"datasets": datasets, "labels": labels or {}})


def told(config: Config, known: LabelSpace | None = None) -> str:
    return "\n".join(label_warnings(config, open_sources(config, known=known), ["train"]))


GOOD: Boxes = [((10, 10, 30, 30), 0), ((40, 10, 60, 30), 0)]


def test_nothing_is_told_of_good_data(tmp_path):
    good = index(tmp_path / "a", "car", GOOD, [])
    over = [((-2.0, 10.0, 30.0, 30.0), 0)]  # a little over the border is usual
    assert told(config_of(a={"train": good}, b={"train": index(tmp_path / "b", "dog", GOOD, over)})) == ""


def test_boxes_that_are_lost(tmp_path):
    lost = index(tmp_path / "a", "car", [*GOOD, ((200, 10, 220, 30), 0), ((5, 5, 5, 9), 0)])
    config = config_of(a={"train": lost})
    text = told(config)
    assert text.startswith(
        "a train: 2 of 4 boxes cannot be used (1 x box without area, 1 x box outside its image), such as row 2: "
        "xyxy [5, 5, 5, 9]: what they mean is background."
    )
    many = index(tmp_path / "a", "car", *[GOOD] * 100, [((5, 5, 5, 9), 0)])
    few = told(config_of(a={"train": many}))
    assert few.endswith("1 of 201 boxes cannot be used (1 x box without area), such as row 200: xyxy [5, 5, 5, 9]: "
                        "what they mean is background")  # fmt: skip
    # a share has few of the boxes, and all of the notes
    assert told(config_of(a={"train": many, "part": "1/50"})) == few
    assert "2 of 4 boxes" in told(config_of(a={"train": lost, "part": "1/1"}))


def test_regions_of_pictures_that_are_not_there(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "boxes.txt").write_text("a.png 1 2 3 9 9 2 20 3 9 9\n")
    (tmp_path / "ignore.txt").write_text("train/a.png 20 2 9 9\n")
    files = {"images": str(tmp_path), "annotations": str(tmp_path / "boxes.txt")}
    peds = {"format": "wider_pedestrian", "train": files}
    assert told(Config.from_dict({"datasets": {"peds": peds}})) == ""
    files["ignore"] = str(tmp_path / "ignore.txt")
    assert told(Config.from_dict({"datasets": {"peds": peds}})) == (
        f"peds train: 1 line(s) with ignore regions name pictures that are not there, such as {files['ignore']}:1: "
        "train/a.png. If these are other names of pictures of this split, what is in their regions is background"
    )


def test_xmls_that_nobody_reads(tmp_path):
    """A folder that another split reads is no news."""
    folders = {name: tmp_path / "x" / name for name in ("", "sub", "val")}
    for name, folder in folders.items():
        write_voc(index(tmp_path / "pictures" / name, "car", GOOD), tmp_path / "made", "train")
        folder.mkdir(exist_ok=True)
        (tmp_path / "made/Annotations/0.xml").rename(folder / "0.xml")
    splits = {
        split: {"annotations": str(folders[name]), "images": str(tmp_path / "pictures" / name)}
        for split, name in (("train", ""), ("val", "val"))
    }
    config = Config.from_dict({"datasets": {"a": {"format": "voc", **splits}}})
    assert told(config) == (
        f"a train: 1 XML files lie in folders below, such as {tmp_path}/x/sub/0.xml, and are not read: their "
        f"pictures and objects take no part. If they should, name their folders, too, in `annotations` "
        f"([{tmp_path}/x/sub]), and in `images` those of their pictures"
    )


def test_pictures_of_two_splits_by_another_spelling(tmp_path):
    """`Cat.jpg` is lost, and `cat.jpg` is another picture."""
    for split, name in (("train", "Cat.png"), ("val", "cat.png")):
        content = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "cat"}]}
        content["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    picture(tmp_path / "images")
    (tmp_path / "images/0.png").rename(tmp_path / "images/cat.png")
    splits = {
        s: {"images": str(tmp_path / "images"), "annotations": f"{tmp_path}/{s}.json"} for s in ("train", "val")
    }
    said = told(Config.from_dict({"datasets": {"a": {"format": "coco", **splits}}}))
    assert said.startswith(f"a.train: names were found in another spelling ({tmp_path}/train.json: images[0]")
    assert said.endswith(
        f"its pictures are in a.val, too, such as {tmp_path}/images/cat.png: is it the picture of that split alone?"
    )


def test_polygons_that_may_be_poses(tmp_path):
    picture(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    data, labels = tmp_path / "data.yaml", tmp_path / "labels/0.txt"
    data.write_text("train: images\nnames: [car]\n")
    cars = Config.from_dict({"datasets": {"cars": {"format": "yolo", "train": {"annotations": str(data)}}}})
    labels.write_text("0 .5 .5 .2 .2 .9 .9 1 .1 .1 1\n")
    assert told(cars) == (
        f"cars train: 1 line(s) were read as polygons, such as {labels}:1: 10 numbers after the class: polygon or "
        "pose? In every one the first four numbers would be a box inside the picture. Pose labels need `kpt_shape` "
        "in data.yaml; without it their boxes are wrong"
    )
    labels.write_text("0 .5 .5 .2 .2 .9 1\n" * 2)
    assert told(cars) == (
        f"cars train: 2 line(s) were read as polygons of three points, such as {labels}:1: 6 numbers after the "
        "class: are they boxes with confidence and track id? Of such, leave out what follows `class cx cy w h`; "
        "else their boxes are wrong"
    )
    labels.write_text("0 .5 .5 .2 .2 .9 .3\n")
    assert told(cars) == ""


@pytest.mark.parametrize("name", ["DontCare", "don't care", "ignored regions", "_background_"])
def test_classes_that_mark_places(name, tmp_path):
    places = replace(index(tmp_path / "a", "car x", GOOD, [((5, 5, 40, 40), 1)]), classes=("car", name))
    values: dict[str, Any] = {"a": {"train": places}}
    for labels in ({}, {"drop": [f"a/{name}"]}):
        text = told(config_of(labels, **values))
        assert f"a train: boxes of {name!r} may mark places where not every object is labelled" in text
        assert f"`datasets.a.ignore_classes: [{name}]`" in text
    values["a"]["ignore_classes"] = [name]
    assert told(config_of(**values)) == ""
    train = open_sources(config_of(**values)).train["a"]
    assert train.classes == ("car",)
    assert train.labels.tolist() == [0, 0, -1]
    assert train.flags.tolist() == [0, 0, Flag.IGNORE_REGION]
    values["a"]["ignore_classes"] = ["kar"]
    with pytest.raises(UserError, match=r"a\.train: ignore_classes: it has no class 'kar'; did you mean `car`\?"):
        open_sources(config_of(**values))
    values["a"]["val"] = replace(places, root=str(tmp_path / "b"))  # which may have fewer classes
    with pytest.raises(UserError, match=r"1 split\(s\)"):
        open_sources(config_of(**values))
    values["a"] = {"val": places, "ignore_classes": ["kar"]}  # nobody else could have it
    with pytest.raises(UserError, match=r"a\.val: ignore_classes: it has no class 'kar'; did you mean `car`\?"):
        open_sources(config_of(**values), ["val"])


def test_corners_where_the_format_has_a_size(tmp_path):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 70, (20, 2))
    xyxy = np.concatenate([corner, corner + rng.uniform(5, 30, (20, 2))], 1).clip(0, [WIDTH, HEIGHT] * 2)
    as_xywh = [((x1, y1, x1 + x2, y1 + y2), 0) for x1, y1, x2, y2 in xyxy.tolist()]
    text = told(config_of(a={"train": index(tmp_path / "a", "car", as_xywh)}))
    assert "of 20 boxes reach far over the border of their picture and are cut there, such as row" in text
    assert "Are they corners where the format has width and height" in text
    right = [(tuple(box), 0) for box in xyxy.tolist()]
    assert told(config_of(a={"train": index(tmp_path / "a", "car", right)})) == ""


def test_most_pictures_have_no_box(tmp_path):
    config = config_of(a={"train": index(tmp_path / "a", "car", GOOD, [], [])})
    assert "a train: 2 of 3 pictures have no box, and all of them is background" in told(config)
    sources = open_sources(config)
    lists = index(tmp_path / "a", "car", GOOD, [], [])
    federated = replace(lists, negatives=open_ragged(3), not_exhaustive=open_ragged(3))
    assert not list(label_warnings(config, replace(sources, train={"a": federated}), ["train"]))


def open_ragged(rows: int):
    from crossdet.data.index import Ragged

    return Ragged.pack([()] * rows)


def test_shares_of_the_picture_are_refused(tmp_path):
    shares = [((0.1, 0.2, 0.4, 0.5), 0), ((0.5, 0.5, 1.0, 1.0), 0)]
    write_coco(index(tmp_path / "a", "car", shares), tmp_path / "a.json")
    with pytest.raises(
        UserError, match=r"all 2 boxes lie within the first pixel .*\[0.1, 0.2, 0.4, 0.5\] in .*0.png"
    ):
        read_split("coco", SplitFiles((tmp_path / "a.json",), (tmp_path / "a",)))
    record = {"image": tmp_path / "a" / "0.png", "boxes": [[0.1, 0.2, 0.4, 0.5]], "labels": ["car"]}
    with pytest.raises(UserError, match="not as shares of the picture: multiply them by its width and height"):
        Index.from_records([record])
    real = {**record, "boxes": [[0.1, 0.2, 0.4, 0.5], [0, 0, 9, 9]], "labels": ["car", "car"]}
    assert len(Index.from_records([real]).boxes) == 2, "one small box among others is a box"


@pytest.mark.parametrize(
    ("model", "extends", "warned"),
    [
        ({"name": "dfine"}, False, True),
        ({"name": "dfine"}, True, False),  # an extension takes those that it extends
        ({"name": "dfine", "weights": "none"}, False, False),
        ({}, False, False),  # RetinaNet begins with ImageNet's
    ],
)
def test_random_weights_that_nobody_asked_for(tmp_path, model, extends, warned):
    given = {"a": {"train": index(tmp_path / "a", "car", GOOD)}}
    config = Config.from_dict({"datasets": given, "model": model})
    text = "\n".join(training_warnings(config, open_sources(config), extends))
    assert ("`model.weights` is not given: the whole network begins with random numbers" in text) is warned


def test_the_learning_rate_is_that_of_what_has_learnt(tmp_path):
    given = {"a": {"train": index(tmp_path / "a", "car", GOOD)}}

    def start(extends=False, **model):
        config = Config.from_dict({"datasets": given, "model": model})
        found = start_of(config, extends, 0.5 if extends else 1.0)
        assert found.rates == ARCHITECTURES[config.model.name].settings.rates
        return found.weights, found.share

    assert start(name="dfine", weights="ustc-community/dfine-nano-coco") == ("detector", 1)
    assert start(name="dfine", weights="imagenet", backbone="mobilenetv2_100") == ("backbone", 1)
    assert start(weights="imagenet") == ("backbone", 1)
    assert start(name="dfine") == start(weights="none") == ("random", 1)
    assert start(extends=True) == ("detector", 0.5)


# ------------------------------------------------------------------------------------------ extensions

KNOWN = LabelSpace.build({"shop": ["person", "cart"]})


def extension(tmp_path: Path, labels: Any = None, **datasets: dict[str, Index | str]) -> str:
    return told(config_of(labels, **datasets), KNOWN)


def test_other_pictures_under_the_name_of_an_old_dataset(tmp_path):
    """Their file still lists `cart`, nobody labelled it there, and the weights learnt it from that dataset."""
    new = index(tmp_path / "new", "forklift", GOOD)
    others = index(tmp_path / "a", "person cart", GOOD)
    text = extension(tmp_path, shop={"train": others}, site={"train": new})
    assert text.startswith(
        "shop train: no box of cart, which the weights learnt from shop, and its background is a negative for it. "
        "That is so for pictures they learnt from; if these are others and may show it, say "
        "`labels.not_exhaustive: {shop: [cart]}`, or give them a dataset name of their own"
    )
    said = {"not_exhaustive": {"shop": ["cart"]}}
    assert extension(tmp_path, said, shop={"train": others}, site={"train": new}) == ""
    both = index(tmp_path / "a", "person cart", [*GOOD, ((50, 50, 60, 60), 1)])
    assert extension(tmp_path, shop={"train": both}, site={"train": new}) == ""


def test_boxes_in_the_new_validation_pictures_alone(tmp_path):
    """The weights teach `cart`, too: a new dataset that shows it in `val` only trains it away."""
    train, val = (
        index(tmp_path / "a", "forklift cart", GOOD),
        index(tmp_path / "b", "forklift cart", [(GOOD[0][0], 1)]),
    )
    said = {"merge": {"cart": ["site/cart"]}}
    text = extension(tmp_path, said, site={"train": train, "val": val})
    assert "site train: no object of cart, which the weights or other datasets teach" in text


def test_a_part_of_a_known_class_is_told_in_training_too(tmp_path):
    walkers = index(tmp_path / "a", "pedestrian", GOOD)
    text = extension(tmp_path, site={"train": walkers})
    assert "by their names part of 'person': site/pedestrian. Objects of the one are negatives of the other" in text
    assert isinstance(open_sources(config_of(site={"train": walkers}), known=KNOWN), Sources)


def test_a_slip_in_the_name_of_a_merge(tmp_path):
    """It would make a second class of people, each the other's negative."""
    new = index(tmp_path / "a", "walker", GOOD)
    text = extension(tmp_path, {"merge": {"Persons": ["site/walker"]}}, site={"train": new})
    assert text == (
        "`labels.merge` makes 'Persons' beside the class 'person': is that one class, by a slip in its name?"
    )
    assert extension(tmp_path, {"merge": {"person": ["site/walker"]}}, site={"train": new}) == ""
    assert extension(tmp_path, {"merge": {"car": ["site/walker"]}}, site={"train": new}) == "", "no slip of `cart`"


def test_a_slip_in_the_name_of_a_class_that_weights_merged(tmp_path):
    """Objects of `Walkers` would be negatives of both members."""
    merged = edited(LabelSpace.build({"old": ["man", "lady", "cart"]}), (), [("Walker", ["man", "lady"])])
    new = {"train": index(tmp_path / "a", "walkers", GOOD)}

    def of(labels: dict[str, Any]) -> str:
        config = config_of(labels, site=new)
        return "\n".join(label_warnings(config, open_sources(config, known=merged)))

    assert of({}) == (
        "likely the same class, not merged: 'walkers' and 'Walker', which the weights merged from man, lady. If "
        "they are, `labels.merge: {Walker: [site/walkers]}`; if one box may show both, `labels.overlap: [[Walker, "
        "walkers]]`; if they are different things, `labels.distinct: [site/walkers]`"
    )
    for rule in ({"merge": {"Walker": ["site/walkers"]}}, {"overlap": [["Walker", "walkers"]]},
                 {"distinct": ["site/walkers"]}):  # fmt: skip
        assert of(rule) == "", rule


def test_a_part_that_the_weights_know_stays_a_class_of_its_own(tmp_path):
    known = LabelSpace.build({"old": ["pedestrian"]})
    config = config_of(None, site={"train": index(tmp_path / "a", "person", GOOD)})
    text = "\n".join(label_warnings(config, open_sources(config, known=known)))
    assert "by their names part of 'person': old/pedestrian." in text
    assert "say `labels.overlap: [[person, pedestrian]]`" in text
    assert "merge" not in text


def test_what_an_old_dataset_had_as_regions_is_asked_for(tmp_path):
    both = index(tmp_path / "a", "person blurred", [*GOOD, ((50.0, 50.0, 60.0, 60.0), 1)])
    known = LabelSpace.build({"site": ["person"]})

    def of(**more: Any) -> str:
        config = config_of(None, site={"train": both, **more})
        return "\n".join(label_warnings(config, open_sources(config, known=known)))

    assert of() == (
        "site train: the weights do not know this dataset with boxes of blurred; if these were regions before, say "
        "it again: `datasets.site.ignore_classes: [blurred]`"
    )
    assert of(ignore_classes=["blurred"]) == ""


def test_a_few_objects_of_a_class_that_others_show_often(tmp_path):
    """61 pedestrians' pictures with one face box, by a slip: the question about listed classes is not asked."""
    face = ((50.0, 50.0, 60.0, 60.0), 1)
    peds = index(tmp_path / "a", "person face", *[GOOD] * 40, [*GOOD, face], *[[]] * 20)
    faces = index(tmp_path / "b", "face", *[GOOD] * 6, *[[]] * 5)
    labels = {"merge": {"face": ["peds/face", "faces/face"]}}
    text = told(config_of(labels, peds={"train": peds}, faces={"train": faces}))
    assert text == (
        "peds train: very few objects, 1 of face in 61 pictures, where another dataset shows them often. Its "
        "background is a negative for face; if its pictures show more than that, say "
        "`labels.not_exhaustive: {peds: [face]}`"
    )
    said = {**labels, "not_exhaustive": {"peds": ["face"]}}
    assert told(config_of(said, peds={"train": peds}, faces={"train": faces})) == ""
    more = index(tmp_path / "a", "person face", *[[*GOOD, face]] * 4, *[GOOD] * 57)  # rare, and labelled
    assert told(config_of(labels, peds={"train": more}, faces={"train": faces})) == ""
    few = index(tmp_path / "a", "person face", *[GOOD] * 40, [*GOOD, face])  # of so few one may show a face
    assert told(config_of(labels, peds={"train": few}, faces={"train": faces})) == ""


ODD = ("ship, big", "x: y", "yes", "1e-4", "it's [one]")


@pytest.mark.parametrize("name", ODD)
def test_rules_that_are_advised_can_be_pasted(name, tmp_path):
    """They stood without quotes, and training waited for an answer that was refused as it was shown."""
    one, other = (
        replace(index(tmp_path / d, f"{d} x", [*GOOD, ((5, 5, 20, 20), 1)]), classes=(d, own))
        for d, own in (("a", name), ("b", name.upper()))
    )
    text = told(config_of(a={"train": one}, b={"train": other}))
    advised = dict(re.findall(r"`labels\.(\w+): (.*?)`", text))
    assert set(advised) >= {"merge", "overlap", "distinct"}
    for key, value in advised.items():
        again = told(config_of(parsed(f"{key}: {value}"), a={"train": one}, b={"train": other}))
        assert "likely the same class" not in again, (key, value)


@pytest.mark.parametrize("name", ODD)
def test_the_answer_about_a_class_without_a_box_can_be_pasted(name, tmp_path):
    listed = replace(index(tmp_path / "a", "car x", GOOD), classes=("car", name))
    shown = replace(index(tmp_path / "b", "x", GOOD), classes=(name,))
    splits = {"a": {"train": listed}, "b": {"train": shown}}
    sources = open_sources(config_of({"merge": {"same_names": True}}, **splits))
    asked = listed_only_problem(sources.listed_only)
    (answer,) = re.findall(r"^ *unlabelled: (.*?)    #", asked, re.MULTILINE)
    unlabelled = parsed(f"unlabelled: {answer}")["unlabelled"]
    space = open_sources(config_of({"merge": {"same_names": True}, "unlabelled": unlabelled}, **splits)).space
    assert space.trusted_array("a").tolist() == [True, False]
