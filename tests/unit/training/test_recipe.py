"""The two recipes, what a config may put in their place, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from crossdet import Config
from crossdet.errors import ConfigError
from crossdet.models.settings import UsualRates
from crossdet.training.recipe import Recipe, Start

EARLIER = Path(__file__).parents[2] / "e2e/run_of_november_2026/config.yaml"


def problems(**train) -> str:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "train": train})
    return str(error.value)


def test_the_papers_recipe_is_the_papers():
    """Sec. 4.1.2: SGD at 0.04 for 32 pictures, 20 epochs, warm-up of 2, falls after 10 and 15."""
    paper = Recipe(recipe="paper")
    assert (paper.optimizer, paper.rate(), paper.batch_size, paper.decay()) == ("sgd", 0.04, 32, 1e-4)
    assert (paper.epochs, paper.warmup_epochs, paper.steps, paper.factor) == (20, 2.0, (10.0, 15.0), 0.1)
    assert (paper.clip_norm, paper.ema, paper.eval_every, paper.decay_norms) == (None, None, 1, True)
    assert not paper.network_defaults(1).train_batch_norm
    assert not paper.network_defaults(1).group_norm


RECIPES = {
    "optimizer": ("adamw", "sgd"),
    "decay_norms": (False, True),
    "schedule": ("flat_cosine", "steps"),
    "epochs": (None, 20),
    "batch_size": (8, 32),
    "backbone_lr": (None, None),
    "freeze_stem": (False, False),
    "warmup_factor": (0.001, 0.001),
    "clip_norm": (10.0, None),
    "accumulate": (1, 1),
    "precision": ("auto", "32-true"),
    "ema": (0.999, None),
    "canvases": (6, 0),
    "eval_every": (None, 1),
    "compile": ("auto", False),
    "plain": (False, False),
}


@pytest.mark.parametrize("key", RECIPES)
def test_a_table_of_the_two_recipes(key):
    """Both were measured as they are: a changed value wants a new measurement, or is not the paper's."""
    assert (getattr(Recipe(), key), getattr(Recipe(recipe="paper"), key)) == RECIPES[key]


def test_the_papers_schedule_keeps_its_proportions():
    short = Recipe(recipe="paper", epochs=8)
    assert (short.warmup_epochs, short.steps) == (0.8, (4.0, 6.0))
    assert Recipe(recipe="paper", epochs=8, warmup_steps=50).warmup_epochs is None
    assert Recipe(recipe="paper", epochs=8, steps=[7.0]).steps == (7.0,)


@pytest.mark.parametrize(
    ("optimizer", "batch", "rate"), [("adamw", 8, 5e-4), ("adamw", 32, 1e-3), ("sgd", 8, 0.01)]
)
def test_the_rate_grows_with_the_batch(optimizer, batch, rate):
    assert Recipe(optimizer=optimizer, batch_size=batch).rate() == pytest.approx(rate)
    assert Recipe(optimizer=optimizer, batch_size=batch, lr=0.003).rate() == 0.003


def test_random_weights_want_a_higher_rate():
    random = Start("random")
    assert Recipe().rate(random) == 2e-3
    assert Recipe(lr=0.003).rate(random) == 0.003
    assert Recipe(recipe="paper").rate(random) == 0.04


def test_the_rate_is_that_of_the_architecture_and_of_what_has_learnt():
    rates = UsualRates(0.4, 0.2, 0.1)
    begun = ("random", "backbone", "detector")
    assert [Recipe().rate(Start(weights, rates=rates)) for weights in begun] == [0.4, 0.2, 0.1]
    assert Recipe(batch_size=32).rate(Start("detector", 0.5, rates)) == 0.1
    assert Recipe(optimizer="sgd").rate(Start("detector", 0.5, rates)) == 0.005
    assert Recipe(lr=0.003).rate(Start("detector", 0.5, rates)) == 0.003


