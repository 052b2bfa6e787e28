"""Geometry of training and evaluation images, on torchvision's v2 kernels; their colours are in `colour.py`.

A transform knows pixels and boxes only. What becomes of an object that it cuts is decided by the hybrid dataset
(`hybrid.after_transform`), which knows what a box is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from crossdet.data.canvases import Canvas, fitted_into, resized

IMAGENET_MEAN = (124, 116, 104)
"""RGB mean of ImageNet: what batches are padded with where no model says otherwise."""

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of a picture; it may reach beyond the picture."""

_MIRRORED, _SIGNS = [2, 1, 0, 3], [-1, 1, -1, 1]
# SSD's augmentation (Liu et al., arXiv 1512.02325, sec. 2.2), whose random numbers torchvision draws. Not up to 4
# times the side as there: three quarters of the mean picture would be border.
_ZOOM_OUT = v2.RandomZoomOut(side_range=(1.0, 2.0))
_IOU_CROP = v2.RandomIoUCrop()


class View(NamedTuple):
    """What training sees of a picture.

    image: `[3, H, W]` uint8. boxes: `[M, 4]` xyxy, all that came in, in pixels of `image`; not clipped, so that it
    is known what a crop has cut. mirrored: left and right have changed places.
    """

    image: Tensor
    boxes: Tensor
    mirrored: bool = False


def fitted(height: int, width: int, canvas: Canvas | None) -> tuple[int, int]:
    """The same, smaller where the canvas would not hold it."""
    factor = 1.0 if canvas is None else min(1.0, canvas[0] / height, canvas[1] / width)
    return max(1, int(height * factor)), max(1, int(width * factor))


@dataclass(frozen=True)
class Resize:
    """Evaluation: the shorter side to `shorter` pixels with a cap on the longer; nothing random.

    square, antialias: `stretched_to` and `antialias` of the network (`models.contract.Network`). A picture comes to
    the square in one step, as processors of checkpoints bring it there.
    frame: (height, width) into which pictures are fitted instead, upright ones into a lying frame, too."""

    shorter: int
    longer: int
    square: int | None = None
    antialias: bool = True
    frame: tuple[int, int] | None = None

    def __call__(self, image: Tensor, boxes: Tensor) -> View:
        """image `[3, H, W]` uint8, boxes `[M, 4]` xyxy -> the same, resized."""
        height, width = image.shape[1:]
        if self.frame is None:
            size = resized(height, width, self.shorter, self.longer, square=self.square)
        else:
            size = fitted_into(height, width, self.frame)
        return View(*_resize(image, boxes, size, self.antialias))


