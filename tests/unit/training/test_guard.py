"""The judgements, each on numbers that were caused: dead networks, fresh ones, shuffled curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crossdet.data.index import IndexBuilder
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.operating import judge
from crossdet.evaluation.run import EvalSettings, detect
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.training.guard import (
    CURVE_PIECES,
    Look,
    LossCurve,
    dead_features,
    distance,
    flat_loss,
    foreign_validation,
    look_at,
    never_labelled,
    of_detections,
)
from crossdet.training.watch import statistics

from ..models.tiny import TINY, TinySettings


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def pictures(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------- features


def test_variation_is_that_of_the_study_and_does_not_depend_on_the_number_of_pictures(noise):
    maps = torch.randn(64, 6, 5, 5, generator=noise) + 2.0
    spread = (maps - maps.mean(0)).square().mean().sqrt() / maps.square().mean().sqrt()
    assert look_at(maps).variation == pytest.approx(float(spread) * (64 / 63) ** 0.5, rel=1e-5)
    assert look_at(maps).variation == pytest.approx(5**-0.5, rel=0.03)  # 1 / sqrt(1 + 2 ** 2)
    assert look_at(maps[:8]).variation == pytest.approx(look_at(maps).variation, rel=0.1)
    maps[:, :2] = 0.3
    assert look_at(maps).dead == pytest.approx(2 / 6)
    assert look_at(torch.zeros(4, 2, 3, 3)).variation == 0.0


def test_a_killed_backbone_is_named_and_a_living_one_is_not(noise):
    torch.manual_seed(0)
    network = TINY.build(TinySettings(), 2, None)
    some = pictures(8, noise)
    with torch.no_grad():
        before = look_at(network.feature_maps(some)[-1])
        assert dead_features(look_at(network.feature_maps(pictures(8, noise))[-1]), before, 50) == []
        network.backbone[-2].weight.mul_(0.01)
        network.backbone[-2].bias.fill_(1.0)
        (finding,) = dead_features(look_at(network.feature_maps(some)[-1]), before, 50)
    assert finding.kind == "dead_features"
    assert finding.numbers["variation"] < 0.02 < before.variation
    assert "after step 50" in finding.sentence
    assert "`train.lr`" in finding.sentence


def test_the_advice_fits_the_training():
    now, before = Look(0.2, 0.0), Look(0.9, 0.0)
    (knew,), (new,) = (
        dead_features(now, before, 100),
        dead_features(now, before, 100, None, knew=False, fixed=False),
    )
    assert "The backbone loses what it knew" in knew.sentence
    assert "let the backbone's batch norm train" in knew.sentence
    assert "The backbone does not learn to tell pictures apart" in new.sentence
    assert "batch norm" not in new.sentence


def test_features_that_sink_in_the_first_steps_are_no_news():
    assert dead_features(Look(0.2, 0.3), Look(0.9, 0.0), 12) == []
    assert len(dead_features(Look(0.01, 0.0), Look(0.9, 0.0), 12)) == 1


def test_features_that_were_dead_from_the_start_are_named_once_it_trains(noise):
    network = TINY.build(TinySettings(), 2, None)
    with torch.no_grad():
        network.backbone[-2].weight.zero_()
        now = look_at(network.feature_maps(pictures(8, noise))[-1])
    assert dead_features(now, now, 0) == []  # statistics of a batch norm may not be there yet
    assert [finding.kind for finding in dead_features(now, now, 50)] == ["dead_features"]


def test_channels_that_die_are_named_but_not_those_that_never_lived(noise):
    maps = torch.rand(8, 10, 4, 4, generator=noise) * torch.randn(8, 10, 1, 1, generator=noise)
    maps[:, :3] = 0.0
    before = look_at(maps)
    assert dead_features(look_at(maps), before, 100) == []
    maps[:, 3:6] = 0.0
    (finding,) = dead_features(look_at(maps), before, 100)
    assert "60 % of the deepest features" in finding.sentence
    assert "30 %" in finding.sentence


@pytest.mark.parametrize(
    ("variation", "told"), [(0.01, True), (0.22, True), (0.41, True), (0.46, False), (0.64, False), (0.82, False)]
)
def test_the_collapses_of_the_study_are_named_and_its_healthy_runs_are_not(variation, told):
    """C5 on site_safety, 0.96 before the first step (docs/data/recipe_study_collapse.json)."""
    found = dead_features(Look(variation, 0.01), Look(0.96, 0.01), 240, 0.03)
    assert [finding.kind for finding in found] == ["dead_features"] * told
    assert not told or f"vary by {100 * variation:.0f} % of their size" in found[0].sentence


@pytest.mark.parametrize(("dead", "told"), [(0.03, False), (0.15, False), (0.24, False), (0.26, True), (0.5, True)])
def test_a_fifth_of_the_channels_may_fall_still(dead, told):
    """5 % never lived."""
    found = dead_features(Look(0.8, dead), Look(0.9, 0.05), 240)
    assert [finding.kind for finding in found] == ["dead_features"] * told


def test_a_detector_that_finds_objects_has_features():
    """In a healthy training of the tiny world they sank from 0.82 to 0.37, at an AP50 of 1."""
    before, now = Look(0.82, 0.0), Look(0.37, 0.5)
    assert len(dead_features(now, before, 180, None)) == 1
    assert len(dead_features(now, before, 180, 0.05)) == 1
    assert dead_features(now, before, 180, 0.65) == []


def test_pictures_that_are_alike_are_no_collapse():
    """Blood cells on white: with random weights the features vary by 27 % from the start."""
    base = torch.rand(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    alike = base + 0.15 * torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    look = look_at(alike)
    assert look.variation < 0.45
    assert dead_features(look, look, 200) == []


# ------------------------------------------------------------------------------------------------- detections


@pytest.fixture
def split(tmp_path) -> Split:
    """12 pictures of noise, two objects each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    builder = IndexBuilder(tmp_path)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
        builder.image(f"{number}.png", 64, 64)
        for label in (0, 1):
            x, y = rng.integers(0, 40, 2)
            builder.box((x, y, x + 20, y + 20), label)
    return Split(builder.build(["cat", "dog"]), np.array([0, 1]), ("cat", "dog"))


