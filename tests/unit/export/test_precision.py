"""Which layers of a graph keep their numbers."""

from crossdet.export.precision import above, ends

PARENTS = {
    "pixels": [],
    "stem": ["pixels"],
    "relu": ["stem"],
    "left": ["relu"],
    "right": ["relu"],
    "sum": ["left", "relu"],
    "boxes": ["sum"],
    "scores": ["right"],
    "found": ["boxes", "scores"],
}


def test_the_first_and_the_last_layers():
    assert ends(PARENTS, ["stem", "left", "right", "boxes", "scores"]) == ["stem", "boxes", "scores"]
    assert ends(PARENTS, ["stem", "left", "boxes"]) == ["stem", "boxes"]
    assert ends(PARENTS, ["left"]) == ["left"]


def test_what_a_node_depends_on():
    assert above(PARENTS, ["boxes"]) == {"sum", "left", "relu", "stem", "pixels"}
    assert above(PARENTS, ["boxes", "left"]) == {"sum", "left", "relu", "stem", "pixels"}
    assert above(PARENTS, ["pixels"]) == set()
