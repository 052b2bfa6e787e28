"""Pictures that stay together: what groups them, and parts of a dataset that leave no group in pieces."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crossdet.check import inspect
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.groups import drawn, group
from crossdet.data.index import NO_LABELS, Index, IndexBuilder
from crossdet.errors import ConfigError, UserError

NAMES = ["train/a_jpg.rf.1.jpg", "train/b_jpg.rf.2.jpg", "other.png", "train/a_jpg.rf.3.jpg", "more/a_jpg.rf.4.jpg"]
COPIES = r"([^/]+)_jpg\.rf"


def index_of(names: list[str]) -> Index:
    builder = IndexBuilder("nowhere")
    for name in names:
        builder.image(name, 48, 64)
        builder.box((10, 10, 40, 40), 0, 0)
    return builder.build(("x",))


@pytest.fixture
def index() -> Index:
    return index_of(NAMES)


def test_by_an_expression(index):
    groups = group(index, COPIES)
    assert groups.of.tolist() == [0, 1, 2, 0, 0]
    assert (groups.count, groups.alone) == (3, 1)
    assert str(groups) == "5 pictures in 3 groups, of them 1 pictures that nothing groups"
    assert group(index, r"^(\w+)/").of.tolist() == [0, 0, 1, 0, 2]
    assert group(index, r"(?:more/()|b)").of.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]  # an empty text is a group, no match is none


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.csv", "path,group\ntrain/a_jpg.rf.1.jpg,7\na_jpg.rf.3.jpg, 7\nother.png,8\n"),
        ("g.json", '{"train/a_jpg.rf.1.jpg": 7, "a_jpg.rf.3.jpg": "7", "other.png": 8}'),
    ],
)
def test_by_a_file(index, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    groups = group(index, str(tmp_path / name))
    assert groups.of.tolist() == [0, 1, 2, 0, 3]
    assert groups.alone == 2


@pytest.mark.parametrize(
    ("given", "text", "said"),
    [
        ("(a)(b)", None, "expected one group in round brackets"),
        ("(a", None, "no regular expression"),
        ("(zzz)", None, "matches no picture; their paths are such as train/a_jpg.rf.1.jpg"),
        ("g.csv", "a,b,c\n", "row 1: expected path,group, got a,b,c"),
        ("g.csv", "other.png,1\nother.png,2\n", "other.png is in two groups, 1 and 2"),
        ("g.json", "[1]", "expected a JSON object"),
        ("g.json", "{", "no JSON"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_mistakes(index, tmp_path, given, text, said):
    if text is not None:
        (tmp_path / given).write_text(text)
    with pytest.raises(UserError, match=said):
        group(index, given if "(" in given else str(tmp_path / given))


def parts(index: Index, count: int, **keys: str) -> list[list[str]]:
    found = []
    for number in range(1, count + 1):
        dataset = {"train": index, "part": f"{number}/{count}", **keys}
        train = open_sources(Config.from_dict({"datasets": {"d": dataset}})).train["d"]
        found.append([train.names[row] for row in range(len(train))])
    return found


def test_a_part_takes_whole_groups(index):
    assert parts(index, 2) == [NAMES[::2], NAMES[1::2]]  # as before
    halves = parts(index, 2, group_by=COPIES)
    assert halves == [[NAMES[0], *NAMES[2:]], [NAMES[1]]]
    # a part of a part is one of the whole: what replay sees again is what was learnt
    (quarter, *_) = parts(index, 4, group_by=COPIES)
    assert set(quarter) <= set(halves[0])


def test_the_config_says_it(index):
    dataset = {"train": index, "part": "1/2", "group_by": COPIES}
    report = inspect(Config.from_dict({"datasets": {"d": dataset}}))
    assert "d: `part` 1/2 leaves no group in pieces: 5 pictures in 3 groups, of them 1" in "\n".join(report.notes)
    for keys, said in (
        ({"group_by": COPIES}, "`datasets.d.group_by` says which pictures stay together in a share"),
        ({"group_by": "(a", "part": "1/2"}, "`datasets.d.group_by`: no regular expression"),
        ({"group_by": 3, "part": "1/2"}, "expected a regular expression or a .csv or .json file"),
    ):
        with pytest.raises(ConfigError) as error:
            Config.from_dict({"datasets": {"d": {"train": index, **keys}}})
        assert said in str(error.value)


def opened(**dataset: object) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation pictures."""
    sources = open_sources(Config.from_dict({"datasets": {"d": dataset}}))
    train, val = sources.train["d"], sources.val["d"]
    return [train.names[row] for row in range(len(train))], [val.names[row] for row in range(len(val))]