@dataclass(frozen=True)
class Augment:
    """Training: zoom out, IoU crop, resize with scale jitter, horizontal flip; each optional.

    flip, zoom_out, iou_crop: probabilities. scale_jitter: range of a factor on the size. fill: RGB of the border
    that zooming out adds, which holds nothing.
    square, antialias: as of `Resize`; what is seen fills the square, so that scale jitter changes nothing but the
    pieces of mosaics.

    Zoom out and crop only choose the window that is seen; it is cut, resized and filled at once, in the size of
    the result: torchvision's transforms would first paint a picture of up to 4 times as many pixels.

    All randomness comes from torch's global generator, which the dataset seeds for every draw.
    """

    shorter: int
    longer: int
    flip: float = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    fill: Sequence[int] = IMAGENET_MEAN
    square: int | None = None
    antialias: bool = True

    def size_of(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """(height, width) at which a picture is seen that is not cut, without a canvas."""
        return resized(height, width, self.shorter, self.longer, 1.0 if self.square else scale, self.square)

    def __call__(
        self, image: Tensor, boxes: Tensor, scale: float | None = None, canvas: Canvas | None = None
    ) -> View:
        """image `[3, H, W]` uint8, boxes `[M, 4]` xyxy inside it -> what is seen of it.

        scale: the factor on the size, where it is drawn already. canvas: which must hold what is seen. It holds the
        whole picture at that scale; a crop of another shape becomes smaller.
        """
        window = self._window(image.shape[1], image.shape[2], boxes)
        left, top, right, bottom = window
        scale = self._jitter() if scale is None else scale
        height, width = fitted(*self.size_of(bottom - top, right - left, scale), canvas)
        inside = (max(left, 0), max(top, 0), min(right, image.shape[2]), min(bottom, image.shape[1]))
        if inside == window:
            return self._flipped(*self._part(image, boxes, window, (height, width)))
        x1, x2 = _placed(inside[0] - left, inside[2] - left, width / (right - left), width)
        y1, y2 = _placed(inside[1] - top, inside[3] - top, height / (bottom - top), height)
        part, boxes = self._part(image, boxes, inside, (y2 - y1, x2 - x1))
        seen = blank(height, width, self.fill)
        seen[:, y1:y2, x1:x2] = part
        return self._flipped(seen, boxes + boxes.new_tensor([x1, y1, x1, y1]))

    def piece(self, image: Tensor, boxes: Tensor, room: tuple[int, int], scale: float) -> View:
        """A part of the picture, at a random place, as large as there is room (height, width) for.

        The picture is `scale` times as large as without a mosaic; where it is smaller than the room it is whole.
        """
        scale *= self._jitter()
        tall, wide = resized(image.shape[1], image.shape[2], self.shorter, self.longer, scale, self.square)
        height, width = min(tall, room[0]), min(wide, room[1])
        top, bottom = _some_of(image.shape[1], height / tall)
        left, right = _some_of(image.shape[2], width / wide)
        return self._flipped(*self._part(image, boxes, (left, top, right, bottom), (height, width)))

    def _window(self, height: int, width: int, boxes: Tensor) -> Window:
        window = (0, 0, width, height)
        if self.zoom_out and float(torch.rand(())) < self.zoom_out:
            left, top, right, bottom = _ZOOM_OUT.make_params([_known(boxes, height, width)])["padding"]
            window = (-left, -top, width + right, height + bottom)
        # without a box every crop is refused, after hundreds of trials
        if self.iou_crop and float(torch.rand(())) < self.iou_crop and len(boxes):
            left, top, right, bottom = window
            moved = boxes - boxes.new_tensor([left, top, left, top])
            crop = _IOU_CROP.make_params([_known(moved, bottom - top, right - left)])
            if crop:
                left, top = left + crop["left"], top + crop["top"]
                window = (left, top, left + crop["width"], top + crop["height"])
        return window

    def _jitter(self) -> float:
        low, high = self.scale_jitter
        return low + (high - low) * float(torch.rand(()))

    def _part(self, image: Tensor, boxes: Tensor, inside: Window, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """A window inside the picture, resized to (height, width); boxes from its corner."""
        left, top, right, bottom = inside
        if inside != (0, 0, image.shape[2], image.shape[1]):
            image = image[:, top:bottom, left:right]
            boxes = boxes - boxes.new_tensor([left, top, left, top])
        return _resize(image, boxes, size, self.antialias)

    def _flipped(self, image: Tensor, boxes: Tensor) -> View:
        if float(torch.rand(())) >= self.flip:
            return View(image, boxes)
        width = image.shape[2]
        boxes = boxes.new_tensor([width, 0, width, 0]) + boxes[:, _MIRRORED] * boxes.new_tensor(_SIGNS)
        return View(F.horizontal_flip(image), boxes, mirrored=True)


def blank(height: int, width: int, fill: Sequence[int]) -> Tensor:
    """`[3, height, width]` uint8 of one colour, channels_last in memory as decoders give pictures."""
    colour = torch.tensor(fill, dtype=torch.uint8)
    return colour.repeat(height, width, 1).permute(2, 0, 1)


def _known(boxes: Tensor, height: int, width: int) -> BoundingBoxes:
    """Boxes xyxy as torchvision takes them, who tells the picture's size by them."""
    return BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=(height, width))


def _placed(low: int, high: int, factor: float, side: int) -> tuple[int, int]:
    """Where low to high of a window come to lie in its `side` pixels: at least one of them."""
    first = min(round(low * factor), side - 1)
    return first, min(max(round(high * factor), first + 1), side)


def _some_of(side: int, share: float) -> tuple[int, int]:
    """(first, end) of a random stretch of that share of a side."""
    length = min(max(1, round(side * share)), side)
    first = int(float(torch.rand(())) * (side - length + 1))
    return first, first + length


def _resize(image: Tensor, boxes: Tensor, size: tuple[int, int], antialias: bool) -> tuple[Tensor, Tensor]:
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, boxes
    factor = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return F.resize(image, list(size), antialias=antialias), boxes * factor
