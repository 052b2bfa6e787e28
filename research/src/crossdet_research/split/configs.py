"""The configs that `crossdet-research split` writes: one training each, all with the same recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from crossdet.config import Config
from crossdet.training.recipe import Recipe
from crossdet_research.split.plan import Part, SplitPlan

SECTIONS = ("model", "loss", "input", "augment", "train", "eval")
PLACES = "place of no class"
"""Class of the boxes in `train_naive.json` that mark places where objects of any class may be."""
_WHAT = {
    "aware": "Dataset-aware: the background of a part is no negative for what the part does not label.",
    "naive": "Naive concatenation: all background is a negative for every class.",
    "same_positives": (
        "Reference: the positives of aware.yaml, and all its background trusted; what a part does not label is\n"
        "# a region of its class. What knowing the places of the missing labels would be worth."
    ),
    "full": "Reference: all labels.",
}


def recipe(config: Config) -> dict[str, Any]:
    """The sections of a config that say how is trained, and the seed, as plain values for a YAML file."""
    # exclude_unset and not exclude_defaults: steps that are given and equal the default are no default under
    # another number of epochs
    sections = {name: getattr(config, name).model_dump(mode="json", exclude_unset=True) for name in SECTIONS}
    return {**{name: values for name, values in sections.items() if values}, "seed": config.seed}


def write_configs(plan: SplitPlan, folder: Path, sections: Mapping[str, Any], protocols: Sequence[str]) -> None:
    """aware, naive, same_positives, full and one expert per part. Paths are relative to the folder."""
    names = [name for part in plan.parts for name in part.classes]
    shared = len(names) != len(set(names))  # some class is labelled in several parts
    for method in _WHAT:
        _write(
            folder,
            method,
            _WHAT[method],
            _config(plan.parts, method, sections, protocols, shared, _naive_files(plan)),
        )
    total = sum(len(part.images) for part in plan.parts)
    for part in plan.parts:
        what = f"Expert: the part {part.name} alone.{_same_steps(sections, total / len(part.images))}"
        method = f"expert_{part.name}"
        _write(folder, method, what, _config([part], method, sections, protocols, shared=False))


def _naive_files(plan: SplitPlan) -> dict[str, str]:
    """Part -> what naive training reads of it: with `PLACES`, where there are regions of no class in particular.
    As regions of the part's own classes they would be negatives for those of the others."""
    if plan.method == "mark":
        return {part.name: "train_marked" for part in plan.parts}
    return {part.name: "train_naive" if plan.has_places(part) else "train" for part in plan.parts}


def _config(
    parts: Sequence[Part],
    method: str,
    sections: Mapping[str, Any],
    protocols: Sequence[str],
    shared: bool,
    naive: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    train, val = {"full": ("train_full", "val_full"), "same_positives": ("train_same_positives", "val_full")}.get(
        method, ("train", "val")
    )
    files = {part.name: naive.get(part.name, train) if method == "naive" else train for part in parts}
    # the protocols of faces and pedestrians read more than COCO files hold
    scored = [name for name in protocols if name in ("coco", "voc")] or ["coco"]
    content: dict[str, Any] = {
        "datasets": {
            part.name: {
                "format": "coco",
                "protocol": list(scored),
                "train": {"images": "images", "annotations": f"{part.name}/{files[part.name]}.json"},
                "val": {"images": "images", "annotations": f"{part.name}/{val}.json"},
            }
            for part in parts
        }
    }
    for name in (name for name, file in files.items() if file == "train_naive"):
        content["datasets"][name]["ignore_classes"] = [PLACES]
    if shared or val == "val_full" or "train_marked" in files.values():
        content["labels"] = {"merge": {"same_names": True}}
    content |= {name: dict(sections[name]) for name in SECTIONS if sections.get(name)}
    content["train"] = {**content.get("train", {}), "plain": method == "naive"}
    content["union_test"] = {"format": "coco", "images": "images", "annotations": "test/all.json"}
    content["seed"] = sections.get("seed", 0)
    content["output"] = f"runs/{method}"
    return content


def as_many_steps(train: Recipe, factor: float) -> list[str]:
    """Overrides that stretch the schedule `factor` times: an expert sees fewer images, so fewer steps per epoch.
    None where the length is not given in epochs."""
    if train.max_steps is not None or train.epochs is None:
        return []
    words = [f"train.epochs={round(train.epochs * factor)}"]
    if train.steps is not None:
        words.append(f"train.steps={[round(step * factor, 4) for step in train.steps]}")
    if train.warmup_epochs is not None:
        words.append(f"train.warmup_epochs={round(train.warmup_epochs * factor, 4)}")
    return words


def _same_steps(sections: Mapping[str, Any], factor: float) -> str:
    """The lines that say how an expert gets as many optimiser steps as the others; "" where it has them."""
    words = as_many_steps(Recipe(**sections.get("train", {})), factor)
    if not words:
        return ""
    shown = " ".join(f"--set '{word}'" if " " in word else f"--set {word}" for word in words)
    return f"\n# Fewer images, so fewer optimiser steps; as many as the others:\n#   {shown}"


def _write(folder: Path, name: str, what: str, content: Mapping[str, Any]) -> None:
    head = f"# {what}\n#\n#   crossdet train {name}.yaml     (written by crossdet-research split)\n"
    body = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(head + body)