def findings(split: Split, found: DetectionArrays, floor: float = 0.0) -> list:
    return of_detections("pets", split, found, judge(ground_truth(split), found, split.classes, floor))


def of_network(network, split: Split) -> DetectionArrays:
    return detect(network, split.index, None, EvalSettings(64, 64, score_threshold=0.0)).detections


def right(split: Split, score: float = 0.9) -> DetectionArrays:
    truth = ground_truth(split)
    return DetectionArrays(truth.boxes, np.full(len(truth.boxes), score), truth.labels, truth.image_of_box)


def test_the_same_detections_whatever_the_picture(split):
    torch.manual_seed(0)
    network = TINY.build(TinySettings(), 2, None)
    with torch.no_grad():
        network.classes.bias.fill_(0.0)  # scores of about 0.5
        network.classes.weight.mul_(50)  # which differ from place to place
        assert findings(split, of_network(network, split)) == []
        network.backbone[-2].weight.mul_(1e-3)
        network.backbone[-2].bias.fill_(0.5)
    (finding,) = findings(split, of_network(network, split))
    assert finding.kind == "constant_detections"
    assert finding.numbers["share"] > 0.9
    assert finding.numbers["pictures"] == 12
    assert finding.sentence.startswith("pets: ")


def test_a_camera_that_does_not_move_is_no_failure(split):
    boxes = split.index.boxes.copy()
    boxes[:] = np.tile(boxes[:2], (12, 1))
    still = replace(split, index=replace(split.index, boxes=boxes))
    assert findings(still, right(still)) == []
    constant = right(still)  # the same detections where the labels lie elsewhere
    assert [f.kind for f in findings(split, constant)] == ["constant_detections"]


