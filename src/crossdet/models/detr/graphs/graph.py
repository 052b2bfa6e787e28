"""What a family of set-prediction detectors is to the network: HF's modules, step by step, and no loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossdet.models.detr.criterion import Answers, Bins
from crossdet.models.detr.selection import rows_of


class Memory(NamedTuple):
    """What the encoder knows: `[B, S, D]` of all levels, and their (height, width)."""

    features: Tensor
    shapes: tuple[tuple[int, int], ...]

    def arguments(self) -> dict[str, Any]:
        """As HF's decoder layers take them, the same for all."""
        shapes = torch.tensor(self.shapes).to(self.features.device, non_blocking=True)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return {
            "encoder_hidden_states": self.features,
            "spatial_shapes": shapes,
            "spatial_shapes_list": list(self.shapes),
            "level_start_index": starts,
        }


class Proposals(NamedTuple):
    """What may become a query. inputs: `[B, S, D]` of the encoder's heads. anchors: `[1, S, 4]`, in the graph's own
    terms. valid: `[1, S]` bool, those that may be chosen; None: all."""

    inputs: Tensor
    anchors: Tensor
    valid: Tensor | None = None

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, N, D]` inputs and `[B, N, 4]` anchors of the positions `[B, N]`."""
        return _at(self.inputs, positions), _at(self.anchors.expand(positions.shape[0], -1, -1), positions)


class Queries(NamedTuple):
    """hidden: `[B, N, D]`. boxes: `[B, N, 4]` where they begin, in the graph's own terms. mask: `[B, 1, N, N]` or
    None."""

    hidden: Tensor
    boxes: Tensor
    mask: Tensor | None = None


class First(NamedTuple):
    """Chosen positions: what the encoder says of them, and the queries that they become.

    inputs: `[B, N, D]` of the encoder's class head. boxes: `[B, N, 4]` centre, width, height in shares.
    """

    inputs: Tensor
    boxes: Tensor
    queries: Queries


class Graph(ABC):
    """Goes through HF's whole model of the family, or rather through its `core`, which the network owns.

    backbone_prefix: what the names of the backbone's parameters begin with.
    """

    backbone_prefix = "core.backbone."

    def __init__(self, whole: Any) -> None:
        self.core = whole.model

    @property
    def groups(self) -> int:
        """Sets of queries that do not see each other and share the decoder; in prediction there is one."""
        return 1

    @abstractmethod
    def feature_maps(self, pictures: Tensor) -> list[Tensor]:
        """Of the backbone, `[B, c, h, w]`, the deepest last. pictures: `[B, 3, H, W]` normalised."""

    @abstractmethod
    def memory(self, pictures: Tensor) -> Memory: ...

    @abstractmethod
    def proposals(self, memory: Memory, group: int) -> Proposals: ...

    @abstractmethod
    def head(self, group: int) -> nn.Linear:
        """The encoder's class head."""

    @abstractmethod
    def first(self, proposals: Proposals, positions: Tensor, group: int) -> First:
        """Of the positions `[B, N]`. The queries' boxes have no gradient towards the encoder's, which have one."""

    @abstractmethod
    def decode(self, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
        """The answers of every layer. classes: `[K]` of a prediction, for which the last layer is enough; None: all
        classes, of all layers."""

    @abstractmethod
    def stem(self) -> list[nn.Module]:
        """The backbone's layers up to and with those at stride 4. Raises `UserError` where there are none."""

    def denoising(self) -> nn.Embedding | None:
        """`[C + 1, D]` what a query that is given an object of a class begins with; None where there is no such
        thing."""
        return None

    def idle(self) -> list[Tensor]:
        """What the loss of a batch may leave out."""
        return []

    def bins(self) -> Bins | None:
        """Of boxes as distributions."""
        return None


def logits_of(head: nn.Linear, hidden: Tensor, classes: Tensor | None) -> Tensor:
    """`[B, N, C]`, or `[B, N, K]` of some classes."""
    return head(hidden) if classes is None else rows_of(head, hidden, classes)


def joined(parts: list[First]) -> First:
    """Groups one after another. Their queries have no masks."""
    if len(parts) == 1:
        return parts[0]
    queries = Queries(*(torch.cat([getattr(p.queries, name) for p in parts], 1) for name in ("hidden", "boxes")))
    return First(torch.cat([p.inputs for p in parts], 1), torch.cat([p.boxes for p in parts], 1), queries)


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """`[B, N, ...]` of `[B, S, ...]`."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[2]))
