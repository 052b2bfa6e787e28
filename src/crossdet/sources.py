"""Config -> indexes of all splits and their label space. No torch: `crossdet check` starts with this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdet.config import Config, DatasetConfig, SplitConfig, UnionTestConfig
from crossdet.data.index import Index
from crossdet.data.reading import SplitFiles, read_split
from crossdet.data.rotation import rotated
from crossdet.errors import LabelError, UserError, problem_list
from crossdet.evaluation.wider_face_lists import WiderFaceLists, read_wider_face_truth
from crossdet.label_edits import grown
from crossdet.label_members import with_members
from crossdet.labels import LabelSpace, check_class_names

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Sources:
    """Everything that is read before training. `train` and `val` hold the datasets that have such a split.

    lists: WIDER FACE's easy, medium and hard faces, of the datasets that name them (`val.lists`).
    """

    space: LabelSpace
    train: dict[str, Index]
    val: dict[str, Index]
    lists: dict[str, WiderFaceLists]


def open_sources(
    config: Config,
    splits: Sequence[str] = SPLITS,
    known: LabelSpace | None = None,
    detector: LabelSpace | None = None,
) -> Sources:
    """Reads the splits and merges the labels.

    The label rules speak of all datasets, also of those that have none of the wanted `splits`: their class names
    come from the trained label space, if there is one, else from their training files.
    known: a label space that the config's datasets and rules extend (`label_edits.grown`), instead of a new one.
    detector: that of a detector which is to be scored. The config is read as one that extends it, so that an
    extension's own config can be used; where it contradicts the detector, by itself.

    Raises `UserError` with the mistakes of all datasets; label rules are looked at once all files are readable.
    """
    found: dict[str, dict[str, Index]] = {split: {} for split in SPLITS}
    lists: dict[str, WiderFaceLists] = {}
    problems: list[str] = []
    for name, dataset in config.datasets.items():
        for split in splits:
            given = getattr(dataset, split)
            if given is None:
                continue
            try:
                index = open_split(dataset, split, given)
            except UserError as error:
                problems.append(f"datasets.{name}.{split}: {_indented(str(error))}")
            else:
                found[split][name] = share_of(index, dataset) if split == "train" else index
            if isinstance(given, SplitConfig) and given.lists is not None:
                try:
                    lists[name] = read_wider_face_truth(given.lists)
                except UserError as error:
                    problems.append(f"datasets.{name}.{split}.lists: {_indented(str(error))}")
    if problems:
        raise UserError(problem_list(f"{len(problems)} split(s) cannot be read", problems))
    trained = known or detector
    names: dict[str, Sequence[str]] = {} if trained is None else dict(classes_of(trained))
    for name, dataset in config.datasets.items():
        if "train" not in splits and name not in names and dataset.train is not None:
            with suppress(UserError):  # the training files need not be here; then the other split has to do
                names[name] = open_split(dataset, "train", dataset.train).classes
    if detector is None:
        space = build_space(config, found["train"], found["val"], names, known)
    else:
        space = _space_to_score(config, found["train"], found["val"], names, detector)
    train, val = (
        {name: turned(index, config.datasets[name], split) for name, index in found[split].items()}
        for split in SPLITS
    )
    return Sources(space, train, val, lists)


def turned(index: Index, dataset: DatasetConfig, split: str) -> Index:
    """The pictures in the directions that the config wants, with the classes of these."""
    wanted = dataset.directions if split == "train" else dataset.val_directions
    classes = dataset.directions if dataset.direction_classes else None
    if wanted is None and classes is None:
        return index
    return rotated(index, wanted or (0,), dataset.direction_box, classes)


def classes_of(space: LabelSpace) -> dict[str, list[str]]:
    """Dataset -> its own class names, of a label space; without directions."""
    found = {}
    for row, (name, sources) in enumerate(zip(space.datasets, space.sources, strict=True)):
        end = f"@{space.directions[row][0]}" if row in space.directions else ""
        found[name] = [source.removesuffix(end) for source in sources if source.endswith(end)]
    return found


def open_split(dataset: DatasetConfig, split: str, given: SplitConfig | Index) -> Index:
    """The index of one split: read from its files (through the cache), or as handed over from Python."""
    if isinstance(given, Index):
        return given
    assert dataset.format is not None  # checked by the config
    return _read(dataset.format, given, split, dataset.classes, dataset.edition)


def union_test_index(given: UnionTestConfig | Index) -> Index:
    """The fully labelled images of a config; `UserError` where their files cannot be read."""
    if isinstance(given, Index):
        return given
    return _read(given.format, given, "union_test", given.classes, given.edition)


def _read(
    format_name: str, given: SplitConfig, split: str, classes: tuple[str, ...] | None, edition: int | None
) -> Index:
    files = SplitFiles(
        annotations=given.annotations,
        images=given.images,
        image_set=tuple(str(name) for name in given.image_set),
        ignore=given.ignore,
        split=split,
        classes=classes,
        edition=edition,
    )
    return read_split(format_name, files)


def build_space(
    config: Config,
    train: dict[str, Index],
    val: dict[str, Index],
    known_classes: Mapping[str, Sequence[str]],
    known: LabelSpace | None = None,
) -> LabelSpace:
    """Label space of the config over the classes that the indexes bring, or that are known without them; what
    becomes of `known` by them, where it is given."""
    classes: dict[str, Sequence[str]] = {}
    federated = []
    for name, dataset in config.datasets.items():
        indexes = [split[name] for split in (train, val) if name in split]
        if name not in train and name in known_classes:
            classes[name] = known_classes[name]
        elif indexes:
            classes[name] = indexes[0].classes
        else:
            continue
        for index in indexes:
            check_class_names(name, classes[name], index.classes, f"datasets.{name}.val")
        said = dataset.federated
        if said or (said is None and any(index.federated for index in indexes)):
            federated.append(name)
    rules: dict[str, Any] = {key: getattr(config.labels, key) for key in type(config.labels).model_fields}
    per_dataset, open_members = rules.pop("per_dataset"), rules.pop("open_members")
    directions = {
        name: dataset.directions
        for name, dataset in config.datasets.items()
        if name in classes and dataset.directions is not None and dataset.direction_classes
    }
    if known is not None:
        if known.folds or per_dataset or directions:
            raise UserError(
                "a detector with `direction_classes` or `labels.per_dataset` cannot be extended, nor can one be "
                "extended by them; train it anew"
            )
        return grown(known, classes, federated=federated, **rules)
    space = LabelSpace.build(classes, federated=federated, **rules)
    return with_members(space, per_dataset, directions, open_members)


def _space_to_score(
    config: Config,
    train: dict[str, Index],
    val: dict[str, Index],
    known_classes: Mapping[str, Sequence[str]],
    detector: LabelSpace,
) -> LabelSpace:
    """Label space of a config that a detector is scored on; see `open_sources`."""
    directions = any(d.directions and d.direction_classes for d in config.datasets.values())
    if detector.folds or config.labels.per_dataset or directions:  # such label spaces cannot grow
        return build_space(config, train, val, known_classes)
    try:
        return build_space(config, train, val, known_classes, detector)
    except LabelError as error:
        try:
            return build_space(config, train, val, known_classes)
        except LabelError:
            raise error from None


def share_of(index: Index, dataset: DatasetConfig) -> Index:
    """The training images that `part` of the config leaves."""
    if dataset.part_of is None:
        return index
    remainder, divisor = dataset.part_of
    return index.take(np.arange(remainder, len(index), divisor, dtype=np.int64))


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
