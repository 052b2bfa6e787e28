"""Pictures that stay together: what groups them, and parts of a dataset that leave no group in pieces."""

from __future__ import annotations

import pytest

from crossdet.check import inspect
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.groups import group
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import ConfigError, UserError

NAMES = ["train/a_jpg.rf.1.jpg", "train/b_jpg.rf.2.jpg", "other.png", "train/a_jpg.rf.3.jpg", "more/a_jpg.rf.4.jpg"]
COPIES = r"([^/]+)_jpg\.rf"


@pytest.fixture
def index() -> Index:
    builder = IndexBuilder("nowhere")
    for name in NAMES:
        builder.image(name, 48, 64)
        builder.box((10, 10, 40, 40), 0, 0)
    return builder.build(("x",))


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
        ({"group_by": COPIES}, "`datasets.d.group_by` says which pictures `part` keeps together"),
        ({"group_by": "(a", "part": "1/2"}, "`datasets.d.group_by`: no regular expression"),
        ({"group_by": 3, "part": "1/2"}, "expected a regular expression or a .csv or .json file"),
    ):
        with pytest.raises(ConfigError) as error:
            Config.from_dict({"datasets": {"d": {"train": index, **keys}}})
        assert said in str(error.value)
