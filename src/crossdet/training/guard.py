"""How a failing training is known: judgements on numbers, each a sentence with its usual cause and what to change.

Nothing here stops anything. A judgement is silent where the numbers are too few to tell: a false alarm is worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.hits import iou_with_offset
from crossdet.evaluation.operating import Judged
from crossdet.evaluation.splits import Split, ground_truth

if TYPE_CHECKING:
    from torch import Tensor

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """kind: one of seven words (docs/guard.md). seen: what was seen. sentence: with what it usually means and what
    to change. numbers: what the sentence says, for JSON."""

    kind: str
    seen: str
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, seen: str, means: str, numbers: dict[str, Any]) -> Finding:
        return cls(kind, seen, f"{seen}. {means}", numbers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def key_of(finding: Mapping[str, Any]) -> tuple[str, str]:
    """What makes two findings (`Finding.to_json`) the same one, seen twice."""
    return finding["kind"], finding["numbers"].get("dataset", "")


def newest(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The findings of all epochs of a training, each once in its newest words: a record has what was new then."""
    return list({key_of(found): found for record in records for found in record.get("warnings", ())}.values())


# ------------------------------------------------------------------------------------------------- features

ALIVE_VARIATION = 0.45
"""Variation of the deepest map below which it may be dying. On site_safety (docs/data/recipe_study_collapse.json)
0.01 to 0.41 in the runs that lost channels, at steps 48 and 240; at least 0.64 where the backbone was protected,
and 0.82 in the trainings by AdamW."""
LOST_VARIATION = 0.5
"""... and the share of what it was before training. Pictures that are alike vary less to begin with: 0.60 for blood
cells and dice with ImageNet weights (other photographs: 0.89 and more), 0.27 with random weights of a ResNet-18."""
NO_VARIATION = 0.02
"""Below this nothing is left, whatever it was before: 0.01 in the worst collapse of that study."""
DEAD_CHANNELS = 0.2
"""Share of the deepest map's channels that gave something and give the same everywhere now. At least 0.13 of an
inner layer at step 48 and 240 of a collapse, at most 0.02 in protected runs (same file)."""
LEARNT = 0.1
"""A mean score (0..1) from which on something is learnt: then neither still features nor a flat loss are a failure.
The trainings of that study that collapsed had an AP of 0.02 to 0.05 after half of their steps."""
FEWEST_PICTURES = 4
"""Pictures without which features are not judged."""
FIRST_STEPS = 50
"""Steps before which features that sink are no news: a network that finds its way moves fast at first."""


@dataclass(frozen=True)
class Look:
    """What the deepest map of some pictures says.

    variation: root mean square of its differences from its mean over the pictures, by that of the map; about the
    same for any number of pictures (the variance is unbiased). dead: share of channels with one value everywhere.
    """

    variation: float
    dead: float


def look_at(deepest: Tensor) -> Look:
    """deepest: `[B, c, h, w]` maps of B pictures of one size, B at least 2."""
    maps = deepest.double()
    size = float(maps.square().mean().sqrt())
    spread = float(maps.var(0, correction=1).mean().sqrt())
    still = (maps.amax((0, 2, 3)) - maps.amin((0, 2, 3))) <= 1e-6 * size
    return Look(spread / size if size > 0 else 0.0, float(still.double().mean()))


def dead_features(
    now: Look, start: Look, step: int, score: float | None = None, knew: bool = True, fixed: bool = True
) -> list[Finding]:
    """start: the look before the first step. score: the newest mean score (0..1), None where there was none yet.
    knew: the backbone did not begin with random weights. fixed: its batch norm does not learn.

    A detector that finds objects has features, whatever their numbers: they sink in healthy ones, too, where all
    pictures show the same few things.
    """
    if score is not None and score >= LEARNT:
        return []
    told = {"step": step, **asdict(now), "variation_before": start.variation, "dead_before": start.dead}
    loses = "loses what it knew" if knew else "does not learn to tell pictures apart"
    norm = ", or (not in an extension) let the backbone's batch norm train: `model.freeze_batch_norm: false`"
    means = (
        f"The backbone {loses}, most often by a learning rate that is too high for it. Unless the scores come "
        f"out well all the same, start again with a tenth of `train.lr`, or of it for the backbone alone "
        f"(`train.backbone_lr: 0.1`), or with a longer warm-up{norm * fixed}"
    )
    late = step >= FIRST_STEPS
    lost = late and now.variation < min(ALIVE_VARIATION, LOST_VARIATION * start.variation)
    if lost or (step and now.variation < NO_VARIATION):
        seen = (
            f"after step {step} the features of different pictures are nearly the same: they vary by "
            f"{_percent(now.variation)} of their size, before the first step it was {_percent(start.variation)}"
        )
        return [Finding.of("dead_features", seen, means, told)]
    if late and now.dead - start.dead > DEAD_CHANNELS:
        seen = (
            f"after step {step} {_percent(now.dead)} of the deepest features are the same everywhere in every "
            f"picture, before the first step it was {_percent(start.dead)}"
        )
        return [Finding.of("dead_features", seen, means, told)]
    return []


