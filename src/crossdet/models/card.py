"""What a weights file says about itself besides its tensors, as one object; and the file as an argument. No torch.

Nobody else knows the names of the metadata's entries.
"""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from crossdet.errors import UserError
from crossdet.labels.patterns import class_name
from crossdet.labels.placeholders import without_placeholders
from crossdet.labels.space import LabelSpace
from crossdet.models.architecture import Foreign
from crossdet.models.architectures import ARCHITECTURES, DEFAULT
from crossdet.models.hub import CARD_FILE as CARD_FILE
from crossdet.models.hub import INDEX, checkpoint_name, example_in, unreadable
from crossdet.models.older_names import with_names_as_read
from crossdet.models.settings import NetworkSettings

FORMAT = "crossdet/1"
WEIGHTS_FILE, BEST_FILE = "model.safetensors", "best.safetensors"
METRICS_FILE = "metrics.json"
"""The newest weights of a run, and those of its best evaluation (`training.choosing`)."""
SUFFIX = ".safetensors"
EXPORTED = (".onnx", ".xml")
"""What `crossdet export` writes: ONNX, and OpenVINO's, with a `.bin` beside it. See `export.sessions`."""
WANTED = f"a {SUFFIX} file or a run directory that holds {WEIGHTS_FILE}, or a checkpoint of HF transformers"
START_FILE = "extend.json"
"""What an extension began with: its generation, and the parent's scores. A resumed run goes on with it."""
ARCHITECTURE = "architecture"
KEY = "provenance"
"""Of the weights' metadata: the generations as JSON, oldest first."""


@dataclass(frozen=True)
class Score:
    """One class on one dataset. number: the main number of the dataset's protocol; value: 0..1, None if
    undefined.
    """

    name: str
    dataset: str
    number: str
    value: float | None


@dataclass(frozen=True)
class Generation:
    """One training, extension or edit.

    mode: train, replay, distill, frozen or labels. datasets: those that it was trained on -> their own class
    names. classes: the unified classes afterwards. parent: SHA-256 of the weights file that it started from.
    when: ISO 8601, UTC; not kept of a first training, whose weights depend on data and settings alone. version: of
    crossdet. scores: at its end. edits: what `crossdet labels` did. None, empty: not known, not so.
    """

    mode: str
    datasets: dict[str, list[str]]
    classes: list[str]
    parent: str | None = None
    when: str | None = None
    version: str | None = None
    scores: tuple[Score, ...] = ()
    edits: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Generation:
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        scores = tuple(Score(**score) for score in data.get("scores", ()))
        return replace(cls(**known), scores=scores, edits=tuple(data.get("edits", ())))


