"""Config -> indexes of all splits and their label space. No torch: `crossdet check` starts with this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.config import Config, DatasetConfig, SplitConfig, UnionTestConfig
from crossdet.config.listed_only import ListedOnly, without_box
from crossdet.config.mistakes import suggest
from crossdet.config.schema import ALL_SPLITS, SPLITS
from crossdet.data.formats.format import SplitFiles
from crossdet.data.groups import drawn, group, short_names
from crossdet.data.ignored import with_regions
from crossdet.data.index import NO_LABELS, Index
from crossdet.data.reading import read_split
from crossdet.data.rotation import pictures, rotated
from crossdet.errors import LabelError, UserError, problem_list
from crossdet.evaluation.protocols import lists_of
from crossdet.labels.common import COMMON, with_common_names
from crossdet.labels.edits import grown
from crossdet.labels.members import with_members
from crossdet.labels.patterns import Expansion, class_name, expanded, expanded_names
from crossdet.labels.rules import LabelRules, quoted
from crossdet.labels.space import LabelSpace, check_class_names
from crossdet.models.hub import FILES

Built = tuple[LabelSpace, tuple[Expansion, ...]]
"""A label space, and what the patterns of its rules stand for."""


@dataclass(frozen=True)
class Sources:
    """Everything that is read before training. `train`, `val` and `test` hold the datasets that have such a split,
    where it was asked for.

    lists: WIDER FACE's easy, medium and hard faces, of the datasets whose split names them (`val.lists`).
    listed_only: classes that a dataset lists without a box of them while others have boxes, and the label rules do
        not say what that means: their background would be a negative, in training or in thresholds.
    labelled: dataset -> those of its own classes that it has boxes of.
    patterns: what those of the label rules stand for.
    apart: why the config of a detector that is scored says by itself what its datasets label, and not on top of
        what the detector was trained with; empty where it does not.
    known: the label space of the weights that are extended; `space` is grown from it.
    """

    space: LabelSpace
    train: dict[str, Index]
    val: dict[str, Index]
    lists: dict[str, Any]
    listed_only: tuple[ListedOnly, ...] = ()
    labelled: Mapping[str, Collection[str]] = field(default_factory=dict)
    patterns: tuple[Expansion, ...] = ()
    apart: str = ""
    known: LabelSpace | None = None
    test: dict[str, Index] = field(default_factory=dict)

    @property
    def labelled_names(self) -> dict[str, Collection[str]]:
        """`labelled` as far as the label space knows the classes by their own names, without directions."""
        rotated = {self.space.datasets[row] for row in self.space.directions}
        return {name: own for name, own in self.labelled.items() if name not in rotated}

    @property
    def without_box(self) -> bool:
        """There is something to train on, and no object in it."""
        return bool(self.train) and not any(index.is_object.any() for index in self.train.values())

    @property
    def train_pictures(self) -> int:
        """Pictures of all training splits, those of an epoch: one of several directions counts once."""
        return sum(len(pictures(index)) for index in self.train.values())


def only_tests(dataset: DatasetConfig) -> bool:
    return dataset.train is None and dataset.val is None


def named_splits(sources: Sources) -> dict[str, Index]:
    """All splits as `dataset.split`, the name that messages use."""
    return {f"{name}.{split}": index for split in ALL_SPLITS for name, index in getattr(sources, split).items()}


PLACES = ("images", "annotations", "image_set", "ignore", "lists")
"""Keys of a split that say where its files are."""


def inputs_of(config: Config) -> Iterator[Path]:
    """Files and folders that the config reads from, resolved: nothing may be written over them."""
    splits = [getattr(dataset, split) for dataset in config.datasets.values() for split in ALL_SPLITS]
    for given in (*splits, config.union_test):
        for key in PLACES:
            value = getattr(given, key, None)
            paths = value if isinstance(value, tuple) else (value,)
            yield from (path.resolve() for path in paths if isinstance(path, Path))
    if isinstance(config.model.weights, Path):
        yield config.model.weights.resolve()
        yield from (config.model.weights.resolve() / name for name in FILES)


def check_split(config: Config, split: str) -> None:
    """Raises `UserError` where there is nothing to look at."""
    if split not in ALL_SPLITS:
        raise UserError(f"split: expected one of {', '.join(ALL_SPLITS)}, got {split!r}")
    there = [one for one in ALL_SPLITS if any(getattr(d, one) is not None for d in config.datasets.values())]
    if split not in there:
        other = next((one for one in ("val", "train", "test") if one in there), None)
        hint = f"; `--split {other}` looks at its other pictures" if other else ""
        raise UserError(f"no dataset of the config has a `{split}` split{hint}")


NO_BOX = "the training splits hold no object (crowds and other regions are none), so there is nothing to learn"


def open_sources(
    config: Config,
    splits: Sequence[str] = SPLITS,
    known: LabelSpace | None = None,
    detector: LabelSpace | None = None,
) -> Sources:
    """Reads the splits and merges the labels.

    The label rules speak of all datasets, also of those that have none of the wanted `splits`: their class names
    come from the trained label space, if there is one, else from their training files.
    known: a label space that the config's datasets and rules extend (`labels.edits.grown`), instead of a new one.
    detector: that of a detector which is to be scored. The config is read as one that extends it, so that an
    extension's own config can be used; where it contradicts the detector, by itself.

    Raises `UserError` with the mistakes of all datasets; label rules are looked at once all files are readable.
    """
    found, labelled, lists = _read_splits(config, splits)
    trained = known or detector
    names: dict[str, Sequence[str]] = {} if trained is None else dict(classes_of(trained))
    for name, dataset in config.datasets.items():
        if "train" not in splits and name not in names and dataset.train is not None:
            with suppress(UserError):  # the training files need not be here; then the other split has to do
                index = whole_split(dataset, "train")
                names[name] = index.classes
                labelled.setdefault(name, set()).update(_with_boxes(index))
    build = partial(_build_space, found=found, known_classes=names, labelled=labelled)
    (space, patterns), apart = (
        (build(config, known=known), "") if detector is None else _space_to_score(config, build, detector)
    )
    listed_only = without_box(space, {**found["test"], **found["val"], **found["train"]}, labelled, known)
    train, val, test = (
        {name: _rotated(index, config.datasets[name], split) for name, index in found[split].items()}
        for split in ALL_SPLITS
    )
    return Sources(space, train, val, lists, listed_only, labelled, patterns, apart, known, test)


def _read_splits(
    config: Config, splits: Sequence[str]
) -> tuple[dict[str, dict[str, Index]], dict[str, set[str]], dict[str, Any]]:
    """Split -> dataset -> index, and `labelled` and `lists` of `Sources`; `UserError` with all mistakes."""
    found: dict[str, dict[str, Index]] = {split: {} for split in ALL_SPLITS}
    labelled: dict[str, set[str]] = {}
    lists: dict[str, Any] = {}
    problems: list[str] = []
    given = {
        (name, split): getattr(dataset, split)
        for name, dataset in config.datasets.items()
        for split in splits
        if "train" not in splits or not only_tests(dataset)  # such a dataset is none of the training's
    }
    whole: dict[str, Index] = {}  # of the training split, where `val` is a share of it
    for (name, split), files in given.items():
        dataset = config.datasets[name]
        if isinstance(files, str) and "train" in splits and name not in whole:
            continue  # why it cannot be read was noted
        if files is not None:
            with _noted(problems, f"datasets.{name}.{split}"):
                index = whole[name] if isinstance(files, str) and name in whole else whole_split(dataset, split)
                if dataset.held_out is not None and split != "test":
                    whole[name] = index
                found[split][name] = share_of(index, dataset, split)
                if split != "test" or "train" not in splits:  # what training knows of a dataset is not from there
                    labelled.setdefault(name, set()).update(_with_boxes(index))
        reader = lists_of(dataset.protocol)
        known = split == "test" and name in lists  # those of `val` go first, where both are read
        known |= split == "train" and len(splits) > 1  # then it is not what is judged
        if isinstance(files, SplitConfig) and files.lists is not None and reader is not None and not known:
            with _noted(problems, f"datasets.{name}.{split}.lists"):
                lists[name] = reader.read(files.lists)
    if problems:
        raise UserError(problem_list(f"{len(problems)} split(s) cannot be read", problems))
    return found, labelled, lists


@contextmanager
def _noted(problems: list[str], at: str) -> Iterator[None]:
    """A `UserError` inside becomes one of the problems."""
    try:
        yield
    except UserError as error:
        problems.append(f"{at}: {error}".replace("\n", "\n    "))


def _with_boxes(index: Index) -> set[str]:
    """The index's own classes that have at least one box, regions among them."""
    labels = np.asarray(index.labels)
    return {index.classes[label] for label in np.unique(labels[labels >= 0]).tolist()}