def test_the_backbone_of_a_detector_learns_at_the_share_of_its_architecture():
    rates = UsualRates(share_of_backbone=0.25)
    starts = [Start("random", rates=rates), Start("backbone", rates=rates), Start("detector", 0.2, rates)]
    assert [Recipe().share_of_backbone(start) for start in starts] == [1, 1, 0.25]
    assert Recipe(backbone_lr=1.0).share_of_backbone(starts[2]) == 1
    assert Recipe(backbone_lr=0.5).share_of_backbone(starts[0]) == 0.5
    assert Recipe(optimizer="sgd").share_of_backbone(starts[2]) == 1
    assert Recipe().share_of_backbone(Start("detector")) == 1


def test_the_weight_decay_is_that_of_the_network_with_adamw_alone():
    start = Start("detector", rates=UsualRates(decay=0.25))
    assert (Recipe().decay(start), Recipe().decay()) == (0.25, 0.05)
    assert Recipe(weight_decay=0.5).decay(start) == 0.5
    assert Recipe(optimizer="sgd").decay(start) == 1e-4


@pytest.mark.parametrize(("pictures", "epochs"), [(100, 100), (800, 30), (801, 30), (118_287, 12)])
def test_small_data_is_seen_more_often(pictures, epochs):
    assert Recipe().epochs_for(pictures) == epochs
    assert Recipe(epochs=3).epochs_for(pictures) == 3
    assert Recipe(max_steps=10).epochs_for(pictures) is None
    assert Recipe(minutes=10.0).epochs_for(pictures) is None
    assert Recipe(minutes=10.0, epochs=3).epochs_for(pictures) == 3


def test_batch_norm_is_trained_where_a_device_sees_enough_pictures():
    assert Recipe().network_defaults(1).train_batch_norm
    assert Recipe(batch_size=8).network_defaults(2).train_batch_norm
    assert not Recipe(batch_size=8, accumulate=2).network_defaults(2).train_batch_norm
    assert not Recipe(batch_size=8).network_defaults(8).train_batch_norm
    assert not Recipe(batch_size=2).network_defaults(1).train_batch_norm


def test_the_papers_recipe_within_another_limit_has_its_falls_there():
    for limit in ({"minutes": 30.0}, {"max_steps": 100}):
        paper = Recipe(recipe="paper", **limit)
        assert (paper.epochs, paper.steps, paper.warmup_epochs) == (None, None, None)
        assert Recipe(recipe="paper", epochs=4, **limit).steps == (2.0, 3.0)


def test_workers_by_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert (Recipe().loader_workers(True), Recipe().loader_workers(False)) == (8, 2)
    assert Recipe(devices=4, batch_size=8).loader_workers(True) == 3
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert Recipe().loader_workers(True) == 1
    assert Recipe(workers=0).loader_workers(True) == 0


def test_what_goes_not_together_is_told_at_once():
    text = problems(momentum=0.8, steps=[5.0, 3.0], warmup_epochs=3.0, warmup_steps=10, epochs=2)
    assert "`train.momentum`: expected nothing with `train.optimizer: adamw`" in text
    assert "`train.steps`: expected epochs in increasing order, got [5.0, 3.0]" in text
    assert "`train.steps`: expected nothing with `train.schedule: flat_cosine`; say `train.recipe: paper`" in text
    assert "`train.warmup_epochs`: expected at most `train.epochs` = 2, got 3" in text
    assert "`train.warmup_epochs`: expected either this or `train.warmup_steps`" in text


def test_a_config_of_before_there_were_recipes_is_told_the_papers_first():
    """With `schedule: steps` alone it would train by AdamW at a rate of SGD."""
    before = {"lr": 0.01, "warmup_epochs": 2.0, "steps": [10.0, 15.0], "epochs": 20}
    fix = "say `train.recipe: paper`, whose key it is, or `train.schedule: steps`"
    assert fix in problems(**before)
    followed = Recipe(recipe="paper", **before)
    assert (followed.optimizer, followed.schedule, followed.rate()) == ("sgd", "steps", 0.01)
    told = problems(**before, recipe="paper", schedule="cosine")  # it has said so already
    assert "with `train.schedule: cosine`; say `train.schedule: steps` as well" in told
    assert "train.recipe" not in told


