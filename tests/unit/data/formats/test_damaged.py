"""Damaged annotation files: whatever stands in them, a reader answers with an index or a `UserError`."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from crossdet.data.annotation_files import read_lines, read_text
from crossdet.data.formats import FORMATS
from crossdet.data.formats.format import SplitFiles
from crossdet.data.reading import read_split
from crossdet.errors import AnnotationError, UserError

from ..test_reading import write_all
from .helpers import save_image

NOT_TEXT = b"\xff\xfe caf\xe9"
FILES = {
    "coco": ["coco.json"],
    "voc": ["Annotations/a.xml", "ImageSets/Main/train.txt"],
    "wider_face": ["faces.txt"],
    "wider_pedestrian": ["peds.txt", "ignore.txt", "list.txt"],
    "yolo": ["data.yaml", "labels/train/a.txt", "list.txt"],
}
CASES = [(format, name) for format, names in FILES.items() for name in names]
TOKENS = [
    b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"1e400", b"-1e30", b"9" * 400, b"9" * 5000, b"nan", b"inf",
    b"70000", b"-", b"0", b"1", b"3000000000", b"\n", b" ", b"/", b"../", b".", b"'", b'"', b"[", b"]", b"{", b"}",
    b":", b",", b"null", b"true", b"[]", b"{}", b"\\ud800", b"\\u0000", b"<", b">", b"</a>", b"&lt;", b"&x;",
    b"!!bool x", b"!!int ''", b"2024-13-45", b"&a [*a]", b"*a", b"0x", b"x" * 5000,
    b"<?xml version='1.0' encoding='x'?>", b"-->",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))


def write(root: Path) -> dict[str, SplitFiles]:
    files = write_all(root)
    (root / "list.txt").write_text("".join(f"images/train/{name}.png\n" for name in "abc"))
    images, annotations = root / "images/train", root / "peds.txt"
    files["wider_pedestrian"] = SplitFiles(
        (annotations,), (images,), (str(root / "list.txt"),), (root / "ignore.txt",)
    )
    data = root / "data.yaml"
    data.write_text(data.read_text() + "val: list.txt\n")
    files["yolo list"] = SplitFiles((data,), split="val")
    return files


def damaged(content: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice([0, 0, 1, 1, 3, 20]))
        new = chance.choice([b"", chance.choice(TOKENS), bytes([chance.randrange(256)]), content[at:end] * 2])
        content = content[:at] + new + content[end:]
    return content


@pytest.mark.parametrize(("format", "name"), CASES)
def test_only_user_errors(format: str, name: str, tmp_path: Path) -> None:
    files = write(tmp_path)["yolo list" if (format, name) == ("yolo", "list.txt") else format]
    file = tmp_path / name
    good = file.read_bytes()
    chance = random.Random(f"{format} {name}")
    refused = 0
    for _ in range(int(os.environ.get("CROSSDET_FUZZ", "60"))):
        content = damaged(good, chance)
        file.write_bytes(content)
        try:
            read_split(format, files)
        except UserError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}, with {content[:3000]!r}")
    assert refused


@pytest.mark.parametrize(("format", "name"), CASES)
def test_not_text_names_the_file_and_the_byte(format: str, name: str, tmp_path: Path) -> None:
    files = write(tmp_path)["yolo list" if (format, name) == ("yolo", "list.txt") else format]
    file = tmp_path / name
    content = file.read_bytes()
    file.write_bytes(content + b"\n" + NOT_TEXT if not name.endswith("xml") else content[:-4] + b"\xff")
    with pytest.raises(AnnotationError) as error:
        read_split(format, files)
    assert str(file) in str(error.value)
    if name.endswith("txt"):
        assert f"byte {len(content) + 1} of the file (0xff) is not text in UTF-8" in str(error.value)


@pytest.mark.parametrize(("format", "name"), CASES)
def test_a_file_that_cannot_be_read(format: str, name: str, tmp_path: Path) -> None:
    """A link to itself; for root, who runs tests in containers, permissions mean nothing."""
    files = write(tmp_path)["yolo list" if (format, name) == ("yolo", "list.txt") else format]
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=r"symbolic links|does not exist|has no|no folder and no file"):
        read_split(format, files)


def test_text_with_and_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_lines(file) == ["a", "b"]
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\xe9")
    with pytest.raises(AnnotationError) as error:
        read_text(file)
    assert str(error.value).startswith(f"{file}:2: byte 7 of the file (0xe9) is not text in UTF-8")
    with pytest.raises(AnnotationError, match=r"b\.txt: cannot be read \(No such file"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_text(tmp_path / "b\0.txt")


def coco_with(tmp_path: Path, section: str, **change: Any) -> SplitFiles:
    files = write_all(tmp_path)["coco"]
    content = json.loads((tmp_path / "coco.json").read_text())
    content[section][0] |= change
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return files


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("annotations", {"bbox": [0, 0, 1, 10**400]}, r"annotations\[0\]\.bbox: .*expected four numbers"),
        ("annotations", {"area": 10**400}, r"annotations\[0\]\.area: .*expected a number"),
        ("images", {"file_name": "a\ud800.png"}, r'images\[0\]\.file_name: "a\\ud800.png", expected the image'),
        ("images", {"file_name": "a\0.png"}, r"images\[0\]\.file_name: .*expected the image"),
        ("categories", {"name": "\udcff"}, r"categories\[0\]\.name: .* holds half a character"),
    ],
)
def test_coco_values(section: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_split("coco", coco_with(tmp_path, section, **change))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", '{"a":' * 100_000])
def test_coco_files_no_parser_takes(text: str, tmp_path: Path) -> None:
    files = write_all(tmp_path)["coco"]
    (tmp_path / "coco.json").write_text(text)
    with pytest.raises(AnnotationError, match="not usable JSON"):
        read_split("coco", files)


@pytest.mark.parametrize("encoding", ["klingon", "utf-32", "shift_jis", "idna", "rot13"])
def test_voc_encodings(encoding: str, tmp_path: Path) -> None:
    files = write_all(tmp_path)["voc"]
    xml = tmp_path / "Annotations/a.xml"
    xml.write_text(f"<?xml version='1.0' encoding='{encoding}'?>\n<annotation></annotation>")
    with pytest.raises(AnnotationError) as error:
        read_split("voc", files)
    assert f"{xml}:" in str(error.value)


@pytest.mark.parametrize("width", ["1e30", "3000000000", "1e999", "nan", "-4", "wide"])
def test_voc_sizes_that_are_none_come_from_the_image(width: str, tmp_path: Path) -> None:
    files = write_all(tmp_path)["voc"]
    xml = tmp_path / "Annotations/a.xml"
    assert "<width>100</width>" in xml.read_text()
    xml.write_text(xml.read_text().replace("<width>100</width>", f"<width>{width}</width>"))
    assert read_split("voc", files).sizes.tolist() == [[80, 100]] * 3


@pytest.mark.parametrize("value", ["70000", "-32769", "1e30"])
def test_wider_face_attributes_out_of_range(value: str, tmp_path: Path) -> None:
    files = write_all(tmp_path)["wider_face"]
    (tmp_path / "faces.txt").write_text(f"a.png\n1\n1 2 3 4 0 0 0 0 0 {value}\n")
    with pytest.raises(AnnotationError, match=rf"faces\.txt:3: .* {value}', expected .*-32768 to 32767"):
        read_split("wider_face", files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]\nnc: 2024-13-45\n", "holds a value that cannot be read"),
        ("names: [a]\nnc: !!bool x\n", "holds a value that cannot be read"),
        ("[" * 5000, "cannot be read|not valid YAML"),
        ("names: {" + "9" * 400 + ": a}\ntrain: images", "expected a class id 0, 1"),
        ("names: {1: a, '01': b}\ntrain: images", "names: class id 1 is listed twice"),
        ("names: [a, [b]]\ntrain: images", r"names\[1\]: a list, expected a class name"),
        ("names: &a [*a]\ntrain: images", r"line 1 column 8: not valid YAML \(an alias that contains itself\)"),
        ("names: [a]\ntrain: {b: c}", "`train`: a map, expected a folder"),
        ("names: [a]\ntrain: images\npath: [b]", "path: a list, expected the folder"),
        ("names: [a]\ntrain: " + "x" * 5000, r"x \[... [0-9],[0-9]+ characters ...\] x+\); correct it or `path`"),
        ("names: [a]\ntrain: [images]\nnc: [a]", "nc: a list, but `names` has 1 classes"),
    ],
)
def test_yolo_yaml(text: str, message: str, tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.png")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read_split("yolo", SplitFiles((tmp_path / "data.yaml",)))


def test_yolo_file_names_that_are_no_text(tmp_path: Path) -> None:
    """Names with bytes that are no UTF-8 are usual on Linux."""
    files = write_all(tmp_path)["yolo"]
    images = os.fsencode(tmp_path / "images/train")
    try:
        os.rename(images + b"/a.png", images + b"/caf\xe9.png")  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    for _ in range(2):
        index = read_split("yolo", files)
        assert sorted(path.is_file() for path in map(index.path, range(3))) == [True] * 3


def test_formats_are_all_here() -> None:
    assert set(FILES) == set(FORMATS)