def new_generation(
    mode: str,
    datasets: Mapping[str, Sequence[str]],
    space: LabelSpace,
    parent: str | None,
    edits: Sequence[str] = (),
) -> Generation:
    """The generation that begins now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        release: str | None = version("crossdet")
    except PackageNotFoundError:  # run from its sources, without an installation
        release = None
    given = {name: list(classes) for name, classes in datasets.items()}
    return Generation(mode, given, list(space.classes), parent, now, release, edits=tuple(edits))


def first_generation(datasets: Mapping[str, Sequence[str]], space: LabelSpace) -> Generation:
    """That of `crossdet train`. Without a time: equal trainings write equal files."""
    return replace(new_generation("train", datasets, space, None), when=None)


@dataclass(frozen=True)
class InputSettings:
    """How pictures are prepared: shorter side in pixels, with a cap on the longer."""

    shorter: int
    longer: int


@dataclass(frozen=True)
class Card:
    """The metadata of a weights file.

    space, settings, input: label space, architecture, and size of the pictures.
    decoding: the `eval` section of the config (topk, nms_iou, ...).
    operating: class -> its operating point on validation data, as plain values; None: none was looked for.
    generations: oldest first.
    """

    space: LabelSpace
    settings: NetworkSettings
    input: InputSettings
    decoding: Mapping[str, Any]
    operating: Mapping[str, Mapping[str, Any]] | None = None
    generations: tuple[Generation, ...] = ()

    @property
    def thresholds(self) -> dict[str, float]:
        """Class -> score from which on it is reported."""
        return {name: float(point["threshold"]) for name, point in (self.operating or {}).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Card:
        """Of the strings in a file, of this version or an older one.

        Weights that know no generations are those of a first training.
        """
        metadata = with_names_as_read(metadata, KEY)
        space = LabelSpace.from_json(metadata["labels"])
        name = metadata.get(ARCHITECTURE, DEFAULT)
        if name not in ARCHITECTURES:
            raise UserError(
                f"the weights are of the architecture {name!r}, which this version of crossdet does not know "
                f"(it knows {', '.join(ARCHITECTURES)})"
            )
        if KEY in metadata:
            history = tuple(Generation.from_dict(entry) for entry in json.loads(metadata[KEY]))
        else:
            datasets = {name: list(sources) for name, sources in zip(space.datasets, space.sources, strict=True)}
            history = (Generation("train", datasets, list(space.classes)),)
        card = cls(
            space,
            ARCHITECTURES[name].settings.from_json(metadata["model"]),
            InputSettings(**json.loads(metadata["input"])),
            dict(json.loads(metadata["eval"])),
            json.loads(metadata["operating"]) if "operating" in metadata else None,
            history,
        )
        _ = card.thresholds  # damaged ones are found now
        return card

    def to_metadata(self) -> dict[str, str]:
        """As it is stored; equal cards give equal strings."""
        metadata = {
            "labels": self.space.to_json(),
            "model": self.settings.to_json(),
            "input": json.dumps(asdict(self.input)),
            "eval": json.dumps(dict(self.decoding), separators=(",", ":")),
            KEY: json.dumps([asdict(generation) for generation in self.generations]),
        }
        if self.settings.name != DEFAULT:
            metadata[ARCHITECTURE] = self.settings.name
        return metadata if self.operating is None else metadata | {"operating": json.dumps(self.operating)}


def read_card(path: Path, last: bool = False) -> Card:
    """Of a weights file, a run directory (last: see `weights_path`), or a checkpoint of other software, without its
    tensors.

    Raises `UserError` as `read_metadata`."""
    if (foreign := foreign_checkpoint(path)) is not None:
        return card_of_foreign(path, foreign)
    return card_of(path, read_metadata(weights_path(path, last) if last else path))


def foreign_checkpoint(path: Path) -> Foreign | None:
    """What other software left there. Raises `UserError` for a damaged one."""
    for kind in ARCHITECTURES.values():
        if (found := kind.foreign(path)) is not None:
            return found
    return None


def card_of_foreign(path: Path, found: Foreign) -> Card:
    """What stands beside it (`CARD_FILE`); else its label space is one dataset, named like the directory
    (`hub.checkpoint_name`), that labels all of its classes.

    Raises `UserError` where the two contradict each other.
    """
    if (path / CARD_FILE).is_file():
        return _card_beside(path / CARD_FILE, found)
    name = checkpoint_name(path)
    space = LabelSpace.build({name: found.classes})
    history = (Generation("train", {name: list(found.classes)}, list(space.classes)),)
    return Card(space, found.settings, InputSettings(found.shorter, found.longer), {}, None, history)


def card_beside(card: Card) -> str:
    """The text of `CARD_FILE`: the entries of `Card.to_metadata` as one JSON object."""
    entries = {key: json.loads(value) for key, value in card.to_metadata().items() if key != ARCHITECTURE}
    return json.dumps({ARCHITECTURE: card.settings.name, **entries}, indent=2, ensure_ascii=False)


DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
"""What reading a stored description raises that somebody has changed."""


def _card_beside(file: Path, found: Foreign) -> Card:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = {key: json.dumps(value) for key, value in content.items() if key != ARCHITECTURE}
        card = Card.from_metadata({ARCHITECTURE: content[ARCHITECTURE], **entries})
    except (OSError, *DAMAGED) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} cannot be read ({reason}); without it the classes alone are taken") from None
    classes = without_placeholders(card.space.classes)  # as names of rows are read
    ours = (card.settings.name, *map(class_name, classes))
    theirs = (found.settings.name, *map(class_name, found.classes))  # which has spaces where the card keeps twins
    if ours != theirs:
        mine, other = next((a, b) for a, b in zip_longest(ours, theirs) if a != b)
        raise UserError(
            f"{file} says {mine!r} where the checkpoint beside it says {other!r}; without {file.name} the "
            f"checkpoint's classes alone are taken"
        )
    return card


def card_of(path: Path, metadata: Mapping[str, str]) -> Card:
    """`Card.from_metadata`; what it refuses is told with the file."""
    try:
        return Card.from_metadata(metadata)
    except UserError as error:
        raise UserError(f"weights {path}: {error}") from None
    except DAMAGED as error:
        raise UserError(f"weights {path}: what they say about themselves is damaged ({error!r})") from None


def name_of(path: Path) -> str:
    """What weights are called where several are told apart."""
    return checkpoint_name(path) if path.is_dir() else path.stem


def no_weights(path: Path) -> UserError:
    hint = "" if path.suffix else "; of the hub they are named OWNER/NAME, such as ustc-community/dfine-small-coco"
    return UserError(f"weights file {path} does not exist{hint}")


def weights_path(path: Path, last: bool = False) -> Path:
    """The weights file itself, of a file or a run directory: the best weights of the run where there are some. Of a
    checkpoint in several files their index.

    last: of a run directory the newest ones.
    """
    if not path.is_dir():
        return path
    best, whole, index = path / BEST_FILE, path / WEIGHTS_FILE, path / INDEX
    if index.is_file() and not whole.is_file():
        return index
    return best if best.is_file() and not last else whole


def file_digest(path: Path) -> str:
    """SHA-256 of a weights file (or of that in a run directory); of several files their contents in order.

    Raises `UserError` for an index that cannot be read, `OSError` for a missing file.
    """
    file, digest = weights_path(path), hashlib.sha256()
    for part in _parts(file) if file.name == INDEX else [file]:
        with part.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _parts(index: Path) -> list[Path]:
    try:
        return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} cannot be read: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file or run directory, without its tensors.

    Raises:
        UserError: missing, damaged, or not written by crossdet.
    """
    check_weights(path)
    path = weights_path(path)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (FileNotFoundError, IsADirectoryError):
        raise no_weights(path) from None
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from None
    check_format(path, metadata)
    return dict(metadata)