# ------------------------------------------------------------------------------------------------- detections

LOW_SCORE = 0.1
"""A detector that has learnt nothing answers its prior of 0.01, one that is of use passes 0.3."""
FEWEST_OBJECTS = 10
"""Objects of a class, or of a split, without which not finding any is no news."""
FOUND_SCORE = 0.05
"""A right detection that scores less is one of very many and may be right by chance."""
SAME_SHARE, SAME_TRUTH = 0.8, 0.4
"""Share of the best detections that come back in another picture. Where boxes of the labels come back as well (a
camera that does not move) it is no failure."""
SAME_IOU, SAME_SCORE = 0.9, 0.1
"""Overlap of two boxes at the same place, and the share by which their scores may differ: dead features still vary
by 1 %."""
BEST = 3
"""Detections of a picture that are looked for in another one."""
FEWEST_COMPARED, MOST_COMPARED = 8, 200
"""Pictures with detections without which these are not compared, and how many are enough."""


def of_detections(dataset: str, split: Split, found: DetectionArrays, judged: Judged) -> list[Finding]:
    """What the detections `found` in a split say, and which of its classes none of them is right about."""
    objects = sum(judged.objects.values())
    if objects < FEWEST_OBJECTS:
        return []
    best = float(found.scores.max(initial=0.0))
    limit = max(LOW_SCORE, judged.floor)
    if best <= limit:
        seen = f"no detection scores above {limit:g}" + (f", the best {best:.2g}" if len(found.scores) else "")
        means = (
            "Nothing is learnt yet, or the labels do not lie on the objects. Look at them with `crossdet check "
            "--pictures`; if they are right train longer, or try another `train.lr`"
        )
        told = {"dataset": dataset, "best_score": best, "limit": limit, "objects": objects}
        return [Finding.of("low_scores", f"{dataset}: {seen} ({objects} objects)", means, told)]
    return _constant(dataset, split, found) or _unfound(dataset, split, judged)


def _constant(dataset: str, split: Split, found: DetectionArrays) -> list[Finding]:
    sizes = np.asarray(split.index.sizes, np.float64)
    share, compared = _returning(found, sizes)
    if compared < FEWEST_COMPARED or share < SAME_SHARE:
        return []
    truth = ground_truth(split)
    objects = ~truth.crowd
    labelled = DetectionArrays(
        truth.boxes[objects], np.ones(objects.sum()), truth.labels[objects], truth.image_of_box[objects]
    )
    of_labels, _ = _returning(labelled, sizes)
    if of_labels > SAME_TRUTH:
        return []
    seen = (
        f"{_percent(share)} of the best detections are the same in another picture: box, class and score "
        f"({compared} pictures; of the labels it is {_percent(of_labels)})"
    )
    means = (
        "The detector does not look at the pictures; its features died, most often in the first steps. Start again "
        "with a tenth of `train.lr`, or with a longer warm-up, or (not in an extension) let the backbone's batch "
        "norm train"
    )
    told = {"dataset": dataset, "share": share, "pictures": compared, "share_of_labels": of_labels}
    return [Finding.of("constant_detections", f"{dataset}: {seen}", means, told)]


