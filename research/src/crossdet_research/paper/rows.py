"""The paper's experiments as data: datasets, anchors, trainings, tables 1-6 and figure 5, contradictions.

Source: Yao et al., "Cross-dataset Training for Class Increasing Object Detection" (arXiv 2001.04621), sec. 4.
A *training* is what is trained; a *row* of a table points at a training and holds the numbers that the paper
prints for it, in percent. Several rows share a training: table 1's COCO+FACE is table 3's F+C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# ------------------------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Dataset:
    """key: its name in the configs. images: training images of the official download.

    full, mini, photos: the dataset's section of the config at each scale, all paths below the data folder.
    `mini` is generated; `photos` replaces it in table 5 where these folders exist.
    """

    key: str
    title: str
    images: int
    full: Mapping[str, Any]
    mini: Mapping[str, Any]
    photos: Mapping[str, Any] = field(default_factory=dict)


VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle",
    "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""COCO's names of the VOC classes that are called otherwise there; all 20 are among COCO's 80."""
GENERATED_VOC_CLASSES = ("car", "dog", "sign")

DATASETS = {
    "FACE": Dataset(
        key="faces",
        title="WIDER FACE",
        images=12_880,
        full={
            "format": "wider_face",
            "train": {
                "images": "wider_face/WIDER_train/images",
                "annotations": "wider_face/wider_face_split/wider_face_train_bbx_gt.txt",
            },
            "val": {
                "images": "wider_face/WIDER_val/images",
                "annotations": "wider_face/wider_face_split/wider_face_val_bbx_gt.txt",
                "lists": "wider_face/eval_tools/ground_truth",
            },
            "protocol": "wider_face",
        },
        mini={
            "format": "wider_face",
            "train": {
                "images": "demo_world/faces/images",
                "annotations": "demo_world/faces/wider_face_train_bbx_gt.txt",
            },
            "val": {
                "images": "demo_world/faces/images",
                "annotations": "demo_world/faces/wider_face_val_bbx_gt.txt",
                "lists": "demo_world/faces/ground_truth",
            },
            "protocol": "wider_face",
        },
    ),
    "PED": Dataset(
        key="peds",
        title="WIDER Pedestrian (2018)",
        images=11_500,
        full={
            "format": "wider_pedestrian",
            "edition": 2018,
            "train": {
                "images": "wider_pedestrian/train",
                "annotations": "wider_pedestrian/train_annotations.txt",
                "ignore": "wider_pedestrian/pedestrian_ignore_part_train.txt",
            },
            "val": {
                "images": "wider_pedestrian/val",
                "annotations": "wider_pedestrian/val_annotations.txt",
                "ignore": "wider_pedestrian/pedestrian_ignore_part_val.txt",
            },
            "protocol": "wider_pedestrian",
        },
        mini={
            "format": "wider_pedestrian",
            "edition": 2018,
            "train": {
                "images": "demo_world/peds/images/train",
                "annotations": "demo_world/peds/train_annotations.txt",
                "ignore": "demo_world/peds/pedestrian_ignore_part_train.txt",
            },
            "val": {
                "images": "demo_world/peds/images/val",
                "annotations": "demo_world/peds/val_annotations.txt",
                "ignore": "demo_world/peds/pedestrian_ignore_part_val.txt",
            },
            "protocol": "wider_pedestrian",
        },
    ),
    "COCO": Dataset(
        key="coco",
        title="COCO 2017",
        images=118_287,
        full={
            "format": "coco",
            "train": {"images": "coco/train2017", "annotations": "coco/annotations/instances_train2017.json"},
            "val": {"images": "coco/val2017", "annotations": "coco/annotations/instances_val2017.json"},
            "protocol": "coco",
        },
        mini={
            "format": "coco",
            "train": {
                "images": "demo_world/objects/images/train",
                "annotations": "demo_world/objects/annotations/instances_train.json",
            },
            "val": {
                "images": "demo_world/objects/images/val",
                "annotations": "demo_world/objects/annotations/instances_val.json",
            },
            "protocol": "coco",
        },
        photos={
            "format": "coco",
            "train": {"images": "coco/images/train", "annotations": "coco/annotations/instances_train.json"},
            "val": {"images": "coco/images/val", "annotations": "coco/annotations/instances_val.json"},
            "protocol": "coco",
        },
    ),
    "VOC": Dataset(
        key="voc",
        title="PASCAL VOC 2007 + 2012",
        images=16_551,
        full={
            "format": "voc",
            "classes": list(VOC_CLASSES),
            "train": {
                "images": ["VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2012/JPEGImages"],
                "annotations": ["VOCdevkit/VOC2007/Annotations", "VOCdevkit/VOC2012/Annotations"],
                "image_set": ["trainval", "trainval"],
            },
            "val": {
                "images": "VOCdevkit/VOC2007/JPEGImages",
                "annotations": "VOCdevkit/VOC2007/Annotations",
                "image_set": "test",
            },
            "protocol": "voc",
        },
        mini={
            "format": "voc",
            "classes": list(GENERATED_VOC_CLASSES),
            "train": {"images": "demo_voc/JPEGImages", "annotations": "demo_voc/Annotations", "image_set": "train"},
            "val": {"images": "demo_voc/JPEGImages", "annotations": "demo_voc/Annotations", "image_set": "val"},
            "protocol": "voc",
        },
        photos={
            "format": "voc",
            "train": {
                "images": "voc_animals/JPEGImages",
                "annotations": "voc_animals/Annotations",
                "image_set": "train",
            },
            "val": {
                "images": "voc_animals/JPEGImages",
                "annotations": "voc_animals/Annotations",
                "image_set": "val",
            },
            "protocol": "voc",
        },
    ),
}

