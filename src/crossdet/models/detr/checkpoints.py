"""What checkpoints of HF transformers say of themselves: a directory, or an id of the hub. No torch in here.

A directory holds `config.json` (sizes, class names), `model.safetensors` (or shards of it with an index), and
`preprocessor_config.json` (size and normalisation of the pictures), or the same within `processor_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from crossdet.errors import UserError, show
from crossdet.files import write_atomically
from crossdet.labels.patterns import class_name, composed
from crossdet.labels.placeholders import without_placeholders
from crossdet.models.hub import (
    ALL_PROCESSORS,
    CARD_FILE,
    CONFIG,
    INDEX,
    PROCESSOR,
    WEIGHTS,
    fetch,
    identifier,
    unreadable,
)
from crossdet.types import PAD_DIVISOR

NOT_OURS = ("id2label", "label2id", "num_labels", "architectures", "transformers_version", "dtype", "torch_dtype")
"""Keys of a config that say nothing about the network's sizes besides the classes."""
KNOWN = {"d_fine": "dfine", "rt_detr": "rtdetr", "rt_detr_v2": "rtdetr", "rf_detr": "rfdetr"}
VERSIONS = {"rt_detr": 1, "rt_detr_v2": 2}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR = 2
"""`resample` as Pillow numbers it."""
PICKLED, TRAINER_FILE = "pytorch_model", "training_args.bin"
"""How names of HF's own pickles begin, and one that holds no tensors."""
ONE_STRIDE = ("rf_detr",)
"""Networks whose pictures need not be a multiple of `PAD_DIVISOR`."""


@dataclass(frozen=True)
class Described:
    """What a checkpoint says about itself. classes: by row of its class tensors. square: side of its pictures; None
    where they keep their shape. edges: then the shorter side, and the longer one at most."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    square: int | None
    edges: tuple[int, int] | None

    @property
    def settings(self) -> dict[str, Any]:
        """Values of `DetrSettings`."""
        return {"config": self.config, "mean": self.mean, "std": self.std}


def model_type(directory: Path) -> str | None:
    """Of the checkpoint of HF transformers in a directory; None where there is none.

    Raises `UserError` for one of a network that nobody here knows.
    """
    if not (directory / CONFIG).is_file():
        return None
    kind = _read(directory / CONFIG).get("model_type")
    if not isinstance(kind, str):
        return None
    if kind not in KNOWN:
        raise UserError(
            f"{directory / CONFIG}: `model_type` is {show(kind)}; use a checkpoint of {' or '.join(KNOWN)}"
        )
    return kind


def directory_of(source: str | Path) -> Path:
    """The checkpoint on this disk; one of the hub is fetched first. Raises `UserError` where that cannot be."""
    if isinstance(source, Path):
        if not source.is_dir():
            raise UserError(
                f"model.weights: {source} is no directory; expected one with {CONFIG} and {WEIGHTS}, or a hub id "
                f"such as ustc-community/dfine-small-coco"
            )
        return source
    return fetch(identifier(source) or source, f"model.weights: {source}")


def described(source: str | Path, family: str) -> Described:
    """Raises `UserError`, naming file, key and fix, for a checkpoint that is not of this family or damaged."""
    directory = directory_of(source)
    file = directory / CONFIG
    config = _read(file)
    kind = config.get("model_type")
    if kind != family:
        fix = f"`model.name: {KNOWN[kind]}`" if kind in KNOWN else f"a checkpoint of {' or '.join(KNOWN)}"
        if kind in VERSIONS:
            fix += f" with `version: {VERSIONS[kind]}`"
        raise UserError(f"{file}: `model_type` is {show(kind)}, and the config asks for {family}; use {fix}")
    place, processor = _processor(directory, family)
    classes = _classes(file, config)
    normalised = bool(processor["do_normalize"])
    sizes = {key: value for key, value in config.items() if key not in NOT_OURS}
    return Described(
        sizes,
        classes,
        _three(place, processor, "image_mean") if normalised else (0.0, 0.0, 0.0),
        _three(place, processor, "image_std") if normalised else (1.0, 1.0, 1.0),
        *_shape(place, processor["size"], 1 if kind in ONE_STRIDE else PAD_DIVISOR),
    )


def wants_nms(source: str | Path) -> bool:
    """Whether crossdet itself wrote the checkpoint, of a network that suppresses second finds: HF knows nothing of
    that."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads((directory_of(source) / CARD_FILE).read_text(encoding="utf-8"))
        return content["model"]["nms"] is True
    return False


