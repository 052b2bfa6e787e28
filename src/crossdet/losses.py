"""Losses as pure functions on tensors: no dataset name, no config, no model.

The dataset-aware focal loss is Yao et al. (arXiv 2001.04621) sec. 3.3, eq. 3-4 and fig. 4; the focal loss itself
is Lin et al. (arXiv 1708.02002).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossdet.types import BACKGROUND, IGNORE

CHUNK = 1 << 17
"""Logits whose focal terms are computed at once on a CPU: a few such tensors fit into its cache."""


def dataset_aware_focal_loss(
    logits: Tensor,
    labels: Tensor,
    trusted: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    foreground_negatives: bool | Tensor = True,
    overlap: Tensor | None = None,
    avoid: Tensor | None = None,
    negative_weight: Tensor | None = None,
    compiled: bool = False,
    background_weight: Tensor | None = None,
) -> Tensor:
    """Sum of the dataset-aware focal loss over images, positions and classes.

    Of the pair (position, class c), with p = sigmoid(logit):

    - position labelled c: `-alpha (1 - p)^gamma log(p)`;
    - background: `-(1 - alpha) p^gamma log(1 - p)` where the image trusts c, else exactly zero, the gradient too;
    - position labelled g != c: a negative for every c (in the paper: an un-shared negative example), except where
      `overlap[g, c]`. With `foreground_negatives=False` only for the trusted c, as background is;
    - position labelled IGNORE: nothing.

    "Exactly zero" holds for finite logits: an infinite or NaN one gives NaN (0 x inf) also where nothing is
    trusted, so a broken forward pass is not hidden.

    Args:
        logits: `[B, N, C]` floating point, finite. Half types are computed in float32.
        labels: `[B, N]` int64, class id, `BACKGROUND` (-1) or `IGNORE` (-2).
        trusted: `[B, C]` bool; all true gives the ordinary focal loss (naive concatenation). Or `[B, N, C]`, by
            position: in a mosaic trust belongs to a place.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: focusing exponent.
        foreground_negatives: labelled objects are negatives also for classes that their image does not trust.
            `[B, N]` bool: at which positions, such as those that certainly show the object and nothing else.
        overlap: `[C, C]` bool: an object of one class is no negative for the other.
        avoid: `[P, 3]` int64 (image, position, class): the pair is no negative, but may be positive; -1 = no class.
        negative_weight: `[C]` by class or `[B, 1, C]` by image and class, multiplies the negative terms.
        compiled: the innermost part by `torch.compile`, for long trainings; needs a C++ compiler or Triton (GPU).
        background_weight: `[B, C]`, multiplies the negative terms of background positions, and of objects that are
            negatives for trusted classes only: how far it is trusted.

    Returns:
        Scalar: the sum, not divided by the number of positives; float64 for float64 logits, else float32.

    Raises:
        ValueError: shapes or types do not fit together; on a CPU also an id out of range in `labels` or `avoid`.
            Elsewhere a check would wait for the device: there it is a device-side assertion or a wrong index.
    """
    return image_focal_losses(
        logits,
        labels,
        trusted,
        alpha,
        gamma,
        foreground_negatives,
        overlap,
        avoid,
        negative_weight,
        compiled,
        background_weight,
    ).sum()


def image_focal_losses(
    logits: Tensor,
    labels: Tensor,
    trusted: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    foreground_negatives: bool | Tensor = True,
    overlap: Tensor | None = None,
    avoid: Tensor | None = None,
    negative_weight: Tensor | None = None,
    compiled: bool = False,
    background_weight: Tensor | None = None,
) -> Tensor:
    """`[B]`: `dataset_aware_focal_loss` as one sum per image, so that the loss of each dataset can be logged."""
    _check_shapes(logits, labels, trusted, overlap, avoid, negative_weight, background_weight)
    _check_positions(foreground_negatives, labels)
    _check_ids_on_cpu(logits, labels, avoid)
    # Autocast would run the sums below, which are matrix products, in half precision.
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        by_position = trusted.dim() == 3
        weight = logits.new_ones(len(logits), logits.shape[2]) if by_position else trusted.to(logits.dtype)
        if negative_weight is not None:
            factor = negative_weight.to(logits.dtype).broadcast_to(len(logits), 1, logits.shape[2])[:, 0]
            weight = weight * factor
        if background_weight is not None:
            weight = weight * background_weight.to(weight.dtype)
        image, position = (labels >= 0).nonzero(as_tuple=True)
        own = labels[image, position]
        everywhere = _at(foreground_negatives, image, position)
        negative = foreground_weights(
            trusted, labels, image, position, everywhere, overlap, avoid, background_weight
        ).to(logits.dtype)
        if negative_weight is not None:
            negative = negative * factor[image]
        # the terms of a logit of -1e4, a probability of zero, and their slope are zero; objects keep their logits
        seen = logits.masked_fill(~trusted & (labels < 0)[:, :, None], -1e4) if by_position else logits
        sums, terms = _FocalSums.apply(
            seen, labels == BACKGROUND, avoid, (image, position, own, negative), alpha, gamma, compiled
        )
        per_image: Tensor = (sums * weight).sum(1).index_add(0, image, terms)
        return per_image


def negative_weights(
    labels: Tensor,
    trusted: Tensor,
    overlap: Tensor | None = None,
    avoid: Tensor | None = None,
    foreground_negatives: bool | Tensor = True,
    background_weight: Tensor | None = None,
) -> Tensor:
    """The weight of every negative term: what makes a loss over (position, class) dataset-aware.

    Any class loss of the kind of focal loss or binary cross-entropy, on anchors, points or queries, becomes
    dataset-aware where the term of "position n does not show class c" is multiplied by this tensor. It is 1 where
    the term counts, and 0 where the image's labels cannot tell: at the background of an image that does not trust
    the class. `dataset_aware_focal_loss` is the focal loss with these weights, without holding them.

    Args:
        labels: `[B, N]` int64, class id of the object at the position, `BACKGROUND` (-1) or `IGNORE` (-2).
        trusted, overlap, avoid, foreground_negatives, background_weight: see `dataset_aware_focal_loss`.

    Returns:
        `[B, N, C]` float32 (float64 if `background_weight` is). At IGNORE and at a positive's own class it is 0.

    Raises:
        ValueError: as `dataset_aware_focal_loss`.
    """
    images, positions = labels.shape
    classes = trusted.shape[-1]
    dtype = torch.float32 if background_weight is None else background_weight.dtype
    stand_in = torch.empty((), dtype=dtype, device=labels.device).expand(images, positions, classes)
    _check_shapes(stand_in, labels, trusted, overlap, avoid, None, background_weight)
    _check_positions(foreground_negatives, labels)
    _check_ids_on_cpu(stand_in, labels, avoid)
    image, position = (labels >= 0).nonzero(as_tuple=True)
    weights = weights_of(labels, trusted, (image, position), overlap, foreground_negatives, background_weight)
    if avoid is not None and len(avoid):
        image, position, cls = avoid.unbind(1)
        whole, one = cls < 0, cls >= 0
        weights[image[whole], position[whole]] = 0
        weights[image[one], position[one], cls[one]] = 0
    return weights


def weights_of(
    labels: Tensor,
    trusted: Tensor,
    shown: tuple[Tensor, Tensor],
    overlap: Tensor | None,
    foreground_negatives: bool | Tensor,
    background_weight: Tensor | None,
) -> Tensor:
    """`negative_weights` without `avoid` and checks, where it is known which positions show an object, so that
    nothing waits for the device. shown: `[F]` images and `[F]` positions whose labels are classes."""
    dtype = torch.float32 if background_weight is None else background_weight.dtype
    weights = (labels == BACKGROUND)[:, :, None] * (trusted if trusted.dim() == 3 else trusted[:, None]).to(dtype)
    if background_weight is not None:
        weights = weights * background_weight[:, None]
    image, position = shown
    everywhere = _at(foreground_negatives, image, position)
    negative = foreground_weights(trusted, labels, image, position, everywhere, overlap, None, background_weight)
    weights[image, position] = negative.to(dtype).scatter(1, labels[image, position][:, None], 0)
    return weights


def _at(foreground_negatives: bool | Tensor, image: Tensor, position: Tensor) -> bool | Tensor:
    return foreground_negatives if isinstance(foreground_negatives, bool) else foreground_negatives[image, position]


def background_focal_sums(
    logits: Tensor, background: Tensor, avoid: Tensor | None, alpha: float, gamma: float, compiled: bool = False
) -> Tensor:
    """`[B, C]`: the negative focal terms of the background positions, summed, before trust is applied.

    logits: `[B, N, C]` float32 or float64. background: `[B, N]` bool. avoid, compiled: as of
    `dataset_aware_focal_loss`; rows of `avoid` with image -1 mean nothing.
    """
    sums: Tensor = _FocalSums.apply(logits, background, avoid, None, alpha, gamma, compiled)[0]
    return sums


class _FocalSums(torch.autograd.Function):
    """Sums `[B, C]` over the background positions of `(1 - alpha) p^gamma softplus(logit)`, and terms `[F]` of the
    foreground positions, with the gradient computed along.

    Written out because the step is bound by memory: autograd keeps five tensors of the logits' size and reads
    each several times; here the terms of a few positions stay in the cache, and one tensor, the gradient, is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        background: Tensor,
        avoid: Tensor | None,
        foreground: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        alpha: float,
        gamma: float,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        masked, weights = _without_avoided(logits, background, avoid)
        sums = _background_sums(masked, weights, slope, alpha, gamma, compiled)
        if foreground is None:
            image, position, terms, fore_slope = None, None, logits.new_zeros(0), None
        else:
            image, position, own, negative = foreground
            terms, fore_slope = foreground_focal_parts(
                logits[image, position], own, negative, alpha, gamma, slope is not None
            )
        if slope is not None:
            ctx.save_for_backward(slope, image, position, fore_slope)
        return sums, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        slope, image, position, fore_slope = ctx.saved_tensors
        # Fresh memory of this size costs as much as the loss, and a graph that is not kept needs `slope` no more.
        grad = slope * grad_sums[:, None] if _graph_is_kept() else slope.mul_(grad_sums[:, None])
        if image is not None:  # background and foreground are different positions
            grad[image, position] = fore_slope * grad_terms[:, None]
        return grad, None, None, None, None, None, None


