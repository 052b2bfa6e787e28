"""File names made of names from data: they stay in their folder, and no two names share a file."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crossdet.files import LONGEST, safe_name, safe_names, spellings

HOSTILE = [
    "../../x", "/etc/x", "..", ".", "", "...", ".hidden", "a/b", "a\\b", "C:\\x", "a:b", "con", "LPT1.txt", "nul ",
    "tab\tx", "new\nline", "nul\0", "\x1b[31m", "\u2028", "\ud800", " ", "x ", "x.", "x" * 400, "é" * 150, "∂" * 80,
    "a~0123456789ab", "a~" + "0" * 64, "\u00e9", "e\u0301", "Car", "car", "CAR", "straße", "STRASSE", "a*?<>|\"",
]  # fmt: skip
PIECES = st.sampled_from([*HOSTILE, "_", "~", "a", "B", "ß", "0" * 12, "_2"])
NAMES = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=4).map("".join), st.sampled_from(HOSTILE))
EVERY_UNIT = st.text(st.characters(exclude_categories=()), max_size=20)  # halves of surrogate pairs, too


def one_file(name: str) -> str:
    """What file systems that ignore case and the form of accents (those of Windows and macOS) go by."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check(made: str, longest: int = LONGEST) -> None:
    for path in (PurePosixPath("folder") / made, PureWindowsPath("folder") / made):
        assert path.parent.name == "folder"
        assert path.name == made
        assert len(path.parts) == 2
    assert made
    assert made not in (".", "..")
    assert not made.startswith(".")
    assert made == made.strip()
    assert not made.endswith(".")
    assert all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in made)
    assert not set(made) & set('<>:"/\\|?*')
    assert not PureWindowsPath(made).is_reserved()
    assert len(made.encode()) <= longest


@given(st.one_of(NAMES, EVERY_UNIT))
def test_a_name_stays_in_its_folder(name: str) -> None:
    check(safe_name(name))
    for one in spellings(name):
        check(one)


@given(st.lists(st.one_of(NAMES, EVERY_UNIT), max_size=12))
@example(HOSTILE)
@example(["a", "a", "a_2", "A", "A_2"])
@example(["a/b", "a/b", safe_name("a/b"), f"{safe_name('a/b')}_2"])
def test_names_never_share_a_file(names: list[str]) -> None:
    made = safe_names(names)
    assert len(made) == len(names)
    assert len({one_file(one) for one in made}) == len(names)
    for name, one in zip(names, made, strict=True):
        check(one, LONGEST + 4)
        if names.count(name) == 1:
            assert one in spellings(name)  # whoever looks for it finds it
    for other in set(names):
        wrong = {one for name, one in zip(names, made, strict=True) if name != other} & set(spellings(other))
        assert not wrong


@given(st.text(st.characters(categories=("L", "N"), include_characters="-_ (),.+"), min_size=1, max_size=40))
def test_ordinary_names_stay(name: str) -> None:
    plain = f"x{name}y"  # no dot, no space at the ends; no device is called x...
    assert safe_name(plain) == plain


@pytest.mark.parametrize(
    "name",
    [
        "car",
        "traffic light",
        "人",
        "stop sign (old)",
        "a.b.c",
        "wait...what",
        "0--Parade",
        "-x",
        "~x",
        "content",
        "con-1",
    ],
)
def test_examples_that_stay(name: str) -> None:
    assert safe_name(name) == name


def test_by_hand() -> None:
    # printf '../x' | sha256sum
    assert safe_name("../x") == "__x~d6b96a97d147"
    assert safe_name("../car") == "__car~31ff57496516"  # as docs/evaluation.md says
    assert safe_name(".hidden").startswith("_hidden~")
    assert safe_name("con.v2").startswith("_con.v2~")
    assert safe_names(["photo", "photo", "photo_2", "photo"]) == ["photo", "photo_3", "photo_2", "photo_4"]
    first, second = safe_names(["Car", "car"])
    assert (first, second.split("~")[0]) == ("Car", "car")


def test_many_equal_names_take_no_longer_than_others() -> None:
    made = safe_names(["image"] * 20_000)
    assert (made[0], made[1], made[-1]) == ("image", "image_2", "image_20000")
    assert len(set(made)) == len(made)


def test_the_file_system_takes_them(tmp_path: Path) -> None:
    for name in safe_names(HOSTILE):
        (tmp_path / f"{name}.txt").write_text("x")
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)
