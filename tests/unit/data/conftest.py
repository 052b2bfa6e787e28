"""Three datasets and their label space."""

import pytest

from crossdet import LabelSpace
from crossdet.data.hybrid import Part
from crossdet.types import Flag

from .made import BOX, build


@pytest.fixture
def space() -> LabelSpace:
    return LabelSpace.build(
        {"a": ["cat", "dog", "bus"], "b": ["hound", "face"], "c": ["ship"]},
        merge={"dog": ["a/dog", "b/hound"]},
        drop=["a/bus"],
        absent={"c": ["cat"]},
    )


@pytest.fixture
def parts(tmp_path, space) -> list[Part]:
    a = build(tmp_path / "a", ["cat", "dog", "bus"], [[(BOX, 0), (BOX, 2), (BOX, 1)], []])
    # the index lists the classes in another order than the label space
    b = build(
        tmp_path / "b", ["face", "hound"], [[(BOX, 1)], [(BOX, 0), (BOX, -1, Flag.IGNORE_REGION)], [(BOX, 0)]]
    )
    c = build(tmp_path / "c", ["ship"], [[(BOX, 0)]])
    return [
        Part(index, space.dataset_index(name), space.ids(name, index.classes))
        for name, index in (("a", a), ("b", b), ("c", c))
    ]