@given(pictures=st.integers(2, 40), share=st.integers(2, 9), first=st.integers(1, 9), part=st.integers(1, 4))
def test_what_is_validated_on_is_never_trained_on(pictures, share, first, part):
    assume(first <= share)
    names = [f"{row % 7}_{row}.jpg" for row in range(pictures)]
    index = index_of(names)
    val = f"{first}/{share}"
    train, held_out = opened(train=index, val=val)
    assert sorted([*train, *held_out]) == sorted(names)
    assert train
    assert held_out
    # parts are of the rest: together all of it, none twice, and all with the same validation pictures
    assume(len(train) >= part)
    parts = [opened(train=index, val=val, part=f"{number}/{part}") for number in range(1, part + 1)]
    assert sorted(name for one, _ in parts for name in one) == sorted(train)
    assert all(other == held_out for _, other in parts)
    assert max(len(one) for one, _ in parts) - min(len(one) for one, _ in parts) <= 1


@given(st.sets(st.integers(0, 10**6), min_size=60, max_size=120), st.integers(1, 50), st.randoms())
@settings(max_examples=30)
def test_pictures_that_come_and_go_move_no_other(numbers, fewer, random):
    """Else a config that is used again after pictures were added would validate on what was learnt."""
    names = [f"p{number}.jpg" for number in numbers]
    train, held_out = (set(part) for part in opened(train=index_of(names), val="1/3"))
    random.shuffle(names)
    some = names[fewer:]
    moved = index_of([f"elsewhere/{name}" for name in some])
    for index, folder in ((index_of(some), ""), (moved, "elsewhere/")):
        assert opened(train=index, val="1/3") == (
            [f"{folder}{name}" for name in some if name in train],
            [f"{folder}{name}" for name in some if name in held_out],
        )


def test_pictures_of_the_same_names_move_no_other():
    """A second camera counts its frames from 1, too."""
    one = [f"cam1/{number:04}.jpg" for number in range(60)]
    more = [f"cam{camera}/{number:04}.jpg" for camera in (2, 3) for number in range(60)]
    train, held_out = opened(train=index_of([name.removeprefix("cam1/") for name in one]), val="1/6")
    later, held_out_later = opened(train=index_of([*one, *more]), val="1/6")
    assert {f"cam1/{name}" for name in held_out} == {name for name in held_out_later if name.startswith("cam1")}
    assert {f"cam1/{name}" for name in train} <= set(later)


def test_pictures_of_one_name_in_many_folders_are_drawn_by_their_folders():
    """As Blender and some labelling tools write them; by their file name alone all would be on one side."""
    names = [f"{number}/image.png" for number in range(60)]
    train, held_out = opened(train=index_of([*names, "other.png"]), val="1/3")
    assert sorted([*train, *held_out]) == sorted([*names, "other.png"])
    assert 10 <= len(held_out) <= 32
    groups = group(index_of([*names, "a_jpg.rf.1.jpg"]), COPIES)
    assert groups.names[:2] == ("0/image.png", "1/image.png")


def test_a_share_is_about_so_many_pictures_and_the_same_in_all_versions():
    names = [f"{number:04}.jpg" for number in range(1200)]
    folds = [drawn(names, remainder, 6) for remainder in range(6)]
    assert np.stack(folds).sum(0).tolist() == [1] * len(names)
    assert all(150 < fold.sum() < 250 for fold in folds)
    assert [name for name, is_in in zip(names, folds[0], strict=True) if is_in][:5] == PINNED
    assert drawn(["a"], 0, 6).shape == drawn(["a"], 1, 6).shape == (1,)