# ------------------------------------------------------------------------------------------- recipes

BACKBONES = {"resnet50": "ResNet-50", "mobilenetv2_100": "MobileNetV2"}

FULL: dict[str, dict[str, Any]] = {
    "model": {"weights": "imagenet"},
    "input": {"shorter": 800, "longer": 1333},
    "train": {"epochs": 20, "batch_size": 32, "lr": 0.04, "warmup_epochs": 2, "steps": [10, 15]},
}
"""The paper's recipe (sec. 4.1.2); what it leaves open has the config's defaults."""

MINI: dict[str, dict[str, Any]] = {
    "model": {"weights": "none", "channels": 64, "head_depth": 1, "group_norm": True},
    "input": {"shorter": 160, "longer": 224},
    "train": {"batch_size": 8, "lr": 0.03, "clip_norm": 5.0, "workers": 0, "eval_every": 0, "log_every": 113},
    "eval": {"batch_size": 16},
}
"""The demo's recipe."""
MINI_BACKBONES = {"resnet50": "regnetx_004", "mobilenetv2_100": "regnetx_002"}
MINI_STEPS = 675
"""Optimiser steps of every mini training, whatever it is trained on: 5,400 draws in batches of 8."""
MINI_WARMUP, MINI_FALLS = 1 / 12, (3 / 4, 11 / 12)
"""As shares of the steps: the end of the warm-up, and where the learning rate falls to a tenth."""
MINI_IMAGES = 300
"""Generated training images per dataset; half as many for validation."""

# ------------------------------------------------------------------------------------------- trainings


@dataclass(frozen=True)
class Anchors:
    """Aspect ratios (height / width) and scales (in strides)."""

    ratios: tuple[float, ...]
    scales: tuple[float, ...]


ANCHORS = {
    "retinanet": Anchors((0.5, 1, 2), (4, 5.03, 6.35)),
    "small": Anchors((0.5, 1, 2), (2, 3, 4)),
    "upright": Anchors((1.25, 2.44), (2, 3)),
    "face": Anchors((1.25,), (2, 3)),
    "pedestrian": Anchors((2.44,), (2, 3, 4)),
}


@dataclass(frozen=True)
class Training:
    """merge: equal classes under other names (person and pedestrian, VOC's 20 in COCO) become one class."""

    name: str
    datasets: tuple[str, ...]
    backbone: str
    anchors: Anchors
    merge: bool = True


def _training(name: str, data: str, backbone: str, anchors: str, merge: bool = True) -> Training:
    return Training(name, tuple(data.split("+")), backbone, ANCHORS[anchors], merge)


_R50, _MV2 = BACKBONES

