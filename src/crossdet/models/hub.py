"""Checkpoints of the Hugging Face hub in place of weights: fetched as data, never as code. No torch."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from crossdet.data.cache import cache_root
from crossdet.errors import UserError

CONFIG, WEIGHTS, INDEX, PROCESSOR = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
)
ALL_PROCESSORS = "processor_config.json"
"""With `PROCESSOR` under `image_processor`, as newer versions of HF transformers write it."""
CARD_FILE = "crossdet.json"
"""What weights say about themselves, beside a checkpoint that other software reads, too (`write_directory`)."""
FILES = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors", PROCESSOR, ALL_PROCESSORS, CARD_FILE)
"""All that is fetched: no pickles, and no Python."""
SCHEME = "hf:"
LFS = b"version https://git-lfs"
_STEPS = re.compile(r"checkpoint-(\d{1,18})")
_CACHED = re.compile(r"models--(?:.+?--)?(.+)")
_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")
_OF_FILES = frozenset({".yaml", ".yml", ".json", ".safetensors", ".pt", ".pth", ".bin", ".onnx", ".xml"})


def fetched(weights: Path | str) -> Path:
    """Weights as a command was given them, or a config names them; an id of the hub becomes the directory with its
    files. A `str` is an id (`hub_id`). Raises `UserError` where it cannot be fetched.
    """
    text = weights if isinstance(weights, str) else weights.as_posix()
    named = identifier(text) if isinstance(weights, str) else hub_id(text, weights)
    if named is None:
        return Path(weights)
    explicit = text.startswith(SCHEME)
    return fetch(named, f"hf://{named}" if explicit else f"{text} does not exist here, and as an id of the hub it")


def hub_id(text: str, path: Path) -> str | None:
    """The `OWNER/NAME` that a text means; None where it means the path that it would be.

    `hf://owner/name` is an id, and `owner/name` where neither that path nor its folder exists. Raises `UserError`
    for `hf://` before something else.
    """
    named = identifier(text)
    if text.startswith(SCHEME):
        if named is None:
            given = f"{SCHEME}//{text.removeprefix(SCHEME).lstrip('/')}"  # a path has lost one of the two
            raise UserError(
                f"{given} is no id of the hub; expected hf://OWNER/NAME, such as hf://ustc-community/dfine-small-coco"
            )
        return named
    return None if path.exists() or path.parent.exists() or path.suffix.lower() in _OF_FILES else named


def identifier(text: str) -> str | None:
    """`OWNER/NAME` of it, with or without `hf://`; None where it is no id."""
    match = _ID.fullmatch(re.sub(f"^{SCHEME}/+", "", text))
    return None if match is None else match[0]


def fetch(identifier: str, said: str) -> Path:
    """The directory of a checkpoint of the hub, named like it. said: subject of the sentence where that fails."""
    from huggingface_hub import snapshot_download  # loads httpx, for which `check` has no time

    folder = _cached() / identifier
    fetched_before = folder.is_dir()
    try:
        snapshot_download(identifier, local_dir=folder, allow_patterns=list(FILES))
    except Exception as error:  # the hub raises what the network does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{said} could not be fetched from the hub ({reason}); give a local directory with its {CONFIG}, "
            f"{WEIGHTS} and {PROCESSOR}, such as `hf download {identifier} --local-dir DIR` makes"
        ) from None
    if fetched_before:
        _remove_gone(folder, identifier)
    return folder


def _remove_gone(folder: Path, identifier: str) -> None:
    """Files of an earlier fetch that the hub has no longer: a `CARD_FILE` would speak of other weights."""
    from huggingface_hub import list_repo_files

    with suppress(Exception):  # offline; then what is there was fetched together
        listed = set(list_repo_files(identifier))
        for file in [file for pattern in FILES for file in folder.glob(pattern)]:
            if file.name not in listed:
                file.unlink()


def checkpoint_name(directory: Path) -> str:
    """What the checkpoint in a directory is called: like the repository where it is a snapshot in the hub's cache,
    like the folder around where it is one of several of HF's Trainer, else like the directory."""
    place = directory.resolve()
    above = place.parent
    if above.name == "snapshots" and (cached := _CACHED.fullmatch(above.parent.name)):
        return cached[1]
    return (above.name if _STEPS.fullmatch(place.name) else "") or place.name


def example_in(folder: Path) -> str:
    """Which of the folders in this one was likely meant as weights, as the end of a message; empty without any.

    It is the snapshot that `main` of a cached repository names, the one of the most steps of HF's Trainer
    (`checkpoint-1000`), else the newest.
    """
    places = (folder.glob(f"{at}/{name}") for at in ("*", "snapshots/*") for name in (WEIGHTS, INDEX))
    found = {file.parent for files in places for file in files}
    if not found:
        return ""
    named = None
    with suppress(OSError, ValueError):
        named = (folder / "refs" / "main").read_text().strip()

    def rank(place: Path) -> tuple[bool, int, float]:
        steps = _STEPS.fullmatch(place.name)
        return place.name == named, int(steps[1]) if steps else -1, place.stat().st_mtime

    return f", such as {max(found, key=rank)}{f' (the newest of {len(found)} there)' if len(found) > 1 else ''}"


def unreadable(weights: Path, reason: object) -> UserError:
    """For a file of weights that cannot be read; one that Git LFS has not fetched is told as that."""
    with suppress(OSError), weights.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return UserError(
                f"{weights} is a pointer of Git LFS in place of the weights; `git lfs pull` in its folder fetches "
                f"them, or `hf download OWNER/NAME --local-dir DIR` all files"
            )
    return UserError(f"weights file {weights} cannot be read: {reason}")


def results_folder(weights: Path) -> Path:
    """Where commands write what they find out where nothing is said: into a run, beside a weights file, and of what
    was fetched into the current folder."""
    if _cached() in weights.parents:
        return Path()
    return weights if weights.is_dir() else weights.parent


def _cached() -> Path:
    return cache_root() / "hub"
