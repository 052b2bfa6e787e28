"""What tests of extensions share."""

import pytest

from crossdet import LabelSpace


@pytest.fixture
def space() -> LabelSpace:
    return LabelSpace.build(
        {"old": ["car", "face"], "new": ["sign", "helmet"], "sea": ["ship"]},
        absent={"sea": ["car"]},
        overlap=[["face", "helmet"]],
    )
