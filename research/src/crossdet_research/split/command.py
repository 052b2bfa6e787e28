"""`crossdet-research split`: the command line of `crossdet_research.split.plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crossdet.commands.terminal import JsonFile, out, say
from crossdet.errors import UserError, problem_list
from crossdet_research.study import Several, argument, option

if TYPE_CHECKING:
    from crossdet.config import Config
    from crossdet.data.index import Index


def split(
    config: Annotated[Path, argument("CONFIG", "YAML config with a dataset that is labelled in full")],
    part: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=CLASS,...",
            help="a part and the classes it labels (names, or patterns such as white_*); at least two",
        ),
    ],
    output: Annotated[Path, option("--output", "DIR", "where to write", "-o")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="which dataset of the config, if it has several")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="share of the training images that is in every part")
    ] = 0.0,
    conflict: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="share of each part's images that show an object it does not label; 1: as the data come",
        ),
    ] = 1.0,
    conflict_by: Annotated[
        Literal["choose", "erase", "mark"],
        typer.Option(
            help="lower conflict by moving images between parts, by painting over what is not labelled, or by "
            "marking it as regions that naive training avoids"
        ),
    ] = "choose",
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="training images per part (default: all images are used)")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX|FILE",
            help="keep pictures together: a regular expression with one group on their paths, or a .csv/.json file",
        ),
    ] = None,
    look: Annotated[
        Several,
        typer.Option(
            metavar="PART=LOOK", help="grey_dark, warm, cold, faded, blur_noise or none for a part's pictures"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
    overrides: Annotated[Several, option("--set", "KEY=VALUE", "override a config value")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the split in the output directory")] = False,
    json_file: JsonFile = None,
) -> None:
    """Make partially labelled datasets out of one that is labelled in full, and configs to compare on them.

    Example: crossdet-research split bccd.yaml --part red=RBC --part white=WBC,Platelets --output halves
    """
    from crossdet.config import load_config
    from crossdet.data.groups import group
    from crossdet.files import write_json
    from crossdet_research.split.configs import recipe
    from crossdet_research.split.files import write_split
    from crossdet_research.split.plan import split_dataset

    loaded = load_config(config, overrides or [])
    parts, looks = _given("--part", "NAME=CLASS,...", part), _given("--look", "PART=LOOK", look or [])
    name = _dataset_name(loaded, dataset)
    train, val = _open(loaded, name)
    given = group_by or loaded.datasets[name].group_by
    groups = None if given is None else group(train, given)
    plan = split_dataset(
        train,
        val,
        {p: [c.strip() for c in classes.split(",") if c.strip()] for p, classes in parts.items()},
        looks=looks,
        share=share,
        conflict=conflict,
        method=conflict_by,
        images=images,
        seed=seed,
        groups=groups,
    )
    record = write_split(plan, output, recipe(loaded), loaded.datasets[name].protocol, overwrite)
    _print(record, output, name)
    if groups is not None:
        say(f"kept together: {groups}")
    if json_file is not None:
        write_json(json_file, record)


def _given(option: str, wanted: str, texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` of a repeated option."""
    found: dict[str, str] = {}
    problems = []
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not name or not equals or not value:
            problems.append(f"{option} {text}: expected {wanted}")
        elif name in found:
            problems.append(f"{option} {text}: {name} is given twice")
        found.setdefault(name, value)
    if problems:
        raise UserError(problem_list(f"split: {len(problems)} mistake(s)", problems))
    return found


def _dataset_name(config: Config, wanted: str | None) -> str:
    from crossdet.labels.rules import unknown

    if wanted is not None and wanted not in config.datasets:
        raise UserError(f"--dataset: {unknown('dataset', wanted, list(config.datasets))}")
    both = [name for name, one in config.datasets.items() if one.train is not None and one.val is not None]
    name = wanted or (both[0] if len(both) == 1 else None)
    if name is None:
        known = ", ".join(both) or "none"
        raise UserError(
            f"--dataset: which one? With a `train` and a `val` split the config has {known}; split needs both"
        )
    if name not in both:
        raise UserError(f"datasets.{name}: split needs a `train` and a `val` split")
    return name


def _open(config: Config, name: str) -> tuple[Index, Index]:
    """Both splits, as a training of the config has them. The parts are files of COCO, which knows no difficult
    objects: they are regions where the config avoids them, and in what is judged."""
    from crossdet.config.sources import share_of, whole_split

    dataset, indexes, problems = config.datasets[name], {}, []
    ignored = dataset.difficult == "ignore"
    for split_name in ("train", "val"):
        try:
            index = share_of(whole_split(dataset, split_name), dataset, split_name)
            indexes[split_name] = _without_difficult(index) if ignored or split_name == "val" else index
        except UserError as error:
            problems.append(f"datasets.{name}.{split_name}: " + str(error).replace("\n", "\n    "))
    if problems:
        raise UserError(problem_list(f"{len(problems)} split(s) cannot be read", problems))
    return indexes["train"], indexes["val"]


def _without_difficult(index: Index) -> Index:
    from dataclasses import replace

    import numpy as np

    from crossdet.types import Flag

    difficult = (index.flags & int(Flag.DIFFICULT)) != 0
    return replace(index, flags=index.flags | np.where(difficult, np.uint8(Flag.IGNORE_REGION), np.uint8(0)))


def _print(record: dict[str, Any], folder: Path, name: str) -> None:

    from crossdet.evaluation.tables import lineless_table

    columns = ("part", "look", "images", "conflict", "labelled", "not labelled")
    table = lineless_table(*columns, left=len(columns), padding=(0, 2))
    for number in table.columns[2:4]:
        number.justify = "right"
    for part, row in record["parts"].items():
        conflict = f"{row['conflict']:.3f} ({row['conflict_images']})"
        labelled = ", ".join(f"{c} {n}" for c, n in row["boxes_labelled"].items())
        missing = ", ".join(f"{c} {n}" for c, n in row["boxes_unlabelled"].items())
        cells = (part, row["look"], str(row["images"]), conflict, labelled, missing or "-")
        table.add_row(*cells)
    out.print(table, highlight=False)
    lines = [
        f"{name}: {record['train_images']} training images, {record['unused_images']} unused, "
        f"{record['images_in_every_part']} in every part; {record['val_images']} test images",
        f"conflict (images that show an object which is not labelled): {record['conflict']:.3f} of all",
    ]
    if erased := sum(row["erased_images"] for row in record["parts"].values()):
        boxes = sum(row["boxes_erased"] for row in record["parts"].values())
        lines.append(f"painted over: {boxes} objects in {erased} images")
    if marked := sum(row.get("marked_images", 0) for row in record["parts"].values()):
        boxes = sum(row["boxes_marked"] for row in record["parts"].values())
        lines.append(f"marked: {boxes} objects in {marked} images (naive.yaml avoids them)")
    lines.append(f"{folder}  (aware.yaml, naive.yaml, same_positives.yaml, full.yaml, expert_*.yaml, split.json)")
    for line in lines:
        say(line)
