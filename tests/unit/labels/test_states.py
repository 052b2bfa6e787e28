"""The one word for what a dataset is to a class."""

from __future__ import annotations

from crossdet.evaluation.report_page import _labels
from crossdet.labels.space import LabelSpace
from crossdet.labels.states import ABSENT, AVOIDED, LABELLED, NOT_EXHAUSTIVE, PER_IMAGE, STATES, state_of
from crossdet.runs.model_card import WORDS, _avoidance

SPACE = LabelSpace.build(
    {"own": ["a", "b"], "lvis": ["c"]}, federated=["lvis"], absent={"lvis": ["a"]}, not_exhaustive={"own": ["b"]}
)


def test_every_state():
    found = {(d, c): state_of(SPACE, row, k) for row, d in enumerate(("own", "lvis")) for k, c in enumerate("abc")}
    assert found == {
        ("own", "a"): LABELLED,
        ("own", "b"): NOT_EXHAUSTIVE,
        ("own", "c"): AVOIDED,
        ("lvis", "a"): ABSENT,
        ("lvis", "b"): AVOIDED,
        ("lvis", "c"): PER_IMAGE,
    }


def test_report_and_model_card_do_not_call_a_federated_dataset_labelled_in_part():
    assert set(WORDS) == set(STATES)
    card, page = "\n".join(_avoidance(SPACE)), _labels(SPACE)
    assert "| c | avoided | by image |" in card
    assert "| b | in part | avoided |" in card
    assert "<td class=many>by image</td>" in page
    assert page.count("<td class=many>labelled in part</td>") == 1