TRAININGS = {
    training.name: training
    for training in (
        _training("coco_resnet50", "COCO", _R50, "small"),
        _training("coco_resnet50_retinanet", "COCO", _R50, "retinanet"),
        _training("coco_mobilenetv2", "COCO", _MV2, "small"),
        _training("coco_mobilenetv2_retinanet", "COCO", _MV2, "retinanet"),
        _training("face_resnet50", "FACE", _R50, "upright"),
        _training("face_resnet50_face", "FACE", _R50, "face"),
        _training("face_resnet50_small", "FACE", _R50, "small"),
        _training("face_mobilenetv2", "FACE", _MV2, "upright"),
        _training("face_mobilenetv2_small", "FACE", _MV2, "small"),
        _training("ped_resnet50", "PED", _R50, "upright"),
        _training("ped_resnet50_pedestrian", "PED", _R50, "pedestrian"),
        _training("ped_resnet50_small", "PED", _R50, "small"),
        _training("ped_mobilenetv2", "PED", _MV2, "upright"),
        _training("voc_resnet50", "VOC", _R50, "retinanet"),
        _training("voc_mobilenetv2", "VOC", _MV2, "retinanet"),
        _training("face_ped_resnet50", "FACE+PED", _R50, "upright"),
        _training("face_ped_mobilenetv2", "FACE+PED", _MV2, "upright"),
        _training("coco_face_resnet50", "COCO+FACE", _R50, "small"),
        _training("coco_face_mobilenetv2", "COCO+FACE", _MV2, "small"),
        _training("coco_ped_resnet50", "COCO+PED", _R50, "small"),
        _training("coco_ped_resnet50_unmerged", "COCO+PED", _R50, "small", merge=False),
        _training("coco_ped_mobilenetv2", "COCO+PED", _MV2, "small"),
        _training("coco_ped_mobilenetv2_unmerged", "COCO+PED", _MV2, "small", merge=False),
        _training("coco_face_ped_resnet50", "COCO+FACE+PED", _R50, "small"),
        _training("coco_face_ped_resnet50_unmerged", "COCO+FACE+PED", _R50, "small", merge=False),
        _training("coco_voc_resnet50", "COCO+VOC", _R50, "retinanet"),
        _training("coco_voc_mobilenetv2", "COCO+VOC", _MV2, "retinanet"),
    )
}

# ------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Row:
    """table: "1" to "6" or "fig5". values: evaluated dataset -> metric as the paper calls it -> percent.

    None: the paper shows the result as a curve only. scales: as printed, where that is not the training's.
    notes: keys of `CONTRADICTIONS`.
    """

    table: str
    training: str
    values: Mapping[str, Mapping[str, float | None]]
    notes: tuple[int, ...] = ()
    scales: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """`t3/coco_face_resnet50`, `fig5/...`."""
        return f"{short(self.table)}/{self.training}"


def short(table: str) -> str:
    return f"t{table}" if table.isdigit() else table


Values = dict[str, dict[str, float | None]]


def _coco(*values: float) -> Values:
    return {"COCO": dict(zip(("AP", "AP50", "AP75", "APS", "APM", "APL"), values, strict=False))}


def _ped(*values: float) -> Values:
    return {"PED": dict(zip(("AP", "AP50", "AP75"), values, strict=False))}


def _face(easy: float | None, medium: float | None, hard: float | None) -> Values:
    return {"FACE": {"Easy": easy, "Medium": medium, "Hard": hard}}


def _voc(value: float) -> Values:
    return {"VOC": {"mAP": value}}


TITLES = {
    "1": "COCO, single and cross-dataset training",
    "2": "WIDER Pedestrian and WIDER FACE, single and cross-dataset training",
    "3": "Anchor settings (ResNet-50)",
    "4": "Merging person and pedestrian",
    "5": "COCO and PASCAL VOC",
    "6": "Backbones, faces and pedestrians",
    "fig5": "Precision-recall curves on WIDER FACE (figure 5)",
}