def _rotated(index: Index, dataset: DatasetConfig, split: str) -> Index:
    """The pictures in the directions that the config wants, with the classes of these."""
    wanted = dataset.directions if split == "train" else dataset.val_directions
    if wanted is None and dataset.class_directions is None:
        return index
    difficult = dataset.difficult == "ignore" and split == "train"
    return rotated(index, wanted or (0,), dataset.direction_box, dataset.class_directions, difficult)


def classes_of(space: LabelSpace) -> dict[str, list[str]]:
    """Dataset -> its own class names, of a label space; without directions."""
    found = {}
    for row, (name, sources) in enumerate(zip(space.datasets, space.sources, strict=True)):
        end = f"@{space.directions[row][0]}" if row in space.directions else ""
        found[name] = [source.removesuffix(end) for source in sources if source.endswith(end)]
    return found


def open_split(dataset: DatasetConfig | UnionTestConfig, split: str, given: SplitConfig | Index) -> Index:
    """The index of one split: read from its files (through the cache), or as handed over from Python; its
    `ignore_classes` are regions. Raises `UserError` where the training split, or the only one, lacks one."""
    index = _with_read_names(given if isinstance(given, Index) else _read(dataset, split, given))
    ignored = [class_name(name) for name in dataset.ignore_classes or ()]
    strange = [name for name in ignored if name not in index.classes]
    splits = [name for name in ALL_SPLITS if getattr(dataset, name, None) is not None]
    if strange and (split == "train" or len(splits) < 2):  # beside a training split others may have fewer
        hint = suggest(strange[0], index.classes, "classes")
        raise UserError(f"ignore_classes: it has no class {quoted(strange)}; {hint}")
    return with_regions(index, ignored)