def check_weights(path: Path) -> None:
    """Raises `UserError` for a folder or file that cannot be meant as weights; what is in them is for the reader.

    A file is taken as meant if it is named `.safetensors`, or begins as such files do: with the length of a header.
    """
    if path.is_dir():
        if not weights_path(path).is_file():
            foreign_checkpoint(path)  # says more of one that lacks its tensors
            raise UserError(f"{path} holds no {WEIGHTS_FILE}; expected {WANTED}{example_in(path)}")
    elif path.is_file() and path.suffix != SUFFIX:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] != b"{" or int.from_bytes(head[:8], "little") > path.stat().st_size:
            raise UserError(f"{path} is no crossdet weights file; expected {WANTED}")


def of_another_name(weights: str | Path, name: str) -> str | None:
    """What is wrong with the weights of a config whose architecture is `name`, if they are another's checkpoint."""
    try:
        found = None if isinstance(weights, str) else foreign_checkpoint(weights)
    except UserError:
        return None
    if found is None or found.settings.name == name:
        return None
    theirs = found.settings.name
    said = ", ".join(f"`model.{key}: {value}`" for key, value in {"name": theirs, **found.keys}.items())
    return (
        f"model.weights: {weights} is a checkpoint of {theirs}, and `model.name` is {name}; say {said} to begin "
        f"from it, or `crossdet extend {weights} CONFIG` to keep its classes"
    )


def detector_hint(weights: str | Path) -> str:
    """What to do with weights of a trained detector of ours that are given as those of a backbone, as the end of a
    message; empty for others."""
    if isinstance(weights, str):
        return ""
    try:
        if foreign_checkpoint(weights) is not None:
            return ""
        read_card(weights)
    except UserError:
        return ""
    return f". {weights} is a trained detector: `crossdet extend {weights} CONFIG` goes on from it"


def check_format(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises `UserError` if the metadata is not that of crossdet's weights."""
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is no crossdet weights file (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            f"backbone weights go under `model.weights` of a config"
        )


# ------------------------------------------------------------------------------------ as an argument


def is_exported(path: str | Path) -> bool:
    """Whether a path can only be meant as an exported file."""
    return Path(path).suffix in EXPORTED


def means_weights(path: Path) -> bool:
    """Whether a path can only be meant as weights, where a config may stand as well: a folder, or no text."""
    if path.is_dir() or path.suffix == SUFFIX or is_exported(path):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(1024)
    utf16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))  # text, for the config's reader to refuse
    return b"\0" in head and not utf16


def check_order(command: str, weights: Path, config: Path) -> None:
    """Raises `UserError` where the config of a command is no file with one, or stands where the weights should."""
    if means_weights(config):
        swapped = not means_weights(weights)
        fix = f", such as `crossdet {command} {config} {weights}`" if swapped else ""
        what = "a directory" if config.is_dir() else "no YAML file"
        raise UserError(
            f"{config} is {what}, and the second argument is a config: the weights come first, then the config{fix}"
        )


def taken(path: Path, last: bool = False) -> str:
    """What a command says about the weights it takes: which file of a run directory. last: see `weights_path`.

    Raises `UserError` if there are none.
    """
    if is_exported(path):
        return f"weights: {path}"
    check_weights(path)
    file = weights_path(path, last)
    if file.name != BEST_FILE or file == path:
        return f"weights: {file}"
    return f"weights: {file} (of the run's best evaluation; the newest are {WEIGHTS_FILE})"


def known_space(path: Path) -> LabelSpace:
    """The label space of a weights file or run directory. Raises `UserError` if it is none."""
    return read_card(path).space
