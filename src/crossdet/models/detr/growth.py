"""The rows of the classes in heads and embedding: carried into a larger union, or held fixed while others train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossdet.errors import UserError

if TYPE_CHECKING:
    from crossdet.models.detr.network import Detr

HEADS = ("core.enc_score_head.", "core.decoder.class_embed.", "core.enc_out_class_embed.", "core.class_embed.")
EMBEDDING = "core.denoising_class_embed.weight"
"""`[C + 1, D]`: the last row is that of padding."""


def has_rows(name: str) -> bool:
    """Whether a tensor has a row per class (and one more in the embedding)."""
    return name.startswith(HEADS) or name == EMBEDDING


def carry_over(network: Detr, state: Mapping[str, Tensor], classes: int) -> None:
    """Copies the weights of a detector of the first `classes` classes, bit for bit.

    The rows of further classes stay as they are, newly made; the embedding's row of padding stays last. Raises
    `UserError` for weights of another architecture.
    """
    own = network.state_dict()
    wrong = list(own.keys() ^ state.keys())
    for name in own.keys() & state.keys():
        shape = list(own[name].shape)
        if has_rows(name):
            shape[0] = classes + (name == EMBEDDING)
        if list(state[name].shape) != shape:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"the weights do not fit their own description: {len(wrong)} entries differ ({min(wrong)}, ...)"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if not has_rows(name):
                tensor.copy_(state[name])
                continue
            tensor[:classes] = state[name][:classes]
            if name == EMBEDDING:
                tensor[-1] = state[name][-1]


@torch.no_grad()
def begin_from(network: Detr, state: Mapping[str, Tensor], rows: Mapping[int, int]) -> None:
    """Copies the weights of a detector of other classes. rows: class -> the class of theirs that it begins as; the
    rows of the others stay as they are."""
    for name, tensor in network.state_dict().items():
        if not has_rows(name):
            tensor.copy_(state[name])
        elif rows:
            tensor[list(rows)] = state[name][list(rows.values())]


@torch.no_grad()
def begin_as(network: Detr, rows: Mapping[int, int]) -> None:
    """See `contract.Growable.begin_as`."""
    for name, tensor in network.state_dict().items():
        if has_rows(name):
            tensor[list(rows)] = tensor[list(rows.values())]


def freeze_old(network: Detr, classes: int) -> Callable[[], None]:
    """Trains the rows of the classes after the first `classes`, and nothing else.

    The function returned writes the old rows back: weight decay and momentum move also what has no gradient.
    """
    network.requires_grad_(False)
    rows = {name: parameter for name, parameter in network.named_parameters() if has_rows(name)}

    def new(name: str, tensor: Tensor) -> Tensor:
        return tensor[classes:-1] if name == EMBEDDING else tensor[classes:]

    def only_new(name: str, gradient: Tensor) -> Tensor:
        masked = torch.zeros_like(gradient)
        new(name, masked).copy_(new(name, gradient))
        return masked

    kept = {}
    for name, parameter in rows.items():
        parameter.requires_grad_(True)
        parameter.register_hook(partial(only_new, name))
        kept[name] = parameter.detach().clone()

    @torch.no_grad()
    def restore() -> None:
        for name, parameter in rows.items():
            old = kept[name] = kept[name].to(parameter.device)
            new(name, old).copy_(new(name, parameter.detach()))
            parameter.copy_(old)

    return restore