def _with_read_names(index: Index) -> Index:
    """Class names of an index from Python, or of a reader that somebody added, as ours and weights have them; as
    they are where two would become one."""
    names = tuple(map(class_name, index.classes))
    return index if names == index.classes or len({*names}) < len(names) else replace(index, classes=names)


def _read(dataset: DatasetConfig | UnionTestConfig, split: str, given: SplitConfig) -> Index:
    assert dataset.format is not None  # checked by the config
    files = SplitFiles(
        annotations=given.annotations,
        images=given.images,
        image_set=given.image_set,
        ignore=given.ignore,
        split=split,
        classes=None if dataset.classes is None else tuple(class_name(name) for name in dataset.classes),
        edition=dataset.edition,
    )
    return read_split(dataset.format, files)


def whole_split(dataset: DatasetConfig, split: str) -> Index:
    """The index of all pictures that a split of a dataset is taken from, before its shares (`share_of`)."""
    source = "train" if dataset.held_out is not None and split != "test" else split
    given = getattr(dataset, source)
    assert isinstance(given, SplitConfig | Index)  # callers ask for splits that there are
    return open_split(dataset, source, given)


def check_not_empty(indexes: Mapping[str, Index], split: str) -> None:
    """Raises `UserError` for a split without a picture, which would be judged on nothing."""
    if empty := [f"datasets.{name}.{split}" for name, index in indexes.items() if not len(index)]:
        raise UserError(f"{', '.join(empty)}: no images")


def union_test_index(given: UnionTestConfig | Index) -> Index:
    """The fully labelled images of a config; `UserError` where their files cannot be read."""
    return _with_read_names(given) if isinstance(given, Index) else open_split(given, "union_test", given)


def _build_space(
    config: Config,
    found: Mapping[str, Mapping[str, Index]],
    known_classes: Mapping[str, Sequence[str]],
    labelled: Mapping[str, Collection[str]],
    known: LabelSpace | None = None,
) -> Built:
    """Label space of the config over the classes that the indexes bring, or that are known without them; what
    becomes of `known` by them, where it is given. labelled: see `LabelSpace.build`."""
    classes: dict[str, Sequence[str]] = {}
    federated = []
    for name, dataset in config.datasets.items():
        mine = {split: found[split][name] for split in ALL_SPLITS if name in found[split]}
        indexes = list(mine.values())
        by_weights = name not in found["train"] and name in known_classes
        if by_weights:
            classes[name] = known_classes[name]
        elif indexes:
            classes[name] = indexes[0].classes
        else:
            continue
        for split, index in mine.items():
            check_class_names(name, classes[name], index.classes, f"datasets.{name}.{split}", by_weights)
        said = dataset.federated
        if said is None and known is not None and name in known.datasets:  # as the weights have it
            said = known.dataset_index(name) in known.federated or None
        if said or (said is None and any(index.federated for index in indexes)):
            federated.append(name)
    per_dataset, open_members = config.labels.per_dataset, config.labels.open_members
    directions = {name: d for name in classes if (d := config.datasets[name].class_directions) is not None}
    rules, patterns = _rules(config, classes, known)
    if known is not None:
        if known.has_members or per_dataset or directions:
            raise UserError(
                "a detector with `direction_classes` or `labels.per_dataset` cannot be extended, nor can one be "
                "extended by them; train it anew"
            )
        return grown(known, classes, federated=federated, labelled=labelled, **rules), patterns
    space = LabelSpace.build(classes, federated=federated, labelled=labelled, **rules)
    per_dataset, more = expanded_names("per_dataset", per_dataset, space.classes)
    return with_members(space, per_dataset, directions, open_members), (*patterns, *more)


