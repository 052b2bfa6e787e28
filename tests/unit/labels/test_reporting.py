"""Which score a class is reported from on."""

import numpy as np
import pytest

from crossdet.errors import LabelError, UserError
from crossdet.labels.reporting import Reporting
from crossdet.labels.space import LabelSpace

SPACE = LabelSpace.build({"cards": ["white_king", "white_queen", "black_king"]})
OWN = {"white_king": 0.6, "white_queen": 0.3, "black_king": 0.3}


def reporting():
    return Reporting(SPACE, {"white_king": 0.6}, fold=True)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        (None, {}),
        (0, dict.fromkeys(OWN, 0.0)),
        (0.5, dict.fromkeys(OWN, 0.5)),
        (np.float32(0.5), dict.fromkeys(OWN, 0.5)),
        ({}, {}),
        ({"black_king": 0.9}, {"black_king": 0.9}),
        ({"white_*": 0.1}, {"white_king": 0.1, "white_queen": 0.1}),
        ({"white_king": 0.2, "*": 0.4}, {"white_king": 0.2, "white_queen": 0.4, "black_king": 0.4}),
        ({"*": 0.4, "*_king": 0.1}, {"white_king": 0.1, "white_queen": 0.4, "black_king": 0.1}),
    ],
)
def test_what_is_not_named_keeps_its_own(given, changed):
    """A name before a pattern; of patterns the last."""
    assert reporting().thresholds_used(given) == OWN | changed
    assert reporting().member_thresholds(given) == [(OWN | changed)[name] for name in SPACE.classes]


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (1.5, UserError, r"^score_threshold: expected a score from 0 to 1, got 1\.5$"),
        ({"white_king": -1}, UserError, r"^score_threshold: white_king: expected a score from 0 to 1, got -1$"),
        ({"white_kin": 0.5}, LabelError, r"^score_threshold: .*'white_kin'.*white_king"),
        ({"red_*": 0.5}, LabelError, r"^score_threshold: no class matches 'red_\*'; "),
    ],
)
def test_what_cannot_be(given, error, told):
    with pytest.raises(error, match=told):
        reporting().thresholds_used(given)