def test_a_fresh_network_scores_too_low(split):
    torch.manual_seed(0)
    found = of_network(TINY.build(TinySettings(), 2, None), split)
    (finding,) = findings(split, found)
    assert finding.kind == "low_scores"
    assert 0 < finding.numbers["best_score"] < 0.1
    assert "no detection scores above 0.1" in finding.sentence
    (nothing,) = findings(split, found.above(0.3), floor=0.3)
    assert "no detection scores above 0.3" in nothing.sentence


def test_a_class_without_a_single_hit(split):
    found = right(split)
    assert findings(split, found) == []
    cats = found.take(np.flatnonzero(found.labels == 0))
    (finding,) = findings(split, cats)
    assert finding.kind == "unfound_classes"
    assert finding.numbers["objects"] == {"dog": 12}
    assert "dog (0 of 12)" in finding.sentence
    assert findings(split.take(np.arange(5)), right(split.take(np.arange(5)))) == []
    few = split.take(np.arange(9))  # 9 dogs are too few to tell
    mine = right(few)
    assert findings(few, mine.take(np.flatnonzero(mine.labels == 0))) == []


@pytest.mark.parametrize(("score", "told"), [(0.01, True), (0.04, True), (0.06, False)])
def test_a_class_whose_hits_hardly_score_is_not_found(split, score, told):
    found = right(split)
    faint = replace(found, scores=np.where(found.labels == 1, score, found.scores))
    assert [f.numbers["objects"] for f in findings(split, faint)] == [{"dog": 12}] * told


# ------------------------------------------------------------------------------------------------- loss


def curve_of(losses: np.ndarray) -> LossCurve:
    curve = LossCurve()
    for loss in losses:
        curve.add(torch.tensor(loss, dtype=torch.float32))
    return curve


def test_the_curve_keeps_the_means_of_equal_pieces():
    losses = np.random.default_rng(0).random(1000)
    curve = curve_of(losses)
    assert len(curve.means) < CURVE_PIECES
    assert curve.width == 16
    assert curve.read() == pytest.approx(losses[: 16 * len(curve.means)].reshape(-1, 16).mean(1), rel=1e-6)
    assert float(curve.open_sum) == pytest.approx(losses[16 * len(curve.means) :].sum(), rel=1e-6)


def test_steps_do_not_read_their_loss_which_would_wait_for_the_device(monkeypatch):
    reads = []
    for name in ("__float__", "item", "tolist", "cpu", "numpy", "__bool__"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *a, _real=real: reads.append(1) or _real(self, *a))
    curve, counts = LossCurve(), []
    for _ in range(1000):
        before = len(reads)
        curve.add(torch.tensor(0.5))
        counts.append(len(reads) - before)
    doubled = [step for step, count in enumerate(counts, 1) if count]
    assert doubled == [CURVE_PIECES * width for width in (1, 2, 4, 8)]  # 120, 240, 480, 960
    unreadable = LossCurve()
    for _ in range(CURVE_PIECES - 1):
        unreadable.add(torch.ones((), device="meta"))
    with pytest.raises(RuntimeError, match="meta"):
        unreadable.read()


def test_a_curve_goes_on_from_what_a_state_keeps():
    losses = np.random.default_rng(1).random(500)
    whole, half = curve_of(losses), curve_of(losses[:333])
    stored = LossCurve(half.width, half.read(), float(half.open_sum), half.open_count)
    for loss in losses[333:]:
        for curve in (half, stored):
            curve.add(torch.tensor(loss, dtype=torch.float32))
    assert whole.read() == half.read() == stored.read()
    assert (whole.width, whole.open_count) == (stored.width, stored.open_count)


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_stands_still(seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.1, 600)
    assert [f.kind for f in flat_loss(curve_of(1.1 + noise), 0.01)] == ["flat_loss"]
    assert [f.kind for f in flat_loss(curve_of(1.1 + noise), None)] == ["flat_loss"]
    assert flat_loss(curve_of(1.1 + noise), 0.3) == []  # it has arrived
    assert flat_loss(curve_of(1.1 + noise[:150]), 0.01) == []  # too early
    assert flat_loss(curve_of(1.1 + 9 * noise), 0.01) == []  # too noisy to tell
    assert flat_loss(curve_of(np.linspace(1.1, 0.9, 600) + noise), 0.01) == []  # slow, but it falls
    falls_at_first = np.where(np.arange(600) < 40, 5.0, 1.1) + noise
    assert [f.kind for f in flat_loss(curve_of(falls_at_first), 0.01)] == ["flat_loss"]