ROWS = (
    Row("1", "coco_resnet50_retinanet", _coco(35.5, 54.9, 38.0, 19.8, 39.2, 46.2), (10, 11)),
    Row("1", "coco_resnet50", _coco(35.4, 56.4, 37.3, 19.8, 38.7, 45.6), (10, 11)),
    Row("1", "coco_mobilenetv2_retinanet", _coco(30.0, 48.6, 31.4, 16.2, 31.9, 39.3), (10, 11)),
    Row("1", "coco_mobilenetv2", _coco(29.5, 48.0, 30.6, 16.1, 31.3, 39.3), (10, 11)),
    Row("1", "coco_face_resnet50", _coco(35.2, 56.1, 37.1, 20.9, 38.3, 45.4), (12, 14)),
    Row("1", "coco_face_mobilenetv2", _coco(29.5, 49.0, 30.4, 16.2, 31.4, 39.5), (8,)),
    Row("1", "coco_ped_resnet50", _coco(35.2, 55.6, 36.9, 20.2, 38.0, 44.9), (3,)),
    Row("1", "coco_face_ped_resnet50", _coco(35.0, 56.0, 36.7, 20.8, 38.2, 44.6)),
    Row("2", "ped_resnet50", _ped(48.37, 84.26, 50.24), (7,)),
    Row("2", "ped_mobilenetv2", _ped(43.73, 81.94, 41.1)),
    Row("2", "face_resnet50", _face(95.21, 93.7, 87.88), (13,)),
    Row("2", "face_mobilenetv2", _face(93.0, 90.98, 84.64)),
    Row("2", "face_ped_resnet50", _ped(48.32, 84.26, 49.71) | _face(94.58, 93.22, 87.59)),
    Row("2", "face_ped_mobilenetv2", _ped(43.86, 81.0, 42.1) | _face(92.24, 90.41, 84.63), (2,)),
    Row("2", "coco_ped_resnet50", _ped(52.46, 85.64, 56.6), (3,)),
    Row("2", "coco_face_ped_resnet50", _ped(51.44, 85.03, 54.9) | _face(95.02, 93.76, 86.66), (4,)),
    Row("3", "face_resnet50_face", _face(94.7, 93.27, 87.60)),
    Row("3", "face_resnet50_small", _face(95.14, 93.80, 86.48)),
    Row("3", "face_resnet50", _face(95.21, 93.7, 87.88)),
    Row("3", "coco_resnet50_retinanet", _coco(35.5), (1,), scales=(4, 5, 6)),
    Row("3", "coco_resnet50", _coco(35.4)),
    Row("3", "ped_resnet50_pedestrian", _ped(50.82), (7,)),
    Row("3", "ped_resnet50", _ped(48.37), (7,)),
    Row("3", "ped_resnet50_small", _ped(50.0)),
    Row("3", "coco_face_resnet50", _coco(35.2) | _face(95.23, 93.97, 87.06)),
    Row("3", "face_ped_resnet50", _ped(48.32) | _face(94.58, 93.22, 87.59)),
    Row("4", "coco_ped_resnet50_unmerged", _coco(35.2) | _ped(51.0), (3, 9)),
    Row("4", "coco_ped_resnet50", _coco(35.3) | _ped(51.43), (3, 9)),
    Row("4", "coco_ped_mobilenetv2_unmerged", _coco(29.1) | _ped(46.75), (6, 9)),
    Row("4", "coco_ped_mobilenetv2", _coco(29.1) | _ped(47.21), (6, 9)),
    Row("4", "coco_face_ped_resnet50_unmerged", _coco(35.1) | _ped(50.99), (9,)),
    Row("4", "coco_face_ped_resnet50", _coco(35.0) | _ped(51.45), (4, 9)),
    Row("5", "coco_resnet50_retinanet", _coco(35.5), (5,)),
    Row("5", "coco_mobilenetv2_retinanet", _coco(29.5), (5,)),
    Row("5", "voc_resnet50", _voc(83.0), (5, 15)),
    Row("5", "voc_mobilenetv2", _voc(76.4), (5, 15)),
    Row("5", "coco_voc_resnet50", _coco(35.4) | _voc(87.5), (5, 15)),
    Row("5", "coco_voc_mobilenetv2", _coco(29.5) | _voc(83.1), (5, 15)),
    Row("6", "face_resnet50", _face(95.21, 93.7, 87.88), (8,)),
    Row("6", "face_mobilenetv2", _face(93.00, 90.98, 84.64), (8,)),
    Row("6", "ped_resnet50", _ped(48.37), (8,)),
    Row("6", "ped_mobilenetv2", _ped(43.73), (8,)),
    Row("6", "face_ped_resnet50", _ped(48.32) | _face(94.58, 93.22, 87.59), (8,)),
    Row("6", "face_ped_mobilenetv2", _ped(43.86) | _face(92.5, 90.6, 84.41), (2, 8)),
    Row("fig5", "face_resnet50", _face(None, None, None), (16,)),
    Row("fig5", "face_ped_resnet50", _face(None, None, None), (16,)),
    Row("fig5", "face_resnet50_small", _face(None, None, None), (16,)),
    Row("fig5", "coco_face_resnet50", _face(None, None, None), (16,)),
    Row("fig5", "face_mobilenetv2", _face(None, None, None), (16,)),
    Row("fig5", "face_ped_mobilenetv2", _face(None, None, None), (16,)),
    Row("fig5", "face_mobilenetv2_small", _face(None, None, None), (16,)),
    Row("fig5", "coco_face_mobilenetv2", _face(None, None, None), (8, 16)),
)