def test_a_rate_for_sgd_is_not_taken_for_adamw_in_silence():
    (warning,) = Recipe(lr=0.01).warnings
    assert "`train.lr`: 0.01 is a rate for SGD; AdamW takes about 0.0005 for 8 pictures a step" in warning
    assert not [*Recipe(lr=0.01, optimizer="sgd").warnings]
    assert not [*Recipe(lr=0.004).warnings]


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"patience": 9}, 10),
        ({"patience": 8}, None),
        ({"patience": 3, "epochs": 4}, 4),
        ({"patience": 2, "epochs": 4}, None),
        ({"patience": 3, "epochs": 20, "eval_every": 5}, 4),
        ({"patience": 30, "max_steps": 9, "eval_every": 1}, None),  # of how many epochs is not known here
    ],
)
def test_patience_that_stops_nothing_is_told(values, count):
    found = [text for text in Recipe(**values).warnings if "`train.patience`" in text]
    assert len(found) == (count is not None)
    assert count is None or f"no more than {count} evaluations" in found[0]


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"patience": 3, "eval_every": 0}, "`train.patience`: expected nothing with `train.eval_every: 0`"),
        ({"warmup_steps": 600, "max_steps": 500}, "`train.warmup_steps`: expected at most `train.max_steps` = 500"),
    ],
)
def test_values_that_cannot_both_be_meant(train, told):
    with pytest.raises(ConfigError, match=told):
        Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "train": train})


def test_steps_that_fall_early_are_told():
    (warning,) = Recipe(recipe="paper", epochs=40, steps=[10.0, 15.0]).warnings
    assert "from epoch 15 of 40 on the learning rate is 0.01 of `train.lr`" in warning


def test_a_config_that_was_written_whole_before_there_were_recipes_is_of_the_papers():
    before = yaml.safe_load(EARLIER.read_text())["train"]
    recipe = Recipe(**before)
    assert recipe.recipe == "paper"
    assert {key: getattr(recipe, key) for key in before} == {key: tuple(v) if isinstance(v, list) else v
                                                             for key, v in before.items()}  # fmt: skip
    assert (recipe.optimizer, recipe.schedule, recipe.decay_norms) == ("sgd", "steps", True)


@pytest.mark.parametrize(
    ("train", "pseudo", "most"),
    [
        ({}, {"from_epoch": 30}, 30),  # of 800 pictures
        ({}, {"from_epoch": 29}, None),
        ({}, {}, None),
        ({"max_steps": 250}, {"from_epoch": 3, "every": 1}, 3),  # of 100 steps each
        ({"max_steps": 250}, {"from_epoch": 2, "every": 1}, None),
        ({"max_steps": 250, "epochs": 40}, {}, 3),
        ({"max_steps": 250, "minutes": 5.0}, {"from_epoch": 3, "every": 1}, 3),
        ({"minutes": 5.0}, {"from_epoch": 300, "every": 1}, None),  # nobody knows; the guard tells it at the end
        ({"minutes": 5.0, "epochs": 40}, {"from_epoch": 39}, None),
    ],
)
def test_a_teacher_that_would_never_label(train, pseudo, most):
    datasets = {"a": {"format": "coco", "train": {}}}
    said = {"datasets": datasets, "train": train, "pseudo": {"teachers": "self", **pseudo}}
    config = Config.from_dict(said)
    problem = config.pseudo.never_labels(config.train, 800)
    assert (problem is None) == (most is None)
    assert problem is None or f"expected less than {most}, since with 800 training pictures" in problem


def test_the_teacher_itself_needs_epochs_to_count():
    datasets = {"a": {"format": "coco", "train": {}}}
    said = {"datasets": datasets, "train": {"minutes": 5.0}, "pseudo": {"teachers": "self"}}
    with pytest.raises(ConfigError, match=r"`pseudo.from_epoch`, `pseudo.every`: expected both"):
        Config.from_dict(said)
    config = Config.from_dict(said | {"pseudo": {"teachers": "self", "from_epoch": 2, "every": 3}})
    assert config.pseudo is not None
    assert config.pseudo.schedule(None) == (2, 3)