def _returning(found: DetectionArrays, sizes: Matrix) -> tuple[float, int]:
    """Share of the best detections of a picture that another picture has as well, and how many pictures were
    compared. sizes: `[I, 2]` (height, width). Boxes are compared in shares of the picture."""
    images = np.unique(found.image_of_box)
    images = images[(sizes[images] > 0).all(1)]
    if len(images) > MOST_COMPARED:
        images = images[np.linspace(0, len(images) - 1, MOST_COMPARED).round().astype(np.int64)]
    half = len(images) // 2
    order = np.lexsort((-found.scores, found.image_of_box))
    first, last = np.searchsorted(found.image_of_box[order], [images, images + 1])
    rows = [order[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    pairs = zip(rows[:half], rows[half:], strict=False)  # not neighbours, which may be frames of one video
    shares = [min(_found_again(found, sizes, *pair), _found_again(found, sizes, *pair[::-1])) for pair in pairs]
    return (float(np.mean(shares)) if shares else 0.0), 2 * half


def _found_again(found: DetectionArrays, sizes: Matrix, one: Any, other: Any) -> float:
    """Share of the best detections of `one` (rows of a picture by falling score) that are in `other` as well."""
    best = one[:BEST]
    first, second = np.repeat(best, len(other)), np.tile(other, len(best))

    def placed(rows: Any) -> Matrix:
        size = sizes[found.image_of_box[rows]]
        shares: Matrix = found.boxes[rows].astype(np.float64) / np.concatenate([size[:, ::-1]] * 2, 1)
        return shares

    a, b = found.scores[first], found.scores[second]
    same = found.labels[first] == found.labels[second]
    same &= np.abs(a - b) <= SAME_SCORE * np.maximum(a, b)
    same &= iou_with_offset(0.0)(placed(first), placed(second)) >= SAME_IOU
    return float(same.reshape(len(best), len(other)).any(1).mean())


def _unfound(dataset: str, split: Split, judged: Judged) -> list[Finding]:
    right = judged.labels[judged.hits & judged.counted & (judged.scores > FOUND_SCORE)]
    known = set(right.tolist())
    missing = {
        split.names[c]: count
        for c, count in judged.objects.items()
        if count >= FEWEST_OBJECTS and c not in known and c in split.classes
    }
    if not missing:
        return []
    names = ", ".join(f"{name} (0 of {count})" for name, count in missing.items())
    one = len(missing) == 1
    seen = f"{'one class' if one else f'{len(missing)} classes'} of which no object is found: {names}"
    means = (
        "Usually too few or too small training boxes, or a name that means something else in another dataset. "
        "`crossdet check` shows boxes, sizes and merged names; more pictures, a larger `input` or `weight` help"
    )
    return [Finding.of("unfound_classes", f"{dataset}: {seen}", means, {"dataset": dataset, "objects": missing})]


# ------------------------------------------------------------------------------------------------- loss

FLAT_DROP = 0.03
"""A loss that has fallen by less of itself stands still, and one that has risen by as much rises. Healthy ones fell
by 40 % and more from the first to the last third of 1,200 steps (docs/data/recipe_study_collapse.json)."""
SKIPPED = 0.1
"""Share of the steps that is not looked at: there every loss falls, if only because the prior fits better."""
FEWEST_STEPS = 200
CURVE_PIECES = 120


@dataclass
class LossCurve:
    """Mean losses of equal pieces of a training; the pieces double when there are too many, so it never grows.

    means: those of the newest pieces are tensors still, since reading them waits for the device; `read` does.
    """

    width: int = 1
    means: list[float | Tensor] = field(default_factory=list)
    open_sum: Tensor | float = 0.0
    open_count: int = 0

    def add(self, loss: Tensor) -> None:
        """loss: a scalar on any device. All are read when the pieces double, which they do ever more seldom."""
        self.open_sum, self.open_count = loss.detach().double() + self.open_sum, self.open_count + 1
        if self.open_count < self.width:
            return
        self.means.append(self.open_sum / self.open_count)
        self.open_sum, self.open_count = 0.0, 0
        if len(self.means) == CURVE_PIECES:
            self.width *= 2
            means = self.read()
            self.means = [(a + b) / 2 for a, b in zip(means[::2], means[1::2], strict=True)]

    def read(self) -> list[float]:
        return [float(mean) for mean in self.means]

    @property
    def steps(self) -> int:
        return self.width * len(self.means)


def flat_loss(curve: LossCurve, score: float | None) -> list[Finding]:
    """score: the newest mean score (0..1) of the validation sets, None where there is none.

    Mean of the last third against that of the first one; silent where the losses scatter so much that a fall of
    `FLAT_DROP` could not be told from none.
    """
    if curve.steps < FEWEST_STEPS or (score is not None and score >= LEARNT):
        return []
    means = np.array(curve.read()[round(SKIPPED * len(curve.means)) :])
    third = len(means) // 3
    first, last = means[:third], means[-third:]
    drop = 1 - last.mean() / first.mean() if first.mean() > 0 else 1.0
    noise = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / third) / max(first.mean(), 1e-12)
    if drop >= FLAT_DROP or noise > FLAT_DROP:
        return []
    told = {"first": float(first.mean()), "last": float(last.mean()), "noise": float(noise), "steps": curve.steps}
    if drop <= -FLAT_DROP:
        seen = f"the loss rises: {first.mean():.3g} early on, {last.mean():.3g} in the last third of the steps"
        means_what = "Usually `train.lr` is too high: start again with a tenth of it"
        return [Finding.of("flat_loss", seen, means_what, told)]
    seen = f"the loss stands still: {first.mean():.3g} early on, {last.mean():.3g} in the last third of the steps"
    means_what = (
        "Nothing is learnt. Usually `train.lr` is far too low or too high, or the labels do not fit the pictures: "
        "try a tenth and ten times of it for some hundred steps, and look at `crossdet check --pictures`"
    )
    return [Finding.of("flat_loss", seen, means_what, told)]


# ------------------------------------------------------------------------------------------------- pictures

FOREIGN = 0.6
"""`distance` of a validation set from the nearest training set from which on it looks like none of them.

32 pictures each at 160 pixels, the middle map, eight sets of photographs, MobileNetV2 with ImageNet weights: from
its own training pictures a validation set is at most 0.38 (site_safety, whose training pictures are augmented
mosaics; the others 0.00 to 0.15); streets, rooms, faces and animals among each other 0.14 to 0.59; aquarium, blood
cells, dice and cards from the nearest other set 0.82, 1.75, 1.22 and 0.68. With random weights: see docs/guard.md.
"""
FEWEST_OF_SET = 16
"""Pictures of a set without which it is not judged: of draws of blood cells beside 32 others of the same set, 3.3 %
of those of 8 were as far as `FOREIGN`, 0.3 % of those of 12, and of 300 of 16 none."""


def distance(one: Tensor, other: Tensor) -> float:
    """Of two sets' `watch.statistics` `[n, d]`: the distance of their means by the spread within the sets.

    What the means of so few pictures differ by chance is taken off; about 0 for two draws of one set.
    """
    spread = [rows.var(0, correction=1).sum() for rows in (one, other)]
    chance = spread[0] / len(one) + spread[1] / len(other)
    between = (one.mean(0) - other.mean(0)).square().sum() - chance
    return float((between.clamp(min=0) / ((spread[0] + spread[1]) / 2).clamp(min=1e-12)).sqrt())


def foreign_validation(train: Mapping[str, Tensor], val: Mapping[str, Tensor]) -> list[Finding]:
    """train, val: `watch.statistics` by dataset. Sets of too few pictures are not judged."""
    known = {name: rows for name, rows in train.items() if len(rows) >= FEWEST_OF_SET}
    if len(known) < len(train):  # it may look like the one that cannot be judged
        return []
    found = []
    for name, rows in val.items():
        if len(rows) < FEWEST_OF_SET or not known:
            continue
        distances = {other: distance(rows, theirs) for other, theirs in known.items()}
        nearest = min(distances, key=lambda other: distances[other])
        if distances[nearest] < FOREIGN:
            continue
        seen = (
            f"the validation pictures of {name} look like no training set: {distances[nearest]:.2f} from the "
            f"nearest ({nearest}), where less than {FOREIGN:g} is usual"
        )
        means = (
            "Their scores say little about this training, and it can hardly do well there. Usually a path to other "
            "pictures, or another preparation of them (size, colours, crops); else add training pictures like them"
        )
        told = {"dataset": name, "nearest": nearest, "distances": distances}
        found.append(Finding.of("foreign_validation", seen, means, told))
    return found


# ------------------------------------------------------------------------------------------------- teachers


def never_labelled(labels_from: int | None, epochs: int) -> list[Finding]:
    """Of a training that is over after so many epochs, the last one maybe not whole. labels_from: epochs after
    which the network was to label for itself; None: it was not."""
    if labels_from is None or labels_from < epochs:
        return []
    seen = (
        f"the network never labelled for itself: it was to begin in epoch {labels_from + 1}, and the training "
        f"ended in epoch {epochs}"
    )
    means = "What datasets leave unlabelled stayed avoided. Set a lower `pseudo.from_epoch`, or train longer"
    return [Finding.of("never_labelled", seen, means, {"labels_from": labels_from, "epochs": epochs})]


def lines(findings: Sequence[Mapping[str, Any]], again: bool = False) -> list[str]:
    """As they stand on the terminal; findings as in `Finding.to_json`. again: the advice was given before."""
    if again:
        return [f"warning, as before: {finding['seen']}" for finding in findings]
    return [f"warning: {finding['sentence']}" for finding in findings]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
