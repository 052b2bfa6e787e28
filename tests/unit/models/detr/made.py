"""Random answers and targets for the tests of set-prediction detectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossdet.models.detr.architecture import build
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.growth import has_rows
from crossdet.models.detr.negatives import Rule
from crossdet.models.detr.network import Detr
from crossdet.models.detr.objects import Objects, objects_of
from crossdet.models.detr.settings import DetrSettings, DFineSettings, RFDetrSettings, RTDetrSettings
from crossdet.types import Annotations, Flag

FRAME = 100
BINS = 8


def annotations(boxes: list[list[float]], labels: list[int], flags: list[int] | None = None) -> Annotations:
    return Annotations(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(flags or [0] * len(labels), dtype=torch.uint8),
    )


def random_boxes(count: int, generator: torch.Generator, frame: float = FRAME) -> Tensor:
    """`[count, 4]` xyxy inside the frame."""
    low = torch.rand(count, 2, generator=generator) * 0.7
    size = 0.05 + torch.rand(count, 2, generator=generator) * 0.25
    return torch.cat([low, low + size], 1) * frame


def random_targets(
    counts: list[int], classes: int, generator: torch.Generator, regions: int = 0, teacher: float = 0.0
) -> list[Annotations]:
    targets = []
    for count in counts:
        boxes = random_boxes(count + regions, generator)
        labels = torch.randint(0, classes, (count + regions,), generator=generator)
        labels[count:][torch.rand(regions, generator=generator) < 0.3] = -1
        flags = torch.zeros(count + regions, dtype=torch.uint8)
        flags[count:] = int(Flag.AVOID)
        flags[torch.rand(len(flags), generator=generator) < teacher] |= int(Flag.TEACHER)
        targets.append(Annotations(boxes, labels, flags))
    return targets


def flat(targets: list[Annotations]) -> tuple[Objects, Objects]:
    return objects_of(targets, torch.full((len(targets), 2), FRAME))


def answers_near(
    objects: Objects,
    queries: int,
    classes: int,
    generator: torch.Generator,
    bins: int | None = None,
    quality: bool = False,
) -> Answers:
    """Random answers, some of whose boxes lie on the objects. All of them need a gradient."""
    images = len(objects.counts)
    boxes = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.1
    for image, (count, first) in enumerate(zip(objects.counts, objects.first, strict=True)):
        for query in range(0, queries if count else 0, 2):
            shift = (torch.rand(4, generator=generator) - 0.5) * 0.02
            boxes[image, query] = objects.boxes[first + query // 2 % count] + shift
    shape = (images, queries)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.double().requires_grad_()

    return Answers(
        leaf(torch.randn(*shape, classes, generator=generator) * 2),
        leaf(boxes.clamp(0.01, 0.99)),
        leaf(torch.randn(*shape, 1, generator=generator)) if quality else None,
        None if bins is None else leaf(torch.randn(*shape, 4 * (bins + 1), generator=generator)),
        None if bins is None else (boxes * 0.9 + 0.05).double(),
    )


def all_trusted(objects: Objects, classes: int, regions: Objects | None = None) -> Rule:
    nothing = flat([annotations([], []) for _ in objects.counts])[1]
    return Rule(objects, regions or nothing, torch.ones(len(objects.counts), classes, dtype=torch.bool))


# ------------------------------------------------------------------------------------ whole networks, tiny

SMALL: dict[str, Any] = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_n_points": 2,
    "hidden_expansion": 0.5,
}
HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "embedding_size": 8,
    "hidden_sizes": [16] * 4,
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [16] * 4,
    "stage_num_blocks": [1] * 4,
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3] * 4,
    "stage_numb_of_layers": [1] * 4,
    "out_indices": [2, 3, 4],
    "use_learnable_affine_block": True,
}
RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "depths": [1] * 4,
    "hidden_sizes": [8, 12, 16, 20],
    "layer_type": "basic",
    "out_indices": [2, 3, 4],
}
D_FINE = {**SMALL, "backbone_config": HGNET, "depth_mult": 0.34, "max_num_bins": BINS}
RT_DETR = {**SMALL, "backbone_config": RESNET, "encoder_in_channels": [12, 16, 20]}
DINOV2 = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 48,
    "patch_size": 8,
    "num_windows": 2,
    "out_features": ["stage1", "stage3"],  # one layer is behind the last
}
RF_DETR = {
    "backbone_config": DINOV2,
    "d_model": 16,
    "decoder_ffn_dim": 16,
    "decoder_layers": 3,
    "decoder_n_points": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "c2f_num_blocks": 1,
    "group_detr": 3,
    "dropout": 0.0,
}
TINY_SETTINGS: dict[str, DetrSettings] = {
    "dfine": DFineSettings(config=D_FINE, queries=20, denoising=8),
    "rtdetr v1": RTDetrSettings(config=RT_DETR, queries=20, denoising=8, version=1),
    "rtdetr v2": RTDetrSettings(config=RT_DETR, queries=20, denoising=8, version=2),
    "rfdetr": RFDetrSettings(config=RF_DETR, queries=20, square=64),
}


def tiny(name: str, classes: int = 4, seed: int = 0, **changes: Any) -> Detr:
    torch.manual_seed(seed)
    return build(TINY_SETTINGS[name].model_copy(update=changes), classes, None)


def class_tensors(network: Detr) -> list[str]:
    """Names of the tensors with a row per class (and one more in the embedding)."""
    return [name for name in network.state_dict() if has_rows(name)]


def hf_labels(objects: Objects) -> list[dict[str, Tensor]]:
    """As networks of HF take them."""
    parts = zip(objects.labels.split(objects.counts), objects.boxes.split(objects.counts), strict=True)
    return [{"class_labels": labels, "boxes": boxes} for labels, boxes in parts]


def stirred(network: Detr, by: float = 0.3) -> Detr:
    """The last layers of boxes begin as zeros, through which nothing flows. By 0.3 some of D-FINE stick out."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in network.core.parameters() if p.requires_grad):
            parameter += by * torch.randn_like(parameter)
    return network
