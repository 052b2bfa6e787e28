"""Generated data in the layouts that README and examples name, so that both run without any download."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.voc import write_voc
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.formats.wider_pedestrian import write_wider_pedestrian
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import Index, IndexBuilder

# Overrides that shrink any config to two steps of a tiny network; a random backbone has no frozen statistics.
TINY = ["input.shorter=64", "input.longer=96", "model.channels=16", "model.head_depth=1", "train.batch_size=2",
        "train.epochs=1", "train.max_steps=2",
        "train.workers=0", "train.accelerator=cpu", "eval.batch_size=4"]  # fmt: skip
# of an extension, whose model and input size stand in the weights
TINY_EXTENSION = [override for override in TINY if not override.startswith(("model", "input"))]


def pictures(folder: Path, files: list[str], classes: list[str], seed: int) -> Index:
    """Grey pictures of 80x60 with two coloured rectangles each, and their index with root `folder`."""
    generator = np.random.default_rng(seed)
    builder = IndexBuilder(folder)
    for row, file in enumerate(files):
        pixels = np.full((60, 80, 3), 120, np.uint8) + generator.integers(0, 20, (60, 80, 3), np.uint8)
        builder.image(file, 60, 80, row + 1)
        for label in (row % len(classes), (row + 1) % len(classes)):
            x, y = int(generator.integers(0, 40)), int(generator.integers(0, 25))
            width, height = int(generator.integers(12, 36)), int(generator.integers(14, 34))
            pixels[y : y + height, x : x + width] = (40 * label % 256, 200 - 30 * label % 200, 90)
            builder.box((x, y, x + width, y + height), label)
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return builder.build(classes)


def coco(root: Path, images: str, annotations: str, classes: list[str], count: int, seed: int) -> None:
    index = pictures(root / images, [f"{seed}_{i}.jpg" for i in range(count)], classes, seed)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    write_coco(index, root / annotations)


def voc(root: Path, classes: list[str], counts: dict[str, int]) -> None:
    for seed, (split, count) in enumerate(counts.items()):
        names = [f"{split}_{i}.jpg" for i in range(count)]
        write_voc(pictures(root / "JPEGImages", names, classes, seed), root, split)


def yolo(root: Path, classes: list[str], counts: dict[str, int], seed: int = 0) -> None:
    for number, (split, count) in enumerate(counts.items(), seed):
        names = [f"{split}_{i}.jpg" for i in range(count)]
        write_yolo(pictures(root / "images" / split, names, classes, number), root, split)


def wider_face(root: Path, images: str, annotations: str, count: int, seed: int) -> None:
    names = [f"0--Parade/{seed}_{i}.jpg" for i in range(count)]
    index = pictures(root / images, names, ["face"], seed)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    write_wider_face(index, root / annotations)


def wider_pedestrian(root: Path, images: str, annotations: str, ignore: str, count: int, seed: int) -> None:
    names = [f"img{seed}{i:04d}.jpg" for i in range(count)]
    index = pictures(root / images, names, ["pedestrian", "cyclist"], seed)
    write_wider_pedestrian(index, root / annotations, root / ignore, 2018)


def coco_classes() -> list[str]:
    """The 80 names of COCO that the examples rely on, five of them shared with the VOC animals."""
    shared = ["cat", "cow", "dog", "horse", "sheep", "person"]
    return shared + [f"thing {i}" for i in range(74)]


def random_backbone(path: Path, name: str = "mobilenetv2_100") -> None:
    """A weights file of the right shape."""
    import timm
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(name, features_only=True, pretrained=False).state_dict(), path)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
