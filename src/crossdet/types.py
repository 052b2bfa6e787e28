"""The tensors that travel between data, model and evaluation, with their shapes checked once.

Torch is imported only when such an object is made: `crossdet check` and the readers use the constants of this
module and stay free of torch.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from crossdet.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

BACKGROUND = -1
"""Label of a position (an anchor, a point, a query) that matches no object."""
IGNORE = -2
"""Label of a position that is in no term of the loss."""


PAD_DIVISOR = 32
"""Batches are padded to a multiple of the coarsest backbone stride; few different shapes occur, too."""

CLASSES_SHOWN = 6
"""Classes that `Detections` name when they are printed."""


class Flag(IntFlag):
    """What a box is besides an ordinary object; one uint8 bit set per box.

    CROWD, IGNORE_REGION and AVOID rows are never positives: an anchor that an object in such a row, or in its
    place, could keep from being a negative is no negative for the row's label (label -1: for no class).
    DIFFICULT boxes are ordinary positives unless the config says otherwise. INVALID boxes become
    IGNORE_REGION in training; the evaluation protocols read the flags they need.
    TEACHER boxes are those that a detector labelled: such a region takes no negatives from
    objects without the flag.
    """

    CROWD = 1
    IGNORE_REGION = 2
    DIFFICULT = 4
    INVALID = 8
    AVOID = 16
    TEACHER = 32


REGION_FLAGS = Flag.CROWD | Flag.IGNORE_REGION | Flag.AVOID
"""Rows with any of these are regions, not objects."""


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: str) -> None:
    good = len(tensor.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not good or str(tensor.dtype).removeprefix("torch.") != dtype:
        wanted = "[" + ", ".join("*" if s is None else str(s) for s in shape) + "]"
        raise ValueError(
            f"{name}: expected a tensor of shape {wanted} and dtype {dtype}, "
            f"got {list(tensor.shape)} and {tensor.dtype}"
        )


@dataclass(frozen=True)
class Annotations:
    """The boxes of one image.

    boxes: `[M, 4]` float32, xyxy in absolute pixels of the image as it is passed along with them.
    labels: `[M]` int64, unified class ids; -1 only on region rows (no class in particular).
    flags: `[M]` uint8, bits of `Flag`.
    area: `[M]` float32 or None: the annotated area where a protocol needs it (COCO's segmentation area).
    """

    boxes: Tensor
    labels: Tensor
    flags: Tensor
    area: Tensor | None = None

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        _expect("boxes", self.boxes, (count, 4), "float32")
        _expect("labels", self.labels, (count,), "int64")
        _expect("flags", self.flags, (count,), "uint8")
        if self.area is not None:
            _expect("area", self.area, (count,), "float32")

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Annotations:
        return Annotations(
            function(self.boxes),
            function(self.labels),
            function(self.flags),
            None if self.area is None else function(self.area),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Annotations:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Annotations:
        return self._map(lambda tensor: tensor.pin_memory())


class Prepared(Protocol):
    """What a network's `prepare` adds to a batch in the loader's workers; nobody else looks into it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """With all its tensors replaced by what `function` makes of them."""


class TrustGroup(NamedTuple):
    """Images of a batch that trust the same classes. images: rows of the batch; classes: `[K]` int64, rising."""

    images: tuple[int, ...]
    classes: Tensor


def trust_groups(trusted: Tensor) -> tuple[TrustGroup, ...]:
    """The distinct rows of `trusted [B, C]`, in order of first appearance. Waits for the device of `trusted`."""
    rows: dict[bytes, list[int]] = {}
    on_cpu = trusted.cpu()
    for image, row in enumerate(on_cpu.numpy()):
        rows.setdefault(row.tobytes(), []).append(image)
    return tuple(TrustGroup(tuple(images), on_cpu[images[0]].nonzero().squeeze(1)) for images in rows.values())


class Tiles(NamedTuple):
    """The pictures that a mosaic is made of: trust belongs to a place, not to the whole image.

    boxes: `[T, 4]` float32, xyxy, where each picture lies in the mosaic. trusted: `[T, C]` bool, what each of them
    trusts. dataset_ids: `[T]` int64. In a batch all have `B` in front, and an image that is no mosaic has tiles
    without area, which nothing touches, that trust what it trusts.

    Background is a negative for a class only where all tiles that the position touches trust the class. A tile is
    no region (`Flag`): there an object of the tile is a negative of the classes that the tile does not trust, as
    it is in its own picture, and its background never is.
    """

    boxes: Tensor
    trusted: Tensor
    dataset_ids: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Tiles:
        return Tiles(*map(function, self))


@dataclass(frozen=True)
class Batch:
    """What one training or evaluation step sees.

    images: `[B, 3, H, W]` uint8 RGB, padded on the right and at the bottom.
    sizes: `[B, 2]` int64, (height, width) of each image before padding.
    original_sizes: `[B, 2]` int64, (height, width) of the picture on disk.
    targets: one `Annotations` per image, in pixels of `images`.
    trusted: `[B, C]` bool: background of the image may be a negative for the class, wherever it is.
    image_ids: `[B]` int64, row of the image in its hybrid dataset.
    dataset_ids: `[B]` int64, partition of the image; for logs and reports only, the loss never reads it.
    unreadable: what was replaced by another image because it could not be read, one line each.
    prepared: what the network's `prepare` found in the loader's workers, None without one.
    background_weight: `[B, C]` float32, factor on the negatives that the background of an image gives for a
        class: below 1 where a teacher and no person says what is background. None: all 1.
    tiles: of the mosaics among the images, whose `trusted` is what all their tiles trust: where they trust more.
        None: no image is a mosaic.
    draws: `[B]` int64, the seed of everything random that happens to an image in this epoch, for what a network
        does at random; it stays on the CPU. None: not known, nothing is drawn.
    colours: `[B, 3, 4]` float32, what the colours of each image are still to become (`data.colour`). None: nothing.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    targets: list[Annotations]
    trusted: Tensor
    image_ids: Tensor
    dataset_ids: Tensor
    unreadable: tuple[str, ...] = field(default=())
    prepared: Prepared | None = None
    background_weight: Tensor | None = None
    tiles: Tiles | None = None
    draws: Tensor | None = None
    colours: Tensor | None = None

    def __post_init__(self) -> None:
        count = self.images.shape[0]
        _expect("images", self.images, (count, 3, None, None), "uint8")
        _expect("sizes", self.sizes, (count, 2), "int64")
        _expect("original_sizes", self.original_sizes, (count, 2), "int64")
        _expect("trusted", self.trusted, (count, None), "bool")
        _expect("image_ids", self.image_ids, (count,), "int64")
        _expect("dataset_ids", self.dataset_ids, (count,), "int64")
        if self.background_weight is not None:
            shape = (count, self.trusted.shape[1])
            _expect("background_weight", self.background_weight, shape, "float32")
        if self.tiles is not None:
            number, classes = self.tiles.boxes.shape[1], self.trusted.shape[1]
            _expect("tiles.boxes", self.tiles.boxes, (count, number, 4), "float32")
            _expect("tiles.trusted", self.tiles.trusted, (count, number, classes), "bool")
            _expect("tiles.dataset_ids", self.tiles.dataset_ids, (count, number), "int64")
        if self.draws is not None:
            _expect("draws", self.draws, (count,), "int64")
        if self.colours is not None:
            _expect("colours", self.colours, (count, 3, 4), "float32")
        if len(self.targets) != count:
            raise ValueError(f"targets: expected {count} (one per image), got {len(self.targets)}")

    @cached_property
    def trust_groups(self) -> tuple[TrustGroup, ...]:
        """Images with equal rows of `trusted_somewhere`. Found where the batch is made, on the CPU, and taken along
        by `to` and `pin_memory`, so that nobody has to ask the device; `dataclasses.replace` finds them anew."""
        return trust_groups(self.trusted_somewhere)

    @cached_property
    def has_regions(self) -> bool:
        """Whether a target has a region row; known as `trust_groups` are."""
        return any(bool((target.flags & int(REGION_FLAGS)).any()) for target in self.targets)

    def passed_on(self, batch: Batch, move: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Batch:
        """`batch`, of the same trust and targets, perhaps on another device, with what was found here. move: as its
        tensors were moved."""
        groups = tuple(group._replace(classes=move(group.classes)) for group in self.trust_groups)
        vars(batch).update(trust_groups=groups, has_regions=self.has_regions)
        return batch

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def trusted_somewhere(self) -> Tensor:
        """`[B, C]` bool: whether some part of the image trusts its background for the class."""
        return self.trusted if self.tiles is None else self.tiles.trusted.any(1)

    def of_datasets(self, table: Tensor) -> Tensor:
        """`[B, C]` of weights `table [K, C]` by dataset; of a mosaic the smallest of its datasets'."""
        return table[self.dataset_ids] if self.tiles is None else table[self.tiles.dataset_ids].amin(1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """On a device. The targets of a prepared batch stay where they are: networks read what was prepared."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        moved = replace(
            self,
            images=move(self.images),
            sizes=move(self.sizes),
            original_sizes=move(self.original_sizes),
            targets=self.targets if self.prepared else [t.to(device, non_blocking) for t in self.targets],
            trusted=move(self.trusted),
            image_ids=move(self.image_ids),
            dataset_ids=move(self.dataset_ids),
            prepared=None if self.prepared is None else self.prepared.map(move),
            background_weight=None if self.background_weight is None else move(self.background_weight),
            tiles=None if self.tiles is None else self.tiles.map(move),
            colours=None if self.colours is None else move(self.colours),
        )
        return self.passed_on(moved, move)

    def pin_memory(self) -> Batch:
        """Called by `torch.utils.data.DataLoader(pin_memory=True)`."""
        pinned = replace(
            self,
            images=self.images.pin_memory(),
            sizes=self.sizes.pin_memory(),
            original_sizes=self.original_sizes.pin_memory(),
            image_ids=self.image_ids.pin_memory(),
            targets=self.targets if self.prepared else [target.pin_memory() for target in self.targets],
            trusted=self.trusted.pin_memory(),
            dataset_ids=self.dataset_ids.pin_memory(),
            prepared=None if self.prepared is None else self.prepared.map(lambda t: t.pin_memory()),
            background_weight=None if self.background_weight is None else self.background_weight.pin_memory(),
            tiles=None if self.tiles is None else self.tiles.map(lambda t: t.pin_memory()),
            colours=None if self.colours is None else self.colours.pin_memory(),
        )
        return self.passed_on(pinned, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, repr=False)
class Detections:
    """What a detector found in one image, by falling score.

    boxes: `[N, 4]` float32 xyxy pixels; scores: `[N]` float32 in 0..1; labels: `[N]` int64 unified class ids.
    names: the class names of the labels, where the maker knows them (`load_detector` does).
    Tensors; of an exported file, which needs no torch, numpy arrays of the same shapes and types.
    angles: `[N]` int64 degrees counter-clockwise, -1 where a class has no directions; None where no class has.

    `found[mask]`, `found[3]`, `found[:5]` and `found[[4, 0]]` are `Detections` of some rows, in the order asked
    for; going through it gives one row after the other.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...] | None = None
    angles: Tensor | None = None

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        _expect("boxes", self.boxes, (count, 4), "float32")
        _expect("scores", self.scores, (count,), "float32")
        _expect("labels", self.labels, (count,), "int64")
        if self.names is not None and len(self.names) != count:
            raise ValueError(f"names: expected {count}, got {len(self.names)}")
        if self.angles is not None:
            _expect("angles", self.angles, (count,), "int64")

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __repr__(self) -> str:
        """As `Detections(7: 4 face, 3 person; best score 0.93)`; `class 2` stands for a class without a name."""
        if not len(self):
            return "Detections(0)"
        counts = Counter(self.names or [f"class {label}" for label in self.labels.tolist()]).most_common()
        shown = ", ".join(f"{count} {name}" for name, count in counts[:CLASSES_SHOWN])
        more = f", and {len(counts) - CLASSES_SHOWN} more classes" if len(counts) > CLASSES_SHOWN else ""
        return f"Detections({len(self)}: {shown}{more}; best score {float(self.scores.max()):.2f})"

    def __iter__(self) -> Iterator[Detections]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Any) -> Detections:
        """Some rows: one by its number (from the end where negative), a slice, a mask `[N]` or a list of numbers,
        as list, array or tensor. Raises `IndexError` for rows that there are not, `TypeError` for other things."""
        chosen = _rows(rows, len(self))
        own = chosen if isinstance(self.boxes, type(chosen)) else self.labels.new_tensor(chosen)
        return Detections(
            self.boxes[own],
            self.scores[own],
            self.labels[own],
            None if self.names is None else tuple(self.names[row] for row in chosen.tolist()),
            None if self.angles is None else self.angles[own],
        )

    def to_coco(self, image_id: int, categories: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO results file: image_id, category_id, bbox (x, y, width, height in pixels) and score.

        categories: class name -> category id of the annotation file; detections of classes that it has not are left
        out. None: unified id + 1, as in the `coco_results.json` of `crossdet predict`.

        Raises `UserError` where there are categories but these detections have no names.
        """
        if categories is not None and self.names is None:
            raise UserError("to_coco: these detections have no class names for `categories`; leave it out")
        ids: list[int | None] = [label + 1 for label in self.labels.tolist()]
        if categories is not None:
            ids = [categories.get(name) for name in self.names or ()]
        rows = []
        for category, score, (x1, y1, x2, y2) in zip(ids, self.scores.tolist(), self.boxes.tolist(), strict=True):
            if category is not None:
                box = [x1, y1, x2 - x1, y2 - y1]
                rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
        return rows

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`, a row per detection: class (the name, where there are names), label, score, x1, y1,
        x2, y2, and angle where there are directions.

        Raises `UserError` where pandas is not installed.
        """
        pandas = _package("pandas", "to_pandas")
        columns: dict[str, Any] = {} if self.names is None else {"class": list(self.names)}
        columns |= {"label": _array(self.labels), "score": _array(self.scores)}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), _array(self.boxes).T, strict=True))
        if self.angles is not None:
            columns["angle"] = _array(self.angles)
        return pandas.DataFrame(columns)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`: xyxy, confidence, class_id (the unified ids), data["class_name"] where there
        are names, and data["angle"] where there are directions.

        Raises `UserError` where supervision is not installed.
        """
        import numpy as np

        supervision = _package("supervision", "to_supervision")
        data = {} if self.names is None else {"class_name": np.array(self.names, dtype=np.str_)}
        if self.angles is not None:
            data["angle"] = _array(self.angles)
        return supervision.Detections(
            xyxy=_array(self.boxes), confidence=_array(self.scores), class_id=_array(self.labels), data=data
        )


def _rows(rows: Any, count: int) -> NDArray[np.int64]:
    """`[K]` row numbers, none negative, of whatever `Detections.__getitem__` was given."""
    import numpy as np

    if isinstance(rows, slice):
        return np.array(range(count)[rows], np.int64)
    given = np.asarray(_array(rows))
    if given.dtype.kind == "b":
        if given.shape != (count,):
            raise IndexError(f"a mask of shape {list(given.shape)} for {count} detections; it needs [{count}]")
        return np.flatnonzero(given)
    if given.ndim > 1 or (given.dtype.kind not in "iu" and given.size):
        raise TypeError(f"detections are chosen by a number, a slice, a mask or a list of numbers, not by {rows!r}")
    numbers = given.reshape(-1).astype(np.int64)
    outside = numbers[(numbers < -count) | (numbers >= count)]
    if len(outside):
        raise IndexError(f"row {outside[0]} of {count} detections")
    return np.where(numbers >= 0, numbers, numbers + count)


def _array(tensor: Any) -> Any:
    """Of a tensor its array; anything else as it is."""
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor


def _package(name: str, method: str) -> Any:
    """A package that only a conversion needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{method} needs the package {name}: pip install 'crossdet[{name}]'") from None
