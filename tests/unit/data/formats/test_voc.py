"""PASCAL VOC annotations: 1-based corners, parts, several years, image sets, every malformed case."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crossdet.data.formats.voc import read_voc, write_voc
from crossdet.data.index import NOT_A_NUMBER, NOT_FOUND, OTHER_SPELLING, XML_BELOW, IndexBuilder
from crossdet.errors import AnnotationError
from crossdet.types import Flag

from .helpers import assert_same, mistakes, sample_index, save_image

OBJECT = """  <object>
    <name>{name}</name><difficult>{difficult}</difficult>
    <bndbox><ymin>{box[1]}</ymin><xmin>{box[0]}</xmin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
  </object>
"""


def voc_object(name: str = "cat", box: tuple[float | str, ...] = (1, 1, 10, 20), difficult: int = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def voc_xml(*objects: str, filename: str = "a.jpg", size: tuple[int, int] | None = (100, 80)) -> str:
    parts = ["<annotation>\n", f"  <filename>{filename}</filename>\n"]
    if size:
        parts.append(f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n")
    return "".join([*parts, *objects, "</annotation>\n"])


class Year:
    """A VOC folder with its XMLs and images."""

    def __init__(self, root: Path) -> None:
        self.root, self.xmls, self.images = root, root / "Annotations", root / "JPEGImages"
        self.xmls.mkdir(parents=True)
        self.images.mkdir()

    def add(self, name: str, xml: str, suffix: str = ".jpg") -> Path:
        save_image(self.images / f"{name}{suffix}")
        (self.xmls / f"{name}.xml").write_text(xml)
        return self.xmls / f"{name}.xml"

    def image_set(self, *lines: str) -> Path:
        (self.root / "set.txt").write_text("\n".join(lines))
        return self.root / "set.txt"


@pytest.fixture
def year(tmp_path: Path) -> Year:
    return Year(tmp_path / "VOC2007")


def test_boxes_flags_and_sizes(year: Year) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    year.add(
        "b",
        voc_xml(
            voc_object("dog", (1, 1, 100, 80), difficult=1),
            voc_object("cat", (45.70000076, 2, 50.5, 80)).replace("</object>", part),
        ),
    )
    year.add("a", voc_xml(size=None))
    index = read_voc([year.xmls], [year.images])
    assert index.classes == ("cat", "dog")  # sorted; no `head`
    assert [index.names[i] for i in range(2)] == ["a.jpg", "b.jpg"]
    assert index.root == str(year.images)
    assert index.boxes[0].tolist() == [0, 0, 100, 80]  # the box over the whole image
    np.testing.assert_allclose(index.boxes[1], [44.70000076, 1, 50.5, 80])
    assert index.labels.tolist() == [1, 0]
    assert index.flags.tolist() == [Flag.DIFFICULT, 0]
    assert index.sizes.tolist() == [[80, 100], [80, 100]]  # the first from the header of the image
    assert np.diff(index.box_offsets).tolist() == [0, 2]
    assert index.skipped == {}


def test_given_classes_keep_their_order(year: Year) -> None:
    year.add("a", voc_xml(voc_object("cat")))
    index = read_voc([year.xmls], [year.images], classes=("dog", "cat"))
    assert index.classes == ("dog", "cat")
    assert index.labels.tolist() == [1]


def test_two_years_with_equal_ids(tmp_path: Path) -> None:
    years = [Year(tmp_path / "VOC2007"), Year(tmp_path / "VOC2012")]
    years[0].add("000001", voc_xml(voc_object("cat")))
    years[1].add("000001", voc_xml(voc_object("dog"), voc_object("cat")))
    sets = [y.image_set("000001") for y in years]
    index = read_voc([y.xmls for y in years], [y.images for y in years], sets)
    assert [index.names[i] for i in range(2)] == ["VOC2007/JPEGImages/000001.jpg", "VOC2012/JPEGImages/000001.jpg"]
    assert index.path(1) == years[1].images / "000001.jpg"
    assert index.labels.tolist() == [0, 1, 0]


def test_file_names(year: Year) -> None:
    year.add("a", voc_xml(filename="wrong.jpg"), ".PNG")
    (year.xmls / "b.xml").write_text(voc_xml(filename="other.jpeg"))
    save_image(year.images / "other.jpeg")
    (year.xmls / "c.xml").write_text(voc_xml(filename="/home/pi/c.jpg"))
    index = read_voc([year.xmls], [year.images])
    assert [index.names[i] for i in range(3)] == ["a.PNG", "other.jpeg", "c.jpg"]
    assert index.skipped == {"image not found": [f"{year.xmls / 'c.xml'}: {year.images / 'c.jpg'}"]}


def test_an_xml_that_names_another_picture_than_the_one_named_as_it(year: Year) -> None:
    """After renaming, or because its numbers are others: nobody can tell."""
    year.add("5", voc_xml(filename="5.PNG"), ".PNG")  # beside another one of this name
    save_image(year.images / "5.jpg")
    assert read_voc([year.xmls], [year.images]).names[0] == "5.PNG"
    for name, said in (("1", "2.jpg"), ("2", "3.jpg"), ("3", "4.jpg")):
        year.add(name, voc_xml(filename=said))
    with pytest.raises(AnnotationError) as told:
        read_voc([year.xmls], [year.images])
    assert "2 mistake(s)" in str(told.value)  # there is no 4.jpg, so 3.xml is of 3.jpg
    assert "1.xml: its <filename> is 2.jpg, and there is 1.jpg, too; of which" in str(told.value)


def test_written_names_are_read_back_beside_a_picture_of_the_xmls_name(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path / "pictures")
    for name in ("cam1/1.jpg", "cam2/1.jpg", "cam1_1.jpg"):
        save_image(tmp_path / "pictures" / name)
        builder.image(name, 80, 100)
        builder.box((10, 20, 30, 60), 0)
    for index in (builder.build(["cat"]), builder.build(["cat"]).take(np.array([0, 1]))):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        write_voc(index, tmp_path / "out", "train")
        read = read_voc([tmp_path / "out/Annotations"], [tmp_path / "pictures"])
        assert sorted(read.names) == sorted(index.names)
        assert len(read.boxes) == len(index.boxes)


def test_two_xmls_of_one_picture(year: Year) -> None:
    year.add("a", voc_xml())
    (year.xmls / "b.xml").write_text(voc_xml(filename="a.jpg"))
    (year.xmls / "a.xml").write_text(voc_xml(filename=""))
    with pytest.raises(
        AnnotationError, match=r"b\.xml: its picture .*a\.jpg is that of .*a\.xml as well; put the objects"
    ):
        read_voc([year.xmls], [year.images])


def test_one_file_name_copied_into_several_xmls(year: Year) -> None:
    for name in ("a", "b"):
        year.add(name, voc_xml(filename="a.jpg"))
    index = read_voc([year.xmls], [year.images])
    assert [index.names[i] for i in range(2)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("listed", [False, True])
def test_endings_in_capitals(listed: bool, year: Year) -> None:
    year.add("a", voc_xml(voc_object())).rename(year.xmls / "a.XML")
    sets = [year.image_set("a")] if listed else []
    index = read_voc([year.xmls], [year.images], sets)
    assert (list(index.names), len(index.boxes)) == (["a.jpg"], 1)


def test_image_set_with_flags(year: Year) -> None:
    for name in ("a", "b", "c", "with space", "d 1"):
        year.add(name, voc_xml())
    file = year.image_set("b  1", "a -1", "", "c  0", "with space", "d 1")
    index = read_voc([year.xmls], [year.images], [file])
    names = [index.names[i] for i in range(len(index))]
    assert names == ["b.jpg", "c.jpg", "with space.jpg", "d 1.jpg"]


def test_box_left_out_is_placed_by_line(year: Year) -> None:
    xml = year.add("a", voc_xml(voc_object(), voc_object(box=(5, 5, "1e99", 9)), voc_object(box=(300, 5, 400, 9))))
    index = read_voc([year.xmls], [year.images])
    assert len(index.boxes) == 1
    assert index.skipped == {
        NOT_A_NUMBER: [f"{xml}:8: (4.0, 4.0, 1e+99, 9.0)"],
        "box outside its image": [f"{xml}:12: xyxy [299, 4, 400, 9] in an image of 100x80"],
    }


def test_a_box_drawn_from_another_corner(year: Year) -> None:
    year.add("a", voc_xml(voc_object(box=(40, 9, 11, 5))))
    (year.xmls / "._a.xml").write_bytes(b"\0\5\26\7")  # what macOS leaves beside a file
    index = read_voc([year.xmls], [year.images])
    assert index.boxes.tolist() == [[10, 4, 40, 9]]
    assert len(index) == 1


def test_unspecified_is_not_difficult(year: Year) -> None:
    year.add("a", voc_xml(voc_object().replace("<difficult>0<", "<difficult>Unspecified<")))
    assert read_voc([year.xmls], [year.images]).flags.tolist() == [0]


def test_round_trip(tmp_path: Path) -> None:
    index = sample_index(tmp_path / "images", integers=False)
    index.flags[0] = Flag.DIFFICULT
    write_voc(index, tmp_path / "voc", "train")
    again = read_voc(
        [tmp_path / "voc" / "Annotations"], [tmp_path / "images"], [tmp_path / "voc/ImageSets/Main/train.txt"]
    )
    assert_same(again, index)
    assert "<xmin>11.25</xmin>" in (tmp_path / "voc/Annotations/a.xml").read_text()
    assert "<xmin>1</xmin>" in (tmp_path / "voc/Annotations/c.xml").read_text()


def test_written_ids_are_unique_and_regions_difficult(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path / "images")
    for folder in ("x", "y"):
        save_image(tmp_path / "images" / folder / "1.png")
        builder.image(f"{folder}/1.png", 80, 100)
        builder.box((1, 2, 3, 4), -1 if folder == "x" else 1, Flag.IGNORE_REGION)
    write_voc(builder.build(["cat", "dog"]), tmp_path, "val")
    assert (tmp_path / "ImageSets/Main/val.txt").read_text() == "x_1\ny_1\n"
    index = read_voc([tmp_path / "Annotations"], [tmp_path / "images"])
    assert [index.names[i] for i in range(2)] == ["x/1.png", "y/1.png"]
    assert index.labels.tolist() == [0, 1, 1]
    assert set(index.flags.tolist()) == {Flag.DIFFICULT}


MALFORMED = [
    (voc_xml().replace("</annotation>", "</annotations>"),
     "{xml}:4: malformed XML (mismatched tag: line 4, column 2); repair or replace the file"),
    (voc_xml(voc_object(), "<object>\n<name>dog</name>\n</object>"),
     "{xml}:8: <object> 'dog' without <bndbox>; add its box or remove the object"),
    (voc_xml(voc_object(name=" ")), "{xml}:4: <object> without <name>; add the class name"),
    (voc_xml(voc_object(box=(1, "x", 3, ""))),
     "{xml}:4: <bndbox> of 'cat' has ymin 'x', ymax '', expected four numbers xmin, ymin, xmax, ymax"),
    (voc_xml(voc_object(difficult=3)), "{xml}:4: <difficult> of 'cat' is '3', expected 0 or 1"),
    (voc_xml(voc_object("emu")), "{xml}:4: unknown class 'emu'; the dataset's classes are cat, dog"),
    ("<html></html>", "{xml}:1: the root element is <html>, expected VOC's <annotation>"),
    ('<!DOCTYPE a [<!ENTITY b "c">]>\n' + voc_xml(), "{xml}: refused XML with entities "),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MALFORMED)
def test_malformed(content: str, message: str, year: Year) -> None:
    xml = year.add("a", content)
    with pytest.raises(AnnotationError) as error:
        read_voc([year.xmls], [year.images], classes=["cat", "dog"])
    assert len(mistakes(error)) == 1
    assert mistakes(error)[0].startswith(message.format(xml=xml))


def test_all_mistakes_at_once(year: Year) -> None:
    year.add("a", "<annotation>")
    year.add("b", voc_xml(voc_object(difficult=3)))
    file = year.image_set("a", "b", "c", "b", "d 7")
    with pytest.raises(AnnotationError) as error:
        read_voc([year.xmls], [year.images], [file])
    assert str(error.value).startswith(f"{year.xmls}: 5 mistake(s)")
    assert mistakes(error)[:3] == [
        f"{file}:3: 'c' has no {year.xmls / 'c'}.xml; add that file or remove the line",
        f"{file}:4: 'b' is already listed on line 2; remove one of the two",
        f"{file}:5: 'd 7', expected an image id, or an id and -1, 0 or 1",
    ]


def test_names_are_composed(tmp_path: Path) -> None:
    year = Year(tmp_path)
    year.add("a", voc_xml(voc_object("cafe\u0301"), voc_object("caf\u00e9")))
    assert read_voc([year.xmls], [year.images]).classes == ("caf\u00e9",)


# ------------------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize(
    ("xml", "said", "picture"),
    [
        ("cafe\u0301", "cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("0", "0.jpg", "0.Jpg"),
        ("f0", "other.jpg", "F0.PNG"),  # renamed: what stands in it is of before
        ("1", "sub/a.jpg", "Sub/A.jpg"),
    ],
)
def test_pictures_that_are_spelt_otherwise(xml: str, said: str, picture: str, year: Year) -> None:
    save_image(year.images / picture)
    (year.xmls / f"{xml}.xml").write_text(voc_xml(voc_object(), filename=said, size=None))
    index = read_voc([year.xmls], [year.images])
    assert list(index.names) == [picture]
    assert index.sizes.tolist() == [[80, 100]]
    place = f"{year.xmls}/{xml}.xml: its picture is {year.images}/{picture}"
    assert index.skipped == {OTHER_SPELLING: [place]}


def test_a_spelling_that_several_pictures_or_xmls_may_mean(year: Year) -> None:
    for name in ("0.Jpg", "0.jPg", "a.jpg", "B.JPg", "c.Jpg", "d.Jpg"):
        save_image(year.images / name)
    for name, said in (("0", "0.jpg"), ("a", "a.jpg"), ("A", ""), ("b", "x.jpg"), ("B", "y.jpg"), ("c", "d.jpg")):
        (year.xmls / f"{name}.xml").write_text(voc_xml(filename=said))
    index = read_voc([year.xmls], [year.images])
    assert [index.names[row] for row in range(6)] == ["0.jpg", "A.jpg", "B.jpg", "a.jpg", "b.jpg", "c.jpg"]
    assert len(index.skipped[NOT_FOUND]) == 5
    assert OTHER_SPELLING not in index.skipped


def test_xmls_in_folders_below(year: Year) -> None:
    """Roboflow's and LabelImg's users sort them into folders; they were passed over without a word."""
    for name in ("sub/0", "sub/1", "2"):
        (year.images / "sub").mkdir(exist_ok=True)
        (year.xmls / "sub").mkdir(exist_ok=True)
        year.add(name, voc_xml(voc_object(), filename=f"{name}.jpg"))
    for name in ("sub/._0.xml", ".old/3.xml"):
        (year.xmls / name).parent.mkdir(exist_ok=True)
        (year.xmls / name).write_text("")
    sub = year.xmls / "sub"
    index = read_voc([year.xmls], [year.images])
    assert list(index.names) == ["2.jpg"]
    assert index.skipped == {XML_BELOW: [f"{sub}/0.xml", f"{sub}/1.xml"]}
    both = read_voc([year.xmls, sub], [year.images, year.images])
    assert (len(both), both.skipped) == (3, {})
    assert XML_BELOW not in read_voc([year.xmls], [year.images], [year.image_set("2")]).skipped
    (year.xmls / "2.xml").unlink()
    with pytest.raises(AnnotationError) as error:
        read_voc([year.xmls], [year.images])
    assert mistakes(error) == [
        f"no XML in {year.xmls} (2 are in {sub}); say `annotations: [{sub}]`, and `images` for each"
    ]
    shutil.rmtree(sub)
    with pytest.raises(AnnotationError) as error:
        read_voc([year.xmls], [year.images])
    assert mistakes(error) == [f"no XML in {year.xmls}; expected one for each picture"]
