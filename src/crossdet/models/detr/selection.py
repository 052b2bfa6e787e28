"""Which positions of the encoder become queries: those with the highest score of the classes that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdet.types import TrustGroup

Selection = Literal["trusted", "union", "split"]


def best_scores(memory: Tensor, head: nn.Linear, groups: Sequence[TrustGroup]) -> Tensor:
    """`[B, S]` highest logit among each image's classes, without gradient.

    memory: `[B, S, D]`. groups: images with the same classes. Only their rows of the head are computed, so the cost
    is that of an image's own classes, however many the union has.
    """
    with torch.no_grad():
        scores = memory.new_full(memory.shape[:2], -torch.inf)
        for images, classes in groups:
            if len(classes):
                rows = torch.tensor(images).to(memory.device, non_blocking=True)
                scores[rows] = rows_of(head, memory[rows], classes).amax(-1).to(scores.dtype)
        return scores


def rows_of(head: nn.Linear, inputs: Tensor, classes: Tensor) -> Tensor:
    """`[..., K]` logits of some classes, rising and each once."""
    if len(classes) == head.out_features:
        return F.linear(inputs, head.weight, head.bias)
    return F.linear(inputs, head.weight[classes], None if head.bias is None else head.bias[classes])


def chosen(
    memory: Tensor,
    head: nn.Linear,
    groups: Sequence[TrustGroup],
    queries: int,
    how: Selection,
    valid: Tensor | None = None,
    begin: int = 0,
) -> Tensor:
    """`[B, N]` positions for training. groups: of the images' own classes, see `objects.own_classes`.

    trusted: by the image's own classes; an image without any goes by all. union: by all classes. split: half of the
    queries by the image's own, the rest by all. valid: `[1, S]` positions that come first, whatever their score.
    begin: all are the classes from this one on (of a frozen extension, whose older ones have queries of their own).
    """
    queries = min(queries, memory.shape[1])
    every = torch.arange(begin, head.out_features, device=memory.device)
    if how == "trusted":
        return best(best_scores(memory, head, _or_all(groups, every)), queries, valid)
    union = best_scores(memory, head, [TrustGroup(tuple(range(len(memory))), every)])
    if how == "union":
        return best(union, queries, valid)
    first = best(best_scores(memory, head, _or_all(groups, every)), queries // 2, valid)
    rest = best(union.scatter(1, first, -torch.inf), queries - queries // 2, valid)
    return torch.cat([first, rest], 1)


def best(scores: Tensor, queries: int, valid: Tensor | None) -> Tensor:
    """`[B, N]` positions of the highest scores `[B, S]`; those that are not valid come last."""
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    return scores.topk(queries, dim=1).indices


def _or_all(groups: Sequence[TrustGroup], every: Tensor) -> list[TrustGroup]:
    return [group if len(group.classes) else TrustGroup(group.images, every) for group in groups]
