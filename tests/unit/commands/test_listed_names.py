"""Names that an option lists with commas between them."""

import re

import pytest

from crossdet import LabelSpace
from crossdet.commands.predict import _thresholds
from crossdet.commands.terminal import listed_names
from crossdet.errors import UserError
from crossdet.labels.reporting import Reporting
from crossdet.labels.rules import unknown


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("face, car,,", ["face", "car"]),
        (r"ship\, big,car", ["ship, big", "car"]),
        (r"a\,b\,c", ["a,b,c"]),
        (r"a\b", [r"a\b"]),
        ("", []),
    ],
)
def test_names_by_hand(text, names):
    assert listed_names(text) == names


def test_spaces_may_belong_to_names():
    assert listed_names("nut ,bolt", strip=False) == ["nut ", "bolt"]


@pytest.mark.parametrize("given", ["", ","])
def test_a_score_that_says_nothing_is_refused(given):
    """As of a variable that is not set."""
    with pytest.raises(UserError, match=r"--score .*: expected a number from 0 to 1"):
        _thresholds(given)


def test_the_sign_for_a_comma_is_told_where_a_piece_was_asked_for():
    told = unknown("class", "person, seat", ["person, seated"])
    assert told == "unknown class 'person, seat'; did you mean 'person, seated'?"


def test_a_name_with_a_comma_can_be_asked_for():
    """The message named it as it had been written, in a circle."""
    classes = Reporting(LabelSpace.build({"a": ["plane", "ship, big"]}), {}, True)
    with pytest.raises(UserError, match=r"unknown class 'ship'; did you mean 'ship, big'\?") as told:
        classes.class_ids(listed_names("ship, big"))
    (sign,) = re.findall("a comma within a name is written `(.*?)`", str(told.value))
    assert classes.class_ids(listed_names(f"ship{sign} big")) == [1]
    assert _thresholds(rf"plane=0.5,ship{sign} big=0.25") == {"plane": 0.5, "ship, big": 0.25}
