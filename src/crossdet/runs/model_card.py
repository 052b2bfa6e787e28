"""The README.md of a detector on the hub of Hugging Face: what it is, learnt from what, how good, how to load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import yaml

from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.tables import percent
from crossdet.labels.space import LabelSpace
from crossdet.labels.states import ABSENT, AVOIDED, LABELLED, NOT_EXHAUSTIVE, PER_IMAGE, state_of
from crossdet.models.card import Card

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
WORDS = {
    LABELLED: "labelled",
    NOT_EXHAUSTIVE: "in part",
    PER_IMAGE: "by image",
    AVOIDED: "avoided",
    ABSENT: "absent",
}


def model_card(
    identifier: str,
    card: Card,
    judged: Mapping[str, Any],
    recipe: Sequence[str] = (),
    licence: str = "unknown",
    for_transformers: bool = False,
) -> str:
    """Markdown with a YAML head; names of classes and datasets are shown as they are, whatever is in them, and the
    text alone has those of the datasets.

    judged: metrics of an evaluation, empty where there was none; then the scores that the weights keep are shown.
    recipe: lines about the training. for_transformers: HF transformers opens the checkpoint.
    """
    space = card.space
    head = {
        "license": licence,
        "library_name": "transformers" if for_transformers else "crossdet",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "crossdet", card.settings.name],
    }  # no `datasets`: what stands there are ids of the hub's own, and a config's `coco` would be linked to one
    network, *more = card.settings.described(space.classes)
    lines = [
        "---",
        yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False).strip(),
        "---",
        f"# {_text(identifier.partition('/')[2])}",
        "",
        f"One object detector for {len(space.reported)} classes, trained by crossdet on {len(space.datasets)} "
        "dataset(s) of which each labels some of them.",
        "",
        *_loading(identifier, for_transformers, card.settings.suppresses),
        "## Training",
        "",
        *(f"- {_text(line)}" for line in (network, *more, *recipe)),
        f"- shorter side of the pictures {card.input.shorter}, longer at most {card.input.longer} pixels",
        *_generations(card),
        "",
        "## Who labels what",
        "",
        *_avoidance(space),
        "",
        "## Scores",
        "",
        *(_scores(judged, card.thresholds) if judged.get("datasets") else _kept_scores(card)),
    ]
    return "\n".join(lines) + "\n"


def _text(name: str) -> str:
    """A name as Markdown shows it: on one line, without HTML, and nothing in it is taken for Markdown."""
    return _SPECIAL.sub(r"\\\1", escape(" ".join(name.split()), quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Cells are Markdown already."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _loading(identifier: str, for_transformers: bool, suppresses: bool) -> Iterator[str]:
    yield from ("```python", "from crossdet import load_detector", "")
    yield from (f'detector = load_detector("hf://{identifier}")', 'print(detector("street.jpg"))', "```", "")
    yield from ("```sh", f"crossdet predict hf://{identifier} images/", "```", "")
    if for_transformers:
        yield from ("```python", "from transformers import pipeline", "")
        yield from (f'pipeline("object-detection", "{identifier}")("street.jpg")', "```", "")
        yield "transformers knows no thresholds and no merged classes; crossdet has them from `crossdet.json`."
        if suppresses:
            yield "Nor does it leave out an object's second find, as crossdet does: use non-maximum suppression."
        yield ""


def _generations(card: Card) -> Iterator[str]:
    for number, generation in enumerate(card.generations):
        on = "; ".join(f"{_text(name)} ({', '.join(map(_text, own))})" for name, own in generation.datasets.items())
        more = [f"crossdet {generation.version}"] if generation.version else []
        more += [f"from the weights {generation.parent[:12]}"] if generation.parent else []
        why = f" ({', '.join(more)})" if more else ""
        done = "; ".join(map(_text, generation.edits))
        yield f"- generation {number}, {_text(generation.mode)}{why}: {on or done or 'no data'}"


def _avoidance(space: LabelSpace) -> Iterator[str]:
    rows = [
        [_text(name), *(WORDS[state_of(space, k, c)] for k in range(len(space.datasets)))]
        for c, name in enumerate(space.classes)
    ]
    yield from _table(["class", *map(_text, space.datasets)], rows)
    yield ""
    for fold in space.folds:
        members = ", ".join(_text(space.classes[member]) for member in fold.members)
        yield from (f"{_text(fold.name)}: what is found as any of {members} is reported as this one class.", "")
    yield (
        "avoided: the dataset does not label the class, so its background was no negative for it. absent: known "
        "not to occur, so it was one. in part: its boxes count, its background does not. by image: every "
        "picture says which classes were looked for."
    )


def _scores(judged: Mapping[str, Any], thresholds: Mapping[str, float]) -> Iterator[str]:
    """Every dataset by its own protocols, then the classes by the first of them, in percent."""
    datasets, classes = [], []
    for name, first in judged["datasets"].items():
        for record in [first, *first.get("further", {}).values()]:
            shown = PROTOCOLS[record["protocol"]].columns(record)
            text = ", ".join(f"{label} {percent(value)}" for label, value in shown)
            datasets.append([_text(name), record["protocol"], str(first["images"]), text])
        protocol = PROTOCOLS[first["protocol"]]
        for own in first["per_class"]:
            threshold = thresholds.get(own)
            value = f"{protocol.number} {percent(protocol.class_number(first, own))}"
            classes.append([_text(own), _text(name), value, "-" if threshold is None else f"{threshold:.2f}"])
    yield "On validation data, which also chose the best weights and the thresholds; in percent."
    yield ""
    yield from _table(["dataset", "protocol", "pictures", "scores"], datasets)
    yield ""
    yield from _table(["class", "dataset", "score", "reported from a score of"], classes)


def _kept_scores(card: Card) -> Iterator[str]:
    scores = next((one.scores for one in reversed(card.generations) if one.scores), ())
    if not scores:
        yield "None were computed."
        return
    rows = [[_text(s.name), _text(s.dataset), f"{_text(s.number)} {percent(s.value)}"] for s in scores]
    yield from _table(["class", "dataset", "score"], rows)