# ------------------------------------------------------------------------------------------- contradictions


@dataclass(frozen=True)
class Contradiction:
    """Where the paper contradicts itself or leaves something open, and what is run here."""

    problem: str
    reading: str


CONTRADICTIONS = {
    1: Contradiction(
        "table 3 prints scales [4,5,6] beside the 35.5 that table 1 and the text give to [4,5.03,6.35]",
        "a rounded [4,5.03,6.35]: the training of table 1",
    ),
    2: Contradiction(
        "FACE+PED with MobileNetV2: faces 92.24/90.41/84.63 in table 2, 92.5/90.6/84.41 in table 6",
        "one training for both rows",
    ),
    3: Contradiction(
        "COCO+PED with ResNet-50: PED 52.46 in table 2, but 51.0 unmerged and 51.43 merged in table 4; table 1's "
        "COCO 35.2 is table 4's unmerged one; the text says merged",
        "tables 1 and 2 are merged",
    ),
    4: Contradiction("COCO+FACE+PED: PED 51.44 in table 2 and the text, 51.45 in table 4", "one training, merged"),
    5: Contradiction(
        "table 5 names no anchors; COCO alone is 35.5 on ResNet-50 as with scales [4,5.03,6.35], but 29.5 on "
        "MobileNetV2 as with [2,3,4] (30.0 with the others)",
        "[4,5.03,6.35] in the whole table, as the text says of VOC",
    ),
    6: Contradiction(
        "COCO 29.1 of COCO+PED with MobileNetV2 stands in table 4 only; table 1 has no such row",
        "trained for table 4",
    ),
    7: Contradiction(
        "pedestrian anchors: ratio 2.44 with scales {2,3} in the text, with [2,3,4] in table 3, and table 2's "
        "baseline has ratios [1.25,2.44]",
        "each row as its table prints it",
    ),
    8: Contradiction(
        "table 6 gives scales {2,3} and no ratios; MobileNetV2 FACE+COCO is judged on faces in figure 5 only; "
        '"29.5 vs 29.5" in the text are the MobileNetV2 rows of table 1',
        "ratios [1.25,2.44], since the numbers are table 2's; figure 5's curves are rows",
    ),
    9: Contradiction(
        "the text on anchors cites table 4 and must mean table 3; table 4 names no anchors",
        "[0.5,1,2] x [2,3,4] in table 4, as the text says of COCO with PED",
    ),
    10: Contradiction(
        "limit of the longer side, NMS and score thresholds and augmentation are not stated; the learning rate is "
        "twice the linearly scaled one of RetinaNet",
        "longer side 1333, NMS 0.5, the protocols' score thresholds, horizontal flips; learning rate 0.04",
    ),
    11: Contradiction(
        "115k training images; train2017 has 118,287. The validation set is called coco-2014-minival",
        "train2017 and val2017 (5,000 images)",
    ),
    12: Contradiction(
        "equation 4 gives background of a conflicting dataset no loss, yet the text has its objects as negatives",
        "both: background is avoided, labelled objects are negatives for all other classes",
    ),
    13: Contradiction(
        "easy, medium and hard are called large, medium and small faces, but the sets are nested",
        "WIDER FACE's own lists",
    ),
    14: Contradiction('"no accuracy loss on COCO" is 35.4 -> 35.2', "the numbers as printed"),
    15: Contradiction(
        'VOC: neither years nor metric are named, the test set is called "val"; difficult objects not mentioned',
        "trained on trainval 2007 + 2012, tested on test 2007, mAP by area (by 11 points in the JSON)",
    ),
    16: Contradiction(
        "figure 5 names its curves face1 and face2 only",
        "baseline and cross-dataset curve for FACE with PED (face1) and FACE with COCO (face2) per backbone",
    ),
}