PINNED = ["0004.jpg", "0024.jpg", "0027.jpg", "0028.jpg", "0033.jpg"]


@pytest.mark.parametrize("share", ["1/2", "2/2", "1/3", "2/3", "3/3", "1/9"])
def test_a_group_is_trained_on_or_validated_on(index, share):
    train, held_out = opened(train=index, val=share, group_by=COPIES)
    assert sorted([*train, *held_out]) == sorted(NAMES)
    copies = [name for name in NAMES if re.search(COPIES, name)]
    for key in {re.search(COPIES, name)[1] for name in copies}:  # type: ignore[index]
        of = {name for name in copies if re.search(COPIES, name)[1] == key}  # type: ignore[index]
        assert of <= set(train) or of <= set(held_out)
    assert train
    assert held_out


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"val": "1/1"}, "`datasets.d.val`: expected a share that leaves pictures to train on, such as 1/6"),
        ({"val": "7/6"}, '`datasets.d.val`: expected "i/n" with i from 1 to n'),
        ({"val": 0.2}, 'a share of the training pictures, such as 1/6, got "0.2"'),
        ({"val": "valid"}, "expected a mapping of its files, or a share of the training pictures, such as 1/6"),
        (
            {"val": "1/6", "train": None},
            "`datasets.d.val`: 1/6 is a share of the training pictures, and there is no",
        ),
        ({"val": "1/2", "train": index_of(["a.jpg"])}, "datasets.d.val: 1/2 of 1 pictures is "),
        ({"val": "1/2", "group_by": "()"}, "of 5 pictures in 1 groups is "),
    ],
)
def test_shares_that_cannot_be(index, keys, said):
    with pytest.raises(UserError) as error:
        opened(**{"train": index} | keys)
    assert said in str(error.value)


def test_pictures_without_a_label_file_are_told_where_they_are(tmp_path):
    index = index_of(NAMES)
    places = [str(index.path(row)) for row in (0, 1, 2)]
    sources = open_sources(
        Config.from_dict({"datasets": {"d": {"train": replace(index, skipped={NO_LABELS: places}), "val": "1/3"}}})
    )
    for split in (sources.val["d"], sources.train["d"]):
        own = {str(split.path(row)) for row in range(len(split))}
        assert split.skipped.get(NO_LABELS, []) == [place for place in places if place in own]
    assert sum(len(part["d"].skipped.get(NO_LABELS, [])) for part in (sources.val, sources.train)) == 3


def test_files_of_a_share_are_read_once_and_their_mistakes_told_once(tmp_path, monkeypatch):
    files = {"format": "coco", "train": {"images": ".", "annotations": "all.json"}, "val": "1/2"}
    config = Config.from_dict({"datasets": {"d": files}}, tmp_path)
    with pytest.raises(UserError) as error:
        open_sources(config)
    assert str(error.value).count("all.json") == 1
    assert "1 split(s) cannot be read" in str(error.value)
    asked = []
    monkeypatch.setattr("crossdet.config.sources.open_split", lambda *a: asked.append(a[1]) or index_of(NAMES))
    opened_once = open_sources(config)
    assert len(opened_once.val["d"]) + len(opened_once.train["d"]) == len(NAMES)
    assert asked == ["train"]


def test_a_share_beside_groups_in_check(index):
    dataset = {"train": index, "val": "1/3", "group_by": COPIES}
    report = inspect(Config.from_dict({"datasets": {"d": dataset}}))
    assert "d: `val` 1/3 leaves no group in pieces: 5 pictures in 3 groups" in "\n".join(report.notes)
    report = inspect(Config.from_dict({"datasets": {"d": dataset | {"part": "1/1"}}}))
    assert "d: `val` 1/3 and `part` 1/1 leave no group in pieces" in "\n".join(report.notes)
