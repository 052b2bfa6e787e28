"""RT-DETR (both versions) and D-FINE, layer by layer over the modules of HF transformers.

As HF's own `forward`, with the logits of some classes only where that is asked, and with D-FINE's quality apart.
Anchors and boxes of queries are logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossdet.models.backbones import stem_of
from crossdet.models.detr.boxes import inverse_sigmoid
from crossdet.models.detr.criterion import Answers, Bins
from crossdet.models.detr.distributions import bin_values, edges_to_boxes
from crossdet.models.detr.graphs.graph import First, Graph, Memory, Proposals, Queries, logits_of


class RTDetrGraph(Graph):
    def feature_maps(self, pictures: Tensor) -> list[Tensor]:
        return list(self.core.backbone.model(pictures).feature_maps)

    def memory(self, pictures: Tensor) -> Memory:
        maps = self.feature_maps(pictures)
        projected = [_steady(project(m)) for project, m in zip(self.core.encoder_input_proj, maps, strict=True)]
        levels = self.core.encoder(projected).last_hidden_state
        projections = list(self.core.decoder_input_proj)
        sources = [_steady(project(m)) for project, m in zip(projections, levels, strict=False)]
        sources += [_steady(project(levels[-1])) for project in projections[len(levels) :]]
        shapes = tuple((source.shape[-2], source.shape[-1]) for source in sources)
        return Memory(torch.cat([s.flatten(2).transpose(1, 2) for s in sources], 1), shapes)

    def proposals(self, memory: Memory, group: int) -> Proposals:
        del group
        features = memory.features
        wide = torch.promote_types(features.dtype, torch.float32)  # half a type would move the anchors
        anchors, valid = self.core.generate_anchors(memory.shapes, device=features.device, dtype=wide)
        return Proposals(self.core.enc_output(valid.to(features.dtype) * features), anchors)

    def head(self, group: int) -> nn.Linear:
        del group
        return self.core.enc_score_head

    def first(self, proposals: Proposals, positions: Tensor, group: int) -> First:
        del group
        picked, anchors = proposals.at(positions)
        boxes = self.core.enc_bbox_head(picked) + anchors
        if self.core.config.learn_initial_query:
            images, count = positions.shape
            hidden = self.core.weight_embedding.weight[:count].expand(images, -1, -1)
        else:
            hidden = picked.detach()
        return First(picked, boxes.sigmoid(), Queries(hidden, boxes.detach()))

    def decode(self, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
        decoder = self.core.decoder
        hidden, boxes = queries.hidden, queries.boxes.sigmoid()
        answers, given = [], memory.arguments()
        for i, layer in enumerate(decoder.layers):
            hidden = layer(
                hidden,
                object_queries_position_embeddings=decoder.query_pos_head(boxes),
                reference_points=boxes[:, :, None],
                encoder_attention_mask=queries.mask,
                **given,
            )
            found = (decoder.bbox_embed[i](hidden) + inverse_sigmoid(boxes)).sigmoid()
            boxes = found.detach()
            if classes is None or i == len(decoder.layers) - 1:
                answers.append(Answers(logits_of(decoder.class_embed[i], hidden, classes), found))
        return answers

    def stem(self) -> list[nn.Module]:
        body = self.core.backbone.model
        if hasattr(body, "_backbone"):  # of timm
            return stem_of(body._backbone, self.core.config.backbone_config.backbone)
        config = body.config  # HGNetV2 and ResNet: the embedder is at stride 4
        steps = getattr(config, "stage_downsample", None)
        goes_on = config.downsample_in_first_stage if steps is None else steps[0]
        return [body.embedder, *([] if goes_on else body.encoder.stages[:1])]

    def denoising(self) -> nn.Embedding | None:
        return getattr(self.core, "denoising_class_embed", None)

    def idle(self) -> list[Tensor]:
        embedding = self.denoising()
        return [] if embedding is None else [embedding.weight]  # without any object


class DFineGraph(RTDetrGraph):
    def decode(self, queries: Queries, memory: Memory, classes: Tensor | None) -> list[Answers]:
        """The first answer is the first guess, without distributions; then one per layer."""
        decoder = self.core.decoder
        hidden, boxes = queries.hidden, queries.boxes.sigmoid()
        values = bin_values(decoder.max_num_bins, decoder.up, decoder.reg_scale)
        answers: list[Answers] = []
        given = memory.arguments()
        before, edges, references = torch.zeros_like(hidden), None, boxes
        for i, layer in enumerate(decoder.layers):
            hidden = layer(
                hidden,
                position_embeddings=decoder.query_pos_head(boxes).clamp(min=-10, max=10),
                reference_points=boxes[:, :, None],
                encoder_attention_mask=queries.mask,
                **given,
            )
            if i == 0:
                guess = (decoder.pre_bbox_head(hidden) + inverse_sigmoid(boxes)).sigmoid()
                references = guess.detach()
                if classes is None:
                    answers.append(Answers(logits_of(decoder.class_embed[0], hidden, classes), guess))
            more = decoder.bbox_embed[i](hidden + before)
            edges = more if edges is None else more + edges
            found = edges_to_boxes(references, decoder.integral(edges, values), decoder.reg_scale)
            boxes, before = found.detach(), hidden.detach()
            if classes is None or i == len(decoder.layers) - 1:
                logits = logits_of(decoder.class_embed[i], hidden, classes)
                quality = decoder.lqe_layers[i](torch.zeros_like(logits[..., :1]), edges)
                answers.append(Answers(logits, found, quality, edges, references))
        return answers

    def bins(self) -> Bins | None:
        decoder = self.core.decoder
        return Bins(bin_values(decoder.max_num_bins, decoder.up, decoder.reg_scale), decoder.reg_scale)


def _steady(maps: Tensor) -> Tensor:
    """The same maps, whose gradient comes back in their own order in memory.

    The backward of batch norm is wrong on a CPU (torch 2.15) for a picture alone whose gradient was transposed, as
    that of `flatten(2).transpose(1, 2)` is.
    """
    if maps.requires_grad:
        maps.register_hook(lambda gradient: gradient.contiguous() if len(gradient) == 1 else gradient)
    return maps