@pytest.mark.parametrize(("last", "seen"), [(1.11, "stands still"), (1.08, "stands still"), (1.5, "rises")])
def test_a_loss_that_rises_is_told_as_that(last, seen):
    losses = np.where(np.arange(600) < 300, 1.1, last)
    (finding,) = flat_loss(curve_of(losses), 0.01)
    assert finding.seen.startswith(f"the loss {seen}: 1.")
    assert ("ten times" in finding.sentence) == (seen == "stands still")  # of the rate
    assert "a tenth" in finding.sentence


@pytest.mark.parametrize(("labels_from", "epochs", "told"), [(None, 3, 0), (3, 3, 1), (3, 4, 0), (9, 3, 1)])
def test_a_network_that_never_labelled_for_itself(labels_from, epochs, told):
    """Labels are found before the first step of the epoch after so many."""
    assert len(never_labelled(labels_from, epochs)) == told


# ------------------------------------------------------------------------------------------------- pictures


def test_the_distance_of_two_sets_by_hand(noise):
    one = torch.randn(4000, 3, generator=noise, dtype=torch.float64)
    other = torch.randn(4000, 3, generator=noise, dtype=torch.float64) + torch.tensor([3.0, 0.0, 0.0])
    assert distance(one, other) == pytest.approx(3 / 3**0.5, rel=0.03)  # spread: sqrt(1 + 1 + 1)
    assert distance(one[:16], one[16:48]) < 0.35


@pytest.mark.parametrize("count", [8, 15, 16])
def test_few_pictures_are_no_set(count):
    """Of so few some lie apart by chance, or there is one of another kind among them."""
    train = {"a": torch.zeros(32, 2, dtype=torch.float64) + torch.arange(32)[:, None] % 3}
    val = train["a"][:count] + 9
    assert bool(foreign_validation(train, {"a": val})) == (count >= 16)
    assert bool(foreign_validation({"a": train["a"][:count]}, {"a": train["a"] + 9})) == (count >= 16)


def test_statistics_are_means_and_deviations_by_channel(noise):
    maps = torch.rand(2, 3, 4, 5, generator=noise)
    found = statistics(maps)
    assert found.shape == (2, 6)
    assert float(found[1, 2]) == pytest.approx(float(maps[1, 2].mean()), rel=1e-6)
    assert float(found[1, 5]) == pytest.approx(float(maps[1, 2].std(correction=0)), rel=1e-6)


def test_validation_pictures_that_look_like_no_training_set(noise):
    torch.manual_seed(0)
    network = TINY.build(TinySettings(), 2, None)

    @torch.no_grad()
    def of(images: Tensor) -> Tensor:
        return statistics(network.feature_maps(images)[0])

    dark = [(pictures(16, noise) * torch.rand(16, 1, 1, 1, generator=noise) / 2).byte() for _ in range(3)]
    bright = [255 - images for images in dark]
    train = {"night": of(dark[0]), "day": of(bright[0])}
    assert foreign_validation(train, {"night": of(dark[1]), "day": of(bright[1])}) == []
    assert foreign_validation({"night": of(dark[0])}, {"a": of(dark[2])}) == []
    (finding,) = foreign_validation({"night": of(dark[0])}, {"a": of(dark[2]), "b": of(bright[2])})
    assert (finding.kind, finding.numbers["dataset"], finding.numbers["nearest"]) == (
        "foreign_validation",
        "b",
        "night",
    )
    assert foreign_validation({"night": of(dark[0])}, {"b": of(bright[2])[:7]}) == []  # too few to tell
    assert foreign_validation({"night": of(dark[0]), "c": of(bright[0])[:7]}, {"b": of(bright[2])}) == []
