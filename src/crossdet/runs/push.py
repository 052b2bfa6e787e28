"""`crossdet push`: a detector with its model card to the hub of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crossdet.config import CONFIG_FILE
from crossdet.errors import RunError, UserError
from crossdet.files import write_atomically
from crossdet.models.card import CARD_FILE, is_exported, read_card
from crossdet.models.hub import FILES, identifier
from crossdet.models.weights import METRICS_FILE
from crossdet.runs.hugging_face import write_directory
from crossdet.runs.model_card import model_card
from crossdet.runs.report import read_run

README = "README.md"


def push(
    run: Path,
    to: str,
    licence: str = "unknown",
    private: bool = False,
    dry_run: Path | None = None,
    last: bool = False,
    api: Any = None,
) -> dict[str, Any]:
    """Uploads the directory that `write_hub_directory` makes; returns id, address and files.

    to: `OWNER/NAME`, with or without `hf://`. private: of a repository that is made; one that others can see is not
    written into then. dry_run: the directory is written there, and nothing is uploaded. api: a
    `huggingface_hub.HfApi`; None = one with the token of `hf auth login`.

    Raises:
        UserError: no id, no token, no weights.
        RunError: the hub refuses, or cannot be reached.
    """
    name = identifier(to)
    if name is None:
        raise UserError(f"--to {to}: no id of the hub; expected OWNER/NAME, such as me/street-scenes")
    if is_exported(run):
        raise UserError(f"{run} is exported already; give the run or the weights that it was made of")
    if dry_run is None and api is None:
        api = _signed_in()
    with _directory(dry_run) as directory:
        files = write_hub_directory(run, directory, name, licence, last)
        sizes = {file.name: file.stat().st_size for file in files}
        url = None if dry_run is not None else _upload(api, name, directory, private)
    return {"id": name, "url": url, "directory": None if dry_run is None else str(dry_run), "files": sizes}


def write_hub_directory(
    run: Path, directory: Path, name: str, licence: str = "unknown", last: bool = False
) -> list[Path]:
    """A checkpoint for HF transformers with crossdet's rules beside it, where transformers has such networks, else
    crossdet's weights file; and README.md. name: `OWNER/NAME`. Returns the files.

    run: a run directory, whose scores the card shows, or weights, which keep one score per class. Raises as
    `hugging_face.write_directory`.
    """
    judged: Any = {}
    recipe: tuple[str, ...] = ()
    if run.is_dir() and (run / CONFIG_FILE).exists() and (run / METRICS_FILE).exists():
        record = read_run(run)
        record = replace(record, best_epoch=None) if last else record
        judged, recipe = record.judged, tuple(record.recipe)
    written = write_directory(run, directory, last, or_own=True)
    for_transformers = any(one.name == CARD_FILE for one in written)
    text = model_card(name, read_card(run, last), judged, recipe, licence, for_transformers)
    write_atomically(directory / README, text.encode(errors="replace"))
    return [*written, directory / README]


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="crossdet-push-") as made:
        yield Path(made)


def _signed_in() -> Any:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError("no token of the hub is known here: run `hf auth login` first, or set HF_TOKEN")
    return HfApi()


def _upload(api: Any, name: str, directory: Path, private: bool) -> str:
    """The address. What crossdet would take from there and this upload does not bring is removed: a `config.json`
    of another network would be taken for this one's."""
    try:
        api.create_repo(name, private=private, exist_ok=True)
        visible = private and not api.repo_info(name).private
        if not visible:
            api.upload_folder(
                repo_id=name, folder_path=directory, commit_message="crossdet push", delete_patterns=list(FILES)
            )
    except Exception as error:  # the hub raises what the network does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{name} could not be uploaded to the hub ({reason})") from None
    if visible:
        raise UserError(f"--private: {name} is there already and public; make it private there, or give another id")
    return f"https://huggingface.co/{name}"
