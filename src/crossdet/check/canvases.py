"""What `crossdet check` says of the canvases that batches come in. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crossdet.config import Config
from crossdet.config.sources import Sources
from crossdet.data.canvases import assigned, choose_canvases, jittered_sizes, padding


@dataclass(frozen=True)
class CanvasReport:
    """canvases: (height, width). shares: of the pictures on each, but for what an epoch leaves over. padding: share
    of the pixels of all batches."""

    canvases: tuple[tuple[int, int], ...]
    shares: tuple[float, ...]
    padding: float

    def lines(self) -> Iterator[str]:
        named = zip(self.canvases, self.shares, strict=True)
        told = ", ".join(f"{h} x {w} ({share:.0%} of the pictures)" for (h, w), share in named)
        yield f"canvases (height x width): {told}; {self.padding:.0%} of their pixels are padding"
        if not self.shares[-1]:
            yield "the last one is for what is left over of all the others at the end of an epoch"


def canvas_report(config: Config, sources: Sources) -> CanvasReport | None:
    """Of the training; None where batches are as large as their largest picture."""
    indexes, size, jitter = sources.train.values(), config.input, config.augment.scale_jitter
    if not indexes or config.canvases == 0:
        return None
    sets = [index.sizes for index in indexes]
    canvases = choose_canvases(sets, size.shorter, size.longer, jitter, config.canvases)
    if not canvases:
        return None
    wanted = jittered_sizes(np.concatenate(sets), size.shorter, size.longer, jitter)
    numbers = assigned(wanted, canvases)
    counts = np.bincount(numbers, minlength=len(canvases))
    return CanvasReport(canvases, tuple((counts / counts.sum()).tolist()), padding(wanted, canvases, numbers))