def _graph_is_kept() -> bool:
    """Whether the backward pass that runs was asked to retain the graph; true where torch does not tell."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


def _without_avoided(logits: Tensor, background: Tensor, avoid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and 0/1 weights of the positions with which an avoided pair has term and slope zero, exactly.

    Rows of `avoid` with image -1 mean nothing; they and the rows of the other kind are written into one entry too
    many, since picking rows out would wait for the device.
    """
    weights = background.to(logits.dtype)
    if avoid is None or not len(avoid):
        return logits, weights
    image, position, cls = avoid.unbind(1)
    images, positions, classes = logits.shape
    place = image * positions + position
    weights = with_entries(weights, torch.where((image >= 0) & (cls < 0), place, images * positions), 0.0)
    single = torch.where((image >= 0) & (cls >= 0), place * classes + cls, logits.numel())
    return with_entries(logits, single, -1e4), weights  # a probability of zero


def with_entries(tensor: Tensor, places: Tensor, value: float) -> Tensor:
    """A copy of the tensor with some entries replaced; a place behind the last entry is lost."""
    longer = tensor.new_empty(tensor.numel() + 1)
    copy = longer[:-1].view(tensor.shape).copy_(tensor)
    longer.index_fill_(0, places, value)
    return copy


def _background_sums(
    logits: Tensor, background: Tensor, slope: Tensor | None, alpha: float, gamma: float, compiled: bool
) -> Tensor:
    """The sums; writes the derivatives by the logits into `slope`."""
    images, positions, classes = logits.shape
    sums = logits.new_zeros(images, 1, classes)
    add_piece = _compiled_piece() if compiled else _add_focal_piece
    # on other devices every small piece would be a kernel launch
    step = max(1, CHUNK // max(1, images * classes)) if logits.device.type == "cpu" else max(1, positions)
    for start in range(0, positions, step):
        piece = slice(start, start + step)
        weight = background[:, piece, None] * (1 - alpha)
        add_piece(logits[:, piece], weight, sums, None if slope is None else slope[:, piece], gamma)
    return sums.squeeze(1)


def _add_focal_piece(logits: Tensor, weight: Tensor, sums: Tensor, slope: Tensor | None, gamma: float) -> None:
    """Adds `weight p^gamma softplus(logit)` of some positions to `sums [B, 1, C]`; writes the derivative.

    logits, slope: `[B, n, C]`. weight: `[B, n, 1]`.
    """
    power, p, soft = _focal_parts(logits, gamma)
    sums.baddbmm_(weight.transpose(1, 2), power * soft)
    if slope is not None:
        # d(p^gamma softplus) = p^gamma (gamma (1 - p) softplus + p)
        soft.mul_(gamma).addcmul_(soft, p, value=-1).add_(p)
        torch.mul(power.mul_(weight), soft, out=slope)


@cache
def _compiled_piece() -> Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None]:
    """`_add_focal_piece` fused into one pass over the logits, with one exponential and one logarithm each."""

    def add_focal_piece(logits: Tensor, weight: Tensor, sums: Tensor, slope: Tensor | None, gamma: float) -> None:
        e = torch.exp(-logits.abs())  # finite for every logit
        p = torch.where(logits >= 0, 1.0, e) / (1 + e)
        soft = torch.relu(logits) + torch.log1p(e)
        power = (p * p if gamma == 2 else (gamma * (torch.clamp(logits, max=0) - torch.log1p(e))).exp()) * weight
        sums.add_((power * soft).sum(1, keepdim=True))
        if slope is not None:
            slope.copy_(power * (gamma * (1 - p) * soft + p))

    return torch.compile(add_focal_piece, dynamic=True)


