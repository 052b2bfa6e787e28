"""The annotation formats, by the names that the config gives them. How to add one: docs/extending_crossdet.md."""

from crossdet.data.formats import coco, voc, wider_face, wider_pedestrian, yolo
from crossdet.data.formats.format import Format

FORMATS: dict[str, Format] = {
    "coco": coco.FORMAT,
    "voc": voc.FORMAT,
    "wider_face": wider_face.FORMAT,
    "wider_pedestrian": wider_pedestrian.FORMAT,
    "yolo": yolo.FORMAT,
}
