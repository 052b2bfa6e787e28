"""What `inspect` finds, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from crossdet.check.canvases import CanvasReport
from crossdet.labels.patterns import Expansion

if TYPE_CHECKING:
    from rich.table import Table

FIRST = 3
"""How many places of one kind a report names; all are counted."""


@dataclass(frozen=True)
class Places:
    """How often something was found, and the first places of it."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, places: Sequence[str]) -> Places:
        return cls(len(places), tuple(places[:FIRST]))


@dataclass(frozen=True)
class FileReport:
    """The image files of a split, by their headers, and where that is asked for decoded to their end.

    checked: files looked at. contradicting: size in the header is in neither orientation the annotated one.
    exif_orientation: usable files that training and evaluation read as stored and `predict` turns or mirrors by
    their EXIF mark, since no annotated size says which of the two the boxes are in. damaged: of the usable files
    those that end in the middle or hold nonsense, each with what is wrong; None: nobody decoded them.
    """

    checked: int
    missing: Places
    unreadable: Places
    contradicting: Places
    exif_orientation: Places = Places()
    damaged: tuple[str, ...] | None = None

    @property
    def bad(self) -> int:
        return self.missing.count + self.unreadable.count + self.contradicting.count


@dataclass(frozen=True)
class SplitReport:
    """One split of one dataset.

    images: of them `directions` are shown of each picture, 1 where pictures are not turned.
    boxes: objects (regions and invalid boxes are not among them); boxes_per_class: by the dataset's own names.
    empty_images: images without objects.
    crowd, ignore_regions, avoided_regions, invalid, difficult: boxes with that flag.
    skipped: what the reader left out, by reason. repeated: objects that stand there a second time, in the same
    picture with the same class and the same box.
    """

    dataset: str
    split: str
    images: int
    empty_images: int
    boxes: int
    boxes_per_class: dict[str, int]
    crowd: int
    ignore_regions: int
    avoided_regions: int
    invalid: int
    difficult: int
    skipped: dict[str, Places]
    files: FileReport
    directions: int = 1
    repeated: Places = Places()


@dataclass(frozen=True)
class ClassReport:
    """One unified class.

    sources: `dataset/name`. states: dataset -> one of `labels.states.STATES`. train_boxes: objects in all train
    splits. trusting_images: training images whose background is a negative for the class.
    """

    name: str
    sources: tuple[str, ...]
    states: dict[str, str]
    train_boxes: int
    trusting_images: int


class NetworkFinding(Protocol):
    """What the architecture of a config has to say of the data before training."""

    def warnings(self) -> Iterable[str]: ...

    def table(self) -> tuple[str, Table]:
        """A heading, and what stands below it."""

    def to_json(self) -> dict[str, object]:
        """What it adds to the keys of the report."""


UNION_TEST = ("union_test", "pictures")
"""Stands among the splits for the fully labelled pictures of a config."""


@dataclass(frozen=True)
class DuplicateReport:
    """Identical image files in two places (dataset, split), or twice in the same one.

    leak: one is a train split, the other is not. pictures: how many. files: the first pairs. turned: of each of
    them what makes the first the second ("mirrored"); empty: nothing.
    """

    one: tuple[str, str]
    other: tuple[str, str]
    leak: bool
    pictures: int
    files: tuple[tuple[str, str], ...]
    turned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that `crossdet check` knows.

    errors: the run would fail. warnings: it would run, but probably not as meant. notes: good to know.
    avoiding_images: training images whose background is not used for at least one class.
    max_images: limit of image files looked at per split, None = all.
    recipe: how it would be trained, a line each; empty where there is nothing to train on. canvases: sizes of the
    batches, None where each is as large as its largest picture. patterns: what those of the label rules stand for.
    union_test: the files of the config's fully labelled pictures, None without any.
    alike: pairs of splits in which pictures of `other` look like some of `one`, without being the same files; None:
    not compared.
    """

    datasets: tuple[str, ...]
    federated: tuple[str, ...]
    dropped: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    classes: tuple[ClassReport, ...]
    train_images: int
    avoiding_images: int
    likely_duplicates: tuple[tuple[str, str], ...]
    partial_merges: tuple[str, ...]
    network: NetworkFinding | None
    duplicates: tuple[DuplicateReport, ...]
    max_images: int | None
    recipe: tuple[str, ...] = ()
    canvases: CanvasReport | None = None
    patterns: tuple[Expansion, ...] = ()
    alike: tuple[DuplicateReport, ...] | None = ()
    union_test: FileReport | None = None
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The whole report as JSON text; keys are the field names, in place of `network` those of the finding."""
        content: dict[str, object] = {}
        for key, value in asdict(self).items():
            if key != "network":
                content[key] = value
            elif self.network is not None:
                content |= self.network.to_json()
        return json.dumps(content, indent=2, ensure_ascii=False)