def _rules(
    config: Config, classes: Mapping[str, Sequence[str]], known: LabelSpace | None
) -> tuple[dict[str, Any], tuple[Expansion, ...]]:
    """The rules of `LabelSpace.build` with names in place of patterns, and what these stand for: first of source
    classes, then of the unified classes that the merges make."""
    own = {key: getattr(config.labels, key) for key in LabelRules.__annotations__ if hasattr(config.labels, key)}
    rules: Any = {key: own.pop(key) for key in ("merge", "drop", "distinct")}
    rules, patterns = expanded(rules, classes, known)
    rules |= own
    if rules["merge"].get("same_names") == COMMON:
        settled = [*rules["distinct"], *rules["drop"]]
        rules["merge"] = with_common_names(rules["merge"], classes, settled, known)
    rules, more = expanded(rules, classes, known)
    return rules, (*patterns, *more)


def _space_to_score(config: Config, build: Callable[..., Built], detector: LabelSpace) -> tuple[Built, str]:
    """Label space of a config that a detector is scored on, and `Sources.apart`; see `open_sources`. build:
    `_build_space` of a config and of what is extended (`known`).

    A class that the rules say nothing of, under the name of one of the detector's, is that class: a test set of
    its own need not repeat how the detector's classes came about."""
    directions = any(dataset.class_directions for dataset in config.datasets.values())
    if detector.has_members or config.labels.per_dataset or directions:  # such label spaces cannot grow
        return build(config), ""
    try:
        return build(config, known=detector), ""
    except LabelError as error:
        by_names = config.labels.model_copy(update={"merge": {"same_names": True, **config.labels.merge}})
        with suppress(LabelError):
            return build(config.model_copy(update={"labels": by_names}), known=detector), ""
        try:
            return build(config), str(error)
        except LabelError:
            raise error from None


def share_of(index: Index, dataset: DatasetConfig, split: str) -> Index:
    """What a split has of its `whole_split`: pictures, or the groups of `group_by`.

    A share as `val` is taken first, drawn by names, and the training split has the rest; of that `part` leaves a
    share to train on, in turn.

    Raises `UserError` where a share as `val` is no picture, or all."""
    if split == "test" or (dataset.held_out is None and (dataset.part_of is None or split != "train")):
        return index
    groups = None if dataset.group_by is None else group(index, dataset.group_by)
    rows = np.arange(len(index))
    turns = rows if groups is None else groups.of
    if dataset.held_out is not None:
        names = short_names(list(index.names)) if groups is None else groups.names
        chosen = drawn(names, *dataset.held_out)[turns]
        if not chosen.any() or chosen.all():
            of = "" if groups is None else f" in {groups.count:,} groups"
            all_or_none = "all" if chosen.any() else "none"
            raise UserError(f"{dataset.val} of {len(index):,} pictures{of} is {all_or_none} of them")
        rows = np.flatnonzero(chosen == (split == "val"))
        turns = np.unique(turns[rows], return_inverse=True)[1]  # counted anew: `part` is a share of the rest
    if split == "train" and dataset.part_of is not None:
        remainder, divisor = dataset.part_of
        rows = rows[turns % divisor == remainder]
    return _with_own_notes(index.take(rows), index, rows)


def _with_own_notes(taken: Index, whole: Index, rows: NDArray[np.int64]) -> Index:
    """Without pictures that are left out among those that have no label file: they would be told twice."""
    if NO_LABELS not in taken.skipped:
        return taken
    others = {str(whole.path(row)) for row in set(range(len(whole))) - set(rows.tolist())}
    places = [place for place in taken.skipped[NO_LABELS] if place not in others]
    skipped = {reason: found for reason, found in taken.skipped.items() if reason != NO_LABELS}
    return replace(taken, skipped=skipped | ({NO_LABELS: places} if places else {}))
