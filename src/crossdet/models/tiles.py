"""Where in a mosaic background may be a negative: by the tiles that a position touches.

For any network whose positions have boxes (anchors; points and queries with what they look at).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crossdet.types import Tiles


class LocalTrust(NamedTuple):
    """What every position trusts.

    zone: `[B, N]` int64, bit t is set where the position touches tile t. table: `[B, 2^T, C]` bool, what all tiles
    of a zone trust; zone 0 is outside all tiles, where there is nothing, and trusts what any tile does.

    A position that touches a tile at all is held to it: half the area, as for regions, would not do. An unlabelled
    object of the tile may be matched to an anchor with an IoU of 0.4, and a small one to an anchor whatever the
    IoU; in the picture itself such an anchor would be no negative.
    """

    zone: Tensor
    table: Tensor

    @classmethod
    def of(cls, tiles: Tiles, boxes: Tensor) -> LocalTrust:
        """boxes: xyxy of the positions, in the unit of the tiles: `[N, 4]` for all images, or `[B, N, 4]`."""
        boxes = boxes.expand(len(tiles.boxes), -1, -1)[:, None]
        low = torch.maximum(tiles.boxes[:, :, None, :2], boxes[..., :2])
        high = torch.minimum(tiles.boxes[:, :, None, 2:], boxes[..., 2:])
        count = tiles.boxes.shape[1]
        device = boxes.device
        bits = 1 << torch.arange(count, device=device)
        zone = ((high > low).all(3) * bits[:, None]).sum(1)
        touched = (torch.arange(1 << count, device=device)[:, None] & bits) != 0
        table = (tiles.trusted[:, None] | ~touched[:, :, None]).all(2)
        return cls(zone, table & tiles.trusted.any(1)[:, None])

    def at(self, image: Tensor, position: Tensor) -> Tensor:
        """`[F, C]` bool of single positions; image, position: `[F]`."""
        return self.table[image, self.zone[image, position]]

    def dense(self) -> Tensor:
        """`[B, N, C]` bool."""
        return _looked_up(self.table, self.zone)

    def of_images(self, images: Sequence[int], classes: Tensor) -> LocalTrust:
        """Of some images and classes, without waiting for the device."""
        zone, table = (torch.stack([t[image] for image in images]) for t in self)
        return LocalTrust(zone, table.index_select(2, classes.to(table.device, non_blocking=True)))

    def hidden(self, logits: Tensor, start: int = 0) -> Tensor:
        """`logits [B, n, C]` of the positions from `start` on, where a background is none for a class at -1e4: a
        probability of zero, with gradient zero."""
        trusted = _looked_up(self.table, self.zone[:, start : start + logits.shape[1]])
        return logits.masked_fill(~trusted, -1e4)


def _looked_up(table: Tensor, zone: Tensor) -> Tensor:
    return table.gather(1, zone[:, :, None].expand(-1, -1, table.shape[2]))
