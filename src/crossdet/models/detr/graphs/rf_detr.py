"""RF-DETR (arXiv 2511.09554) over the modules of HF transformers: a vision transformer, and groups of queries.

As HF's own `forward` of a picture without padding. Anchors and boxes of queries are centre, width and height in
shares. The decoder's layers all begin at the same boxes, and share their heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossdet.errors import UserError
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.graphs.graph import First, Graph, Memory, Proposals, Queries, logits_of

ANCHOR_SIDE = 0.05
BORDER = 0.01
"""Positions whose centre is nearer to the edge propose nothing."""


class RFDetrGraph(Graph):
    backbone_prefix = "core.backbone.backbone."

    def __init__(self, whole: Any) -> None:
        super().__init__(whole)
        self.core.class_embed, self.core.bbox_embed = whole.class_embed, whole.bbox_embed
        body = self.core.backbone.backbone
        layers = body.encoder.layer[max(body.config.out_indices) :]  # behind the last map that is read
        for part in (layers, body.embeddings.mask_token):
            if part is not None:  # no mask outside of pre-training
                part.requires_grad_(False)

    @property
    def groups(self) -> int:
        return self.core.group_detr if self.core.training else 1

    def feature_maps(self, pictures: Tensor) -> list[Tensor]:
        return list(self.core.backbone.backbone(pictures).feature_maps)

    def memory(self, pictures: Tensor) -> Memory:
        features = self.core.backbone.projector(tuple(self.feature_maps(pictures)))
        return Memory(features.flatten(2).transpose(1, 2), ((features.shape[-2], features.shape[-1]),))

    def proposals(self, memory: Memory, group: int) -> Proposals:
        features = memory.features
        kind = torch.promote_types(features.dtype, torch.float32)
        (height, width), device = memory.shapes[0], features.device
        y, x = ((torch.arange(side, dtype=kind, device=device) + 0.5) / side for side in (height, width))
        centre = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).view(1, -1, 2)
        valid = ((centre > BORDER) & (centre < 1 - BORDER)).all(-1)
        anchors = torch.cat([centre, torch.full_like(centre, ANCHOR_SIDE)], -1) * valid[..., None]
        inputs = self.core.enc_output[group](features * valid[..., None].to(features.dtype))
        return Proposals(self.core.enc_output_norm[group](inputs), anchors, valid)

    def head(self, group: int) -> nn.Linear:
        return self.core.enc_out_class_embed[group]

    def first(self, proposals: Proposals, positions: Tensor, group: int) -> First:
        picked, anchors = proposals.at(positions)
        boxes = _moved(anchors, self.core.enc_out_bbox_embed[group](picked))
        images, count = positions.shape
        rows = slice(group * self.core.num_queries, group * self.core.num_queries + count)
        hidden = self.core.query_feat.weight[rows].expand(images, -1, -1)
        begin = _moved(boxes.detach(), self.core.reference_point_embed.weight[rows].expand(images, -1, -1))
        return First(picked, boxes, Queries(hidden, begin))

    def decode(self, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
        decoder, hidden = self.core.decoder, queries.hidden
        whole = queries.boxes.new_ones(hidden.shape[0], 1, 2)  # no padding
        references, positions = decoder.get_reference(queries.boxes, whole)
        answers, given = [], memory.arguments()
        for i, layer in enumerate(decoder.layers):
            hidden = layer(hidden, position_embeddings=positions, reference_points=references, **given)
            if classes is None or i == len(decoder.layers) - 1:
                known = decoder.layernorm(hidden)
                logits = logits_of(self.core.class_embed, known, classes)
                answers.append(Answers(logits, _moved(queries.boxes, self.core.bbox_embed(known))))
        return answers

    def idle(self) -> list[Tensor]:
        return list(self.core.enc_out_class_embed[self.groups :].parameters())  # of a frozen network

    def stem(self) -> list[nn.Module]:
        raise UserError(
            "train.freeze_stem: the backbone of rfdetr is a vision transformer, without layers at stride 4; leave "
            "it out, or lower `train.backbone_lr`"
        )


def _moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """The centre by shares of the side, the side by a factor."""
    centre, side = boxes[..., :2], boxes[..., 2:]
    deltas = deltas.to(boxes.dtype)
    return torch.cat([deltas[..., :2] * side + centre, deltas[..., 2:].exp() * side], -1)
