"""What is said where a run would go on with something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossdet import LabelSpace, UserError
from crossdet.models.card import Card, InputSettings
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetSettings
from crossdet.training.identity import check_identity, run_identity


def test_settings_are_told_by_the_keys_of_the_config():
    """The weights file has others for some."""
    space = LabelSpace.build({"a": ["car"]})
    identities = []
    for fixed, alpha in ((True, 0.25), (False, 0.5)):
        settings = RetinaNetSettings(freeze_batch_norm=fixed, loss=RetinaNetLoss(alpha=alpha))
        identities.append(run_identity(Card(space, settings, InputSettings(64, 96), {}, None, ()), {}))
    with pytest.raises(UserError) as told:
        check_identity(Path("run"), *identities)
    assert "model.freeze_batch_norm: True then, False now" in str(told.value)
    assert "loss.alpha: 0.25 then, 0.5 now" in str(told.value)
