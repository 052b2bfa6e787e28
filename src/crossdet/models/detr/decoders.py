"""The decoders of RT-DETR and D-FINE, layer by layer over the modules of HF transformers.

As HF's own `forward`, with the logits of some classes only where that is asked, and with D-FINE's quality apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossdet.models.detr.boxes import inverse_sigmoid
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.distributions import bin_values, edges_to_boxes
from crossdet.models.detr.selection import rows_of


class Memory(NamedTuple):
    """What the encoder knows: `[B, S, D]` of all levels, and their (height, width)."""

    features: Tensor
    shapes: tuple[tuple[int, int], ...]

    def arguments(self) -> dict[str, Any]:
        """As HF's decoder layers take them."""
        shapes = torch.tensor(self.shapes, device=self.features.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        return {
            "encoder_hidden_states": self.features,
            "spatial_shapes": shapes,
            "spatial_shapes_list": list(self.shapes),
            "level_start_index": starts,
        }


class Queries(NamedTuple):
    """hidden: `[B, N, D]`. boxes: `[B, N, 4]` where they begin, as logits. mask: `[B, 1, N, N]` or None."""

    hidden: Tensor
    boxes: Tensor
    mask: Tensor | None = None


Decode = Callable[[Any, Queries, Memory, Tensor | None], list[Answers]]
"""(HF's decoder, queries, memory, classes) -> the answers of every layer. classes: `[K]` of a prediction, for which
the last layer is enough; None: all classes, of all layers."""


def decode_rt_detr(decoder: Any, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
    hidden, boxes = queries.hidden, queries.boxes.sigmoid()
    answers = []
    for i, layer in enumerate(decoder.layers):
        hidden = layer(
            hidden,
            object_queries_position_embeddings=decoder.query_pos_head(boxes),
            reference_points=boxes[:, :, None],
            encoder_attention_mask=queries.mask,
            **memory.arguments(),
        )
        found = (decoder.bbox_embed[i](hidden) + inverse_sigmoid(boxes)).sigmoid()
        boxes = found.detach()
        if classes is None or i == len(decoder.layers) - 1:
            answers.append(Answers(_logits(decoder.class_embed[i], hidden, classes), found))
    return answers


def decode_d_fine(decoder: Any, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
    """The first answer is the first guess, without distributions; then one per layer."""
    hidden, boxes = queries.hidden, queries.boxes.sigmoid()
    values = bin_values(decoder.max_num_bins, decoder.up, decoder.reg_scale)
    answers: list[Answers] = []
    before, edges, references = torch.zeros_like(hidden), None, boxes
    for i, layer in enumerate(decoder.layers):
        hidden = layer(
            hidden,
            position_embeddings=decoder.query_pos_head(boxes).clamp(min=-10, max=10),
            reference_points=boxes[:, :, None],
            encoder_attention_mask=queries.mask,
            **memory.arguments(),
        )
        if i == 0:
            guess = (decoder.pre_bbox_head(hidden) + inverse_sigmoid(boxes)).sigmoid()
            references = guess.detach()
            if classes is None:
                answers.append(Answers(_logits(decoder.class_embed[0], hidden, classes), guess))
        more = decoder.bbox_embed[i](hidden + before)
        edges = more if edges is None else more + edges
        found = edges_to_boxes(references, decoder.integral(edges, values), decoder.reg_scale)
        boxes, before = found.detach(), hidden.detach()
        if classes is None or i == len(decoder.layers) - 1:
            logits = _logits(decoder.class_embed[i], hidden, classes)
            quality = decoder.lqe_layers[i](torch.zeros_like(logits[..., :1]), edges)
            # boxes that stick out have no loss there, as in HF
            answers.append(Answers(logits, found.clamp(0, 1), quality, edges, references))
    return answers


def _logits(head: nn.Linear, hidden: Tensor, classes: Tensor | None) -> Tensor:
    return head(hidden) if classes is None else rows_of(head, hidden, classes)
