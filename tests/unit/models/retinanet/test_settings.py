"""What the settings take from the config, the recipe and the backbone."""

import pytest

from crossdet.errors import UserError
from crossdet.models.retinanet.settings import RetinaNetLoss, RetinaNetModel, RetinaNetSettings
from crossdet.training.recipe import Recipe


def head_of(recipe: str = "auto", **model) -> tuple[int, int]:
    defaults = Recipe(recipe=recipe).network_defaults(1)
    settings = RetinaNetSettings.of(RetinaNetModel(**model), RetinaNetLoss(), defaults)
    return settings.channels, settings.head_depth


@pytest.mark.parametrize(
    ("backbone", "head"), [("mobilenetv2_100", (128, 2)), ("resnet18", (128, 2)), ("resnet34", (256, 4))]
)
def test_a_small_backbone_gets_a_small_head(backbone, head):
    assert head_of(backbone=backbone) == head


def test_the_config_has_the_last_word():
    assert head_of(backbone="mobilenetv2_100", channels=64) == (64, 2)
    assert head_of(backbone="mobilenetv2_100", head_depth=0) == (128, 0)
    assert head_of(backbone="no backbone", channels=64, head_depth=3) == (64, 3)  # nothing to look up


def test_the_paper_has_one_head():
    assert head_of("paper", backbone="mobilenetv2_100") == (256, 4)


@pytest.mark.parametrize(
    ("recipe", "model", "fixed"),
    [
        ("auto", {}, False),  # a fixed one let features die (docs/log.md, 2026-11-27)
        ("auto", {"freeze_batch_norm": True}, True),
        ("auto", {"weights": "none"}, False),
        ("paper", {}, True),
        ("paper", {"weights": "none"}, False),
        ("paper", {"freeze_batch_norm": False}, False),
    ],
)
def test_auto_trains_the_batch_norm_of_a_backbone_with_weights(recipe, model, fixed):
    defaults = Recipe(recipe=recipe).network_defaults(1)
    section = RetinaNetModel(channels=8, head_depth=1, **model)
    assert RetinaNetSettings.of(section, RetinaNetLoss(), defaults).freeze_batch_norm is fixed


def test_a_wrong_backbone_is_named():
    with pytest.raises(UserError, match=r"model\.backbone: 'resnet5' is no timm model"):
        head_of(backbone="resnet5")
