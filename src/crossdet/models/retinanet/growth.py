"""The rows of the class subnet's last layer: carried into a larger union, or held fixed while others train.

The layer has A * C outputs, class fastest (A anchor shapes, C classes): a larger C interleaves old and new
rows, so rows are addressed by (shape, class) everywhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossdet.errors import UserError

if TYPE_CHECKING:
    from crossdet.models.retinanet.network import RetinaNet

WEIGHT, BIAS = "class_subnet.predict.weight", "class_subnet.predict.bias"
ADAPTERS = ("class_subnet.adapters.", "box_adapters.")


def carry_over(model: RetinaNet, state: Mapping[str, Tensor], classes: int) -> None:
    """Copies the weights of a detector of the first `classes` classes into `model`, bit for bit.

    The rows of further classes stay as they are, newly made, with the prior as bias; so do adapters that the
    weights do not have, and the old rows have zeros at their channels.

    Raises:
        UserError: the weights are of another architecture.
    """
    own = model.state_dict()
    shared = {
        name: tensor
        for name, tensor in own.items()
        if name not in (WEIGHT, BIAS) and (name in state or not name.startswith(ADAPTERS))
    }
    wrong = [name for name, tensor in shared.items() if name not in state or state[name].shape != tensor.shape]
    wrong += [name for name in state if name not in own]
    shapes = model.num_anchors
    wrong += [name for name in (WEIGHT, BIAS) if name not in state or len(state[name]) != shapes * classes]
    if wrong:
        raise UserError(
            f"the weights do not fit their own description: {len(wrong)} entries differ ({wrong[0]}, ...)"
        )
    with torch.no_grad():
        for name, tensor in shared.items():
            tensor.copy_(state[name])
        by_class(own[BIAS], shapes)[:, :classes] = by_class(state[BIAS], shapes)
        rows, known = by_class(own[WEIGHT], shapes)[:, :classes], by_class(state[WEIGHT], shapes)
        rows[:, :, : known.shape[2]] = known
        rows[:, :, known.shape[2] :] = 0


@torch.no_grad()
def begin_as(model: RetinaNet, rows: Mapping[int, int]) -> None:
    """See `contract.Growable.begin_as`."""
    own = model.state_dict()
    for name in (WEIGHT, BIAS):
        of_classes = by_class(own[name], model.num_anchors)
        of_classes[:, list(rows)] = of_classes[:, list(rows.values())]


def by_class(rows: Tensor, shapes: int) -> Tensor:
    """`[A, C, ...]` view of `[A * C, ...]` rows."""
    return rows.unflatten(0, (shapes, len(rows) // shapes))


def freeze_old(model: RetinaNet, classes: int) -> Callable[[], None]:
    """Freezes everything but the rows of the classes after the first `classes`, and their adapter if they have
    one.

    Of the class subnet's last layer the old rows get no gradient, so that they take no part in its norm. The
    function returned is to be called after every optimiser step: it writes the old rows back bit for bit,
    since weight decay and momentum move also what has no gradient.
    """
    shapes = model.num_anchors
    predict, adapters = model.class_subnet.predict, model.settings.adapters
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if adapters and adapters[-1].first == classes:
        model.class_subnet.adapters[-1].requires_grad_(True)
        model.box_adapters[-1].requires_grad_(True)

    def only_new(gradient: Tensor) -> Tensor:
        masked = gradient.clone()
        by_class(masked, shapes)[:, :classes] = 0
        return masked

    kept = {}
    for name in ("weight", "bias"):
        rows = getattr(predict, name)
        kept[name] = by_class(rows.detach(), shapes)[:, :classes].clone()
        rows.requires_grad_(True)
        rows.register_hook(only_new)

    @torch.no_grad()
    def restore() -> None:
        for name in kept:
            rows = by_class(getattr(predict, name).detach(), shapes)
            kept[name] = kept[name].to(rows.device)
            rows[:, :classes] = kept[name]

    return restore