def background_focal_parts(
    logits: Tensor, alpha: float, gamma: float, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Negative focal terms `(1 - alpha) p^gamma softplus(logit)` of each logit, and their derivatives. Not for
    autograd.

    logits: float32 or float64, any shape. compiled: in one pass, by `torch.compile`.
    """
    terms, slopes = (_compiled_parts() if compiled else _background_parts)(logits, alpha, gamma)
    return terms, slopes


def _background_parts(logits: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    power, p, soft = _focal_parts(logits, gamma)
    power = power * (1 - alpha)
    # d(p^gamma softplus) = p^gamma (gamma (1 - p) softplus + p)
    return power * soft, (gamma * (soft - soft * p) + p) * power


@cache
def _compiled_parts() -> Callable[[Tensor, float, float], tuple[Tensor, Tensor]]:
    return torch.compile(_background_parts, dynamic=True)


def foreground_weights(
    trusted: Tensor,
    labels: Tensor,
    image: Tensor,
    position: Tensor,
    everywhere: bool | Tensor,
    overlap: Tensor | None,
    avoid: Tensor | None,
    background_weight: Tensor | None = None,
    local: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """`[F, C]`: how far each foreground position is a negative for each class, its own class not yet taken out.

    trusted: `[B, C]` or `[B, N, C]`. labels: `[B, N]`. image, position: `[F]` where the labels are classes.
    everywhere: of all or `[F]`, negatives for all classes; the others as background is. background_weight:
    `[B, C]`. local: (image, position) -> `[F, C]` bool, where `trusted` holds.
    """
    allowed = foreground_negatives_of(trusted, labels, image, position, everywhere, overlap, avoid)
    if everywhere is True:
        return allowed
    own = allowed.new_zeros(len(image)) if everywhere is False else everywhere
    if local is not None:
        allowed = allowed & (local(image, position) | own[:, None])
    if background_weight is None:
        return allowed
    return allowed * background_weight[image].masked_fill(own[:, None], 1)


def foreground_negatives_of(
    trusted: Tensor,
    labels: Tensor,
    image: Tensor,
    position: Tensor,
    everywhere: bool | Tensor,
    overlap: Tensor | None,
    avoid: Tensor | None,
) -> Tensor:
    """The same as `[F, C]` bool, without weights and `local`."""
    if everywhere is True:
        allowed = trusted.new_ones(len(image), trusted.shape[-1])
    else:
        allowed = trusted[image] if trusted.dim() == 2 else trusted[image, position]
        if everywhere is not False:
            allowed = allowed | everywhere[:, None]
    if overlap is not None:
        allowed = allowed & ~overlap[labels[image, position]]
    if avoid is not None and len(avoid):
        row_of = labels.new_full(labels.shape, -1)
        row_of[image, position] = torch.arange(len(image), device=labels.device)
        row, cls = row_of[avoid[:, 0], avoid[:, 1]], avoid[:, 2]
        # one row too many takes what speaks of no foreground position or is of the other kind
        longer = torch.cat([allowed, allowed.new_zeros(1, allowed.shape[1])])
        spare = len(image)
        longer.index_fill_(0, torch.where((row >= 0) & (cls < 0), row, spare), False)
        longer[torch.where((row >= 0) & (cls >= 0), row, spare), cls.clamp(min=0)] = False
        allowed = longer[:-1]
    return allowed


def foreground_focal_parts(
    logits: Tensor, own: Tensor, negative: Tensor, alpha: float, gamma: float, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """`[F]`: positive term of each foreground position's own class plus its negative terms; and, if asked, their
    derivatives `[F, C]` by the logits (else anything). Not for autograd.

    logits: `[F, C]`. own: `[F]` int64. negative: `[F, C]` weights of the negative terms; that of `own` is ignored.
    """
    own = own[:, None]
    weight = negative.scatter(1, own, 0.0) * (1 - alpha)
    power, p, soft = _focal_parts(logits, gamma)
    own_power, q, own_soft = _focal_parts(-logits.gather(1, own), gamma)
    terms = (weight * power * soft).sum(1) + alpha * (own_power * own_soft).squeeze(1)
    if not with_slope:
        return terms, logits
    # d(p^gamma softplus) = p^gamma (gamma (1 - p) softplus + p); of a positive the same in -logit
    slope = soft.mul_(gamma * (1 - p)).add_(p).mul_(power).mul_(weight)
    positive = -alpha * own_power * (gamma * (1 - q) * own_soft + q)
    return terms, slope.scatter_(1, own, positive)


def _focal_parts(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """p^gamma, p and softplus(logit) = -log(1 - p), which is finite for every finite logit."""
    p = torch.sigmoid(logits)
    soft = F.softplus(logits)
    return p * p if gamma == 2 else (gamma * F.logsigmoid(logits)).exp(), p, soft


def _check_shapes(
    logits: Tensor,
    labels: Tensor,
    trusted: Tensor,
    overlap: Tensor | None,
    avoid: Tensor | None,
    negative_weight: Tensor | None,
    background_weight: Tensor | None,
) -> None:
    if logits.dim() != 3 or not logits.is_floating_point():
        raise ValueError(f"logits: expected floating point [B, N, C], got {_shown(logits)}")
    images, positions, classes = logits.shape
    if labels.shape != (images, positions) or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 [{images}, {positions}] like the logits, got {_shown(labels)}")
    shapes = ((images, classes), (images, positions, classes))
    if tuple(trusted.shape) not in shapes or trusted.dtype != torch.bool:
        wanted_shape = f"[{images}, {classes}] or [{images}, {positions}, {classes}]"
        raise ValueError(f"trusted: expected bool {wanted_shape}, got {_shown(trusted)}")
    if overlap is not None and (overlap.shape != (classes, classes) or overlap.dtype != torch.bool):
        raise ValueError(f"overlap: expected bool [{classes}, {classes}], got {_shown(overlap)}")
    if avoid is not None and (avoid.dim() != 2 or avoid.shape[1] != 3 or avoid.dtype != torch.int64):
        raise ValueError(f"avoid: expected int64 [P, 3] rows (image, position, class), got {_shown(avoid)}")
    if negative_weight is not None:
        wanted, given = (images, 1, classes), negative_weight.shape
        fits = all(n in (1, want) for n, want in zip(reversed(given), reversed(wanted), strict=False))
        if len(given) > 3 or not fits:
            hint = "; write negative_weight[:, None]" if given == (images, classes) else ""
            raise ValueError(
                f"negative_weight: expected a shape broadcastable to [{images}, 1, {classes}], "
                f"got {list(given)}{hint}"
            )
    if background_weight is not None and (
        background_weight.shape != (images, classes) or not background_weight.is_floating_point()
    ):
        raise ValueError(
            f"background_weight: expected floating point [{images}, {classes}], got {_shown(background_weight)}"
        )


def _check_positions(foreground_negatives: bool | Tensor, labels: Tensor) -> None:
    if isinstance(foreground_negatives, bool):
        return
    if foreground_negatives.shape != labels.shape or foreground_negatives.dtype != torch.bool:
        raise ValueError(
            f"foreground_negatives: expected true, false or bool {list(labels.shape)}, "
            f"got {_shown(foreground_negatives)}"
        )


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _check_ids_on_cpu(logits: Tensor, labels: Tensor, avoid: Tensor | None) -> None:
    """Not on other devices: looking at values there would wait for all work queued so far."""
    images, positions, classes = logits.shape
    if labels.device.type == "cpu" and labels.numel():
        low, high = (int(v) for v in labels.aminmax())
        if low < IGNORE or high >= classes:
            bad = low if low < IGNORE else high
            raise ValueError(
                f"labels: {bad} is no class id (0 to {classes - 1}), BACKGROUND ({BACKGROUND}) or IGNORE ({IGNORE})"
            )
    if avoid is not None and avoid.device.type == "cpu" and len(avoid):
        limits = (("image", 0, images), ("position", 0, positions), ("class", -1, classes))
        lows, highs = avoid.amin(0).tolist(), avoid.amax(0).tolist()
        for (name, least, end), low, high in zip(limits, lows, highs, strict=True):
            if low < least or high >= end:
                bad = low if low < least else high
                raise ValueError(f"avoid: {name} {bad} is not in {least} to {end - 1}")


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1 / 9) -> Tensor:
    """`[F]`: smooth L1 (Girshick, Fast R-CNN, with the corner at `beta`), summed over the last dimension.

    prediction, target: `[F, 4]` box deltas. `beta` 0 is plain L1.
    """
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).sum(-1)
