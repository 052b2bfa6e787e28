"""The data of the paper's experiments at mini scale: generated in the data folder, or photographs found there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from crossdet.data.annotation_files import read_lines
from crossdet.data.formats.voc import write_voc
from crossdet.data.index import IndexBuilder
from crossdet.demo.scene_composition import HEIGHT, WIDTH
from crossdet.demo.scenes import make_scene, write_demo_datasets
from crossdet.errors import UserError
from crossdet.files import write_json
from crossdet_research.paper.rows import DATASETS, GENERATED_VOC_CLASSES

WORLD, VOC = "demo_world", "demo_voc"
SEED = 0
"""Of the pictures. The seed of a training changes its weights and draws, not its data."""
VOC_SEED, VOC_LOOK = 77, "faces"
"""The generated VOC pictures look as those of `faces` do: unlike the `objects` that stand for COCO."""


def val_images(images: int) -> int:
    """Generated validation images per dataset."""
    return max(2, images // 2)


def has_photos(root: Path) -> bool:
    """Whether table 5 can be run on photographs: small COCO and VOC sets in the data folder."""
    return all(
        (root / str(DATASETS[name].photos["train"][key])).exists()
        for name in ("COCO", "VOC")
        for key in ("images", "annotations")
    )


def count_photos(root: Path, dataset: str) -> int:
    """Training images of the photographs of COCO or VOC, from their lists alone."""
    files = DATASETS[dataset].photos["train"]
    annotations = root / str(files["annotations"])
    if dataset == "COCO":
        try:
            return len(json.loads(annotations.read_text())["images"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{annotations}: cannot be read as a COCO file") from None
    lines = read_lines(annotations.parent / "ImageSets" / "Main" / f"{files['image_set']}.txt")
    return sum(1 for line in lines if line.strip())


def write_world(root: Path, images: int) -> None:
    """Faces, pedestrians and objects of the demo, `images` each for training; found in place the next time."""
    world = root / WORLD
    from crossdet.demo.comparison import write_face_lists  # imports torch

    write_demo_datasets(world, SEED, images, val_images(images), 2)
    write_face_lists(world / "faces")


def write_voc_objects(root: Path, images: int) -> None:
    """A VOC set beside the demo's objects: other pictures in another look, cars, dogs and signs labelled. The
    persons and faces in its pictures are not labelled. Found in place the next time; an interrupted one, or one of
    another size, is written anew."""
    folder, marker = root / VOC, root / VOC / "made.json"
    settings = {"images": images, "seed": VOC_SEED, "look": VOC_LOOK}
    if marker.exists() and json.loads(marker.read_text()) == settings:
        return
    if folder.exists() and not marker.exists():
        raise UserError(f"{folder} is there and not written by `crossdet-research paper`; move it away")
    write_json(marker, {})
    pictures = folder / "JPEGImages"
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        shutil.rmtree(folder / name, ignore_errors=True)
    pictures.mkdir()
    for number, (split, count) in enumerate((("train", images), ("val", val_images(images)))):
        builder = IndexBuilder(pictures)
        for i in range(count):
            name = f"{number * 100_000 + i + 1:06d}.jpg"
            scene = make_scene(VOC_LOOK, (VOC_SEED, number, i))
            scene.image.save(pictures / name, quality=90)
            builder.image(name, HEIGHT, WIDTH, image_id=i + 1)
            for label, box in scene.objects:
                if label in GENERATED_VOC_CLASSES:
                    builder.box(box, GENERATED_VOC_CLASSES.index(label))
        write_voc(builder.build(list(GENERATED_VOC_CLASSES)), folder, split)
    write_json(marker, settings)
