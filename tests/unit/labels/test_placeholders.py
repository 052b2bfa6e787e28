"""Names of rows that mean nothing."""

from __future__ import annotations

from crossdet.labels.placeholders import unused_note, used, without_placeholders


def test_rows_with_placeholders_get_names_of_their_own():
    given = ["N/A", "person", "", "n/a ", "None", "background", "__BACKGROUND__", "nonesuch", "unused"]
    names = without_placeholders(given)
    assert names == (
        "unused_0", "person", "unused_2", "unused_3", "unused_4", "unused_5", "unused_6", "nonesuch", "unused",
    )  # fmt: skip
    assert used(names) == ["person", "nonesuch", "unused"]
    assert without_placeholders(names) == names
    assert unused_note(names[:3]) == "rows that mean nothing: unused_0, unused_2"
    assert unused_note(["person"]) is None


def test_a_name_that_is_taken_is_not_given_again():
    assert without_placeholders(["unused_1", "N/A", "car"]) == ("unused_1", "unused_4", "car")