WANTED = (("do_rescale", True), ("rescale_factor", 1 / 255), ("do_resize", True), ("resample", BILINEAR))


def _processor(directory: Path, family: str) -> tuple[Path, dict[str, Any]]:
    """The file that says how HF prepares pictures, and that with what its classes have by default. Raises
    `UserError` where it is not known, and for what is done differently here."""
    normalised, (file, said) = family == "rf_detr", _said_of_pictures(directory)
    if said is None:
        side = 560 if normalised else 640
        values = {"size": {"height": side, "width": side}, "do_normalize": normalised}
        raise UserError(
            f"{directory} has no {PROCESSOR}, which says how large its pictures are and how they are normalised; "
            f"copy the one of the checkpoint that its training began with, or write what it was trained with, such "
            f"as {json.dumps(values)}"
        )
    size = {"shortest_edge": 800, "longest_edge": 1333} if normalised else {"height": 640, "width": 640}
    usual = {"size": size, "do_normalize": normalised}
    usual |= {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    given = usual | said
    for key, wanted in WANTED:
        value = given.get(key, wanted)
        if not isinstance(value, int | float) or abs(value - wanted) > 1e-6:
            raise UserError(f"{file}: `{key}` is {show(value)}; here it is always {wanted:g}")
    if given.get("do_pad") and given.get("pad_size"):
        raise UserError(f"{file}: `pad_size` is {show(given['pad_size'])}; pictures are not padded to a size here")
    return file, given


def _said_of_pictures(directory: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file that HF takes, and what stands there; None where there is none."""
    file = directory / ALL_PROCESSORS
    nested = _read(file).get("image_processor") if file.is_file() else None
    if nested is not None:
        if not isinstance(nested, dict):
            raise UserError(f"{file}: expected a JSON object under `image_processor`, got {show(nested)}")
        return file, nested
    file = directory / PROCESSOR
    return file, _read(file) if file.is_file() else None


def _shape(file: Path, size: Any, divisor: int) -> tuple[int | None, tuple[int, int] | None]:
    """`Described.square` and `edges`."""
    match size:
        case {"shortest_edge": int(shorter), "longest_edge": int(longer)} if 0 < shorter <= longer:
            return None, (shorter, longer)
        case {"height": int(side), "width": int(other)} if side == other > 0 == side % divisor and side is not True:
            return side, None
        case {"height": int(side), "width": int(other)} if min(side, other) > 0 and side != other:
            square = dict.fromkeys(("height", "width"), -(-max(side, other) // divisor) * divisor)
            raise UserError(
                f"{file}: `size` is {show(size)}; only squares can be taken here, such as {show(square)} (pictures "
                f"then look different from those of its training)"
            )
    what = "a number of pixels" if divisor == 1 else f"a multiple of {divisor}"
    raise UserError(f"{file}: `size` is {show(size)}; expected {what} as height and, alike, as width")


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; a checkpoint of HF transformers has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, got {show(value)}")
    return value


def _three(file: Path, processor: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """A number per channel, of a processor that normalises."""
    match processor.get(key):
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            if key == "image_std" and min(red, green, blue) <= 0:
                raise UserError(f"{file}: `{key}` is {show(processor[key])}; pictures are divided by it")
            return float(red), float(green), float(blue)
        case given:
            raise UserError(f"{file}: `{key}` is {show(given)}; `do_normalize` is true, so give three numbers")


def _classes(file: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by row; rows that mean nothing get one. Raises `UserError` for gaps in the rows and for a name that
    stands twice."""
    given = config.get("id2label")
    if not isinstance(given, dict) or not given:
        raise UserError(
            f"{file}: `id2label` is missing, as where nobody has named two classes; without it nobody knows the "
            f"class of a row. Name every row, "
            f'such as "id2label": {{"0": "person", "1": "car"}}'
        )
    if strange := [key for key in given if not key.isdecimal()]:
        raise UserError(
            f"{file}: `id2label` has the key {show(strange[0])}; its keys are numbers of rows, from 0 on"
        )
    if strange := [name for name in given.values() if not isinstance(name, str)]:
        raise UserError(f"{file}: `id2label` has the name {show(strange[0])}; names are texts")
    ours = (file.parent / CARD_FILE).is_file()  # then a name may be one with spaces around it
    rows = {int(key): composed(name) if ours else class_name(name) for key, name in given.items()}
    if len(rows) < len(given):
        raise UserError(f"{file}: `id2label` has a row under two keys, such as 0 and 00; name every row once")
    if sorted(rows) != list(range(len(rows))):
        gap = next(row for row in range(max(rows) + 1) if row not in rows)
        raise UserError(
            f"{file}: `id2label` has no name for row {gap}, but one for row {max(rows)}; name every row (rows that "
            f"mean nothing: `unused_{gap}`)"
        )
    names = without_placeholders([rows[row] for row in range(len(rows))])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file}: `id2label` has {show(twice[0])} more than once; give each row a name of its own")
    return names


def check_files(directory: Path) -> None:
    """Raises `UserError` where tensors are missing, unreadable, or only there as pickles, which could run code."""
    shards = [WEIGHTS]
    if (directory / INDEX).is_file():
        index = _read(directory / INDEX)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{directory / INDEX}: `weight_map` is no map from tensors to files; fetch it again")
        shards = sorted(set(places.values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise UserError(f"{directory / INDEX}: `weight_map` names {show(outside[0])}; its files lie beside it")
        if not isinstance(index.get("metadata"), dict):
            raise UserError(f'{directory / INDEX}: `metadata` is missing; write `"metadata": {{}}` into it')
        if missing := [name for name in shards if not (directory / name).is_file()]:
            raise UserError(
                f"{directory / INDEX} names {len(missing)} files that do not exist ({missing[0]}, ...); fetch them"
            )
    elif not (directory / WEIGHTS).is_file():
        raise UserError(f"{directory} holds no {WEIGHTS}{_of_pickles(directory)}")
    for name in shards:
        try:
            with safe_open(directory / name, "numpy"):  # reads where tensors lie, and whether they are all there
                pass
        except (OSError, SafetensorError) as error:
            raise unreadable(directory / name, error) from None


def _of_pickles(directory: Path) -> str:
    """What to do with tensors that are there as a pickle, as the end of a message; empty without any."""
    files = [file for kind in ("*.bin", "*.pth") for file in directory.glob(kind)]
    names = sorted(file.name for file in files if file.name != TRAINER_FILE)
    names.sort(key=lambda name: not name.startswith(PICKLED))
    if not names:
        return ""
    told = f"; {names[0]} is a pickle, which could run code"
    if not names[0].startswith(PICKLED):
        return (
            f"{told}, and one that the authors' own code wrote has other tensor names: a checkpoint as HF "
            "transformers saves it can be taken (`save_pretrained`; it has scripts that convert the authors')"
        )
    told += ": convert it to safetensors"
    line = f'AutoModelForObjectDetection.from_pretrained("{directory}").save_pretrained("{directory}-safe")'
    return f"{told}, in Python `from transformers import AutoModelForObjectDetection; {line}`, and copy {PROCESSOR}"


def write_processor(directory: Path, family: str, square: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """How HF prepares pictures: stretched to a square, and normalised by mean and std, RGB in 0..1."""
    values = {
        "image_processor_type": "RfDetrImageProcessor" if family == "rf_detr" else "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": square, "width": square},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": tuple(mean) != (0.0, 0.0, 0.0) or tuple(std) != (1.0, 1.0, 1.0),
        "image_mean": list(mean),
        "image_std": list(std),
        "do_pad": False,
    }
    write_atomically(directory / PROCESSOR, json.dumps(values, indent=2).encode())
