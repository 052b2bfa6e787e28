"""The sections of the config file; a comment says what a field means where its name does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Strict, StrictBool, ValidationInfo, WrapValidator, create_model, model_validator
from pydantic_core import PydanticCustomError

from crossdet.config.fields import (
    ClassesOfDatasets,
    DatasetName,
    Directions,
    File,
    Files,
    FormatName,
    GroupBy,
    ImageSets,
    MergeGroups,
    Names,
    Pairs,
    Part,
    Protocols,
    Range,
    SomeNames,
    SourceClasses,
    Teachers,
    held_out,
)
from crossdet.config.mistakes import Key, Problem, dotted, suggest, validated
from crossdet.data.formats import FORMATS
from crossdet.data.index import Index
from crossdet.errors import ConfigError, problem_list, show
from crossdet.evaluation.protocols import PROTOCOLS, lists_of
from crossdet.labels.patterns import matching
from crossdet.models.architecture import Architecture
from crossdet.models.architectures import ARCHITECTURES, DEFAULT
from crossdet.models.settings import Count, Fraction, OpenFraction, Positive, Section
from crossdet.training.modes.mode import ExtendSettings
from crossdet.training.recipe import Recipe

# ------------------------------------------------------------------------------------------- the sections


class SplitConfig(Section):
    """Where one split lies. What is needed depends on the format; one value may stand for a list of one."""

    images: Files = ()  # folders of images (or the format's image lists)
    annotations: Files = ()  # annotation files or folders
    image_set: ImageSets = ()  # VOC: names such as `trainval`, or files
    ignore: Files = ()  # WIDER Pedestrian: files with ignore regions
    lists: File | None = None  # WIDER FACE's protocol: folder of wider_{face,easy,medium,hard}_val.mat


class UnionTestConfig(SplitConfig):
    """Images on which every class is labelled, under its unified name; for `crossdet audit`."""

    format: FormatName
    classes: SomeNames | None = None
    ignore_classes: SomeNames | None = None
    edition: Literal[2018, 2019] | None = None


def _index_or_split(value: Any, handler: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, Index) else handler(value)


def _index_share_or_split(value: Any, handler: Callable[[Any], Any]) -> Any:
    return held_out(str(value)) if isinstance(value, str | float) else _index_or_split(value, handler)


if TYPE_CHECKING:
    Split = SplitConfig | Index | None
    ValSplit = SplitConfig | Index | str | None
    UnionTest = UnionTestConfig | Index | None
else:
    Split = Annotated[SplitConfig | None, WrapValidator(_index_or_split)]
    ValSplit = Annotated[SplitConfig | None, WrapValidator(_index_share_or_split)]
    UnionTest = Annotated[UnionTestConfig | None, WrapValidator(_index_or_split)]


SPLITS = ("train", "val")
"""What a training reads."""
ALL_SPLITS = (*SPLITS, "test")


class DatasetConfig(Section):
    """One dataset; from Python a split may be an `Index`, then no format is needed."""

    format: FormatName | None = None
    train: Split = None
    val: ValSplit = None  # or "1/6": a share of the training pictures, which are not trained on then
    test: Split = None  # looked at by nobody but `eval`, `audit` and `check`
    protocol: Protocols = ("coco",)
    weight: Positive = 1.0  # factor on the probability of drawing one of its images
    repeat_threshold: OpenFraction | None = None  # LVIS repeat factors for classes rarer than this; null: off
    federated: StrictBool | None = None  # images say themselves what was verified; null: as the index says
    classes: SomeNames | None = None  # VOC: all class names, where one split does not show them all
    ignore_classes: SomeNames | None = None  # their boxes are regions where nothing is known, such as DontCare
    difficult: Literal["positive", "ignore"] = "positive"  # what VOC's difficult objects are in training
    edition: Literal[2018, 2019] | None = None  # WIDER Pedestrian's layout
    part: Part | None = None  # "1/2": train on image rows 0, 2, 4, ...
    group_by: GroupBy | None = None  # of `part` and shares: pictures that stay together, see `data.groups.group`
    max_detections: Count | None = None  # in evaluation, per image; null: `eval.max_detections`
    directions: Directions | None = None  # train: turn each draw to one of 4, 8, 12 or [degrees, ...]
    direction_classes: StrictBool = True  # every direction is a class of its own, `name@DEGREES`
    direction_box: Literal["enclosing", "centred"] = "enclosing"  # see docs/orientation.md
    val_directions: Directions | None = None  # val: every picture in all of these; null: as it is

    @model_validator(mode="before")
    @classmethod
    def _index_alone(cls, data: Any) -> Any:
        """From Python an index alone is a dataset to train on."""
        return {"train": data} if isinstance(data, Index) else data

    @property
    def part_of(self) -> tuple[int, int] | None:
        """`part` as (remainder, divisor): the image rows with row % divisor == remainder. None: all rows."""
        return None if self.part is None else _every(self.part)

    @property
    def held_out(self) -> tuple[int, int] | None:
        """`val` as (remainder, divisor) where it is a share of the training pictures; None: it has its own."""
        return _every(self.val) if isinstance(self.val, str) else None

    @property
    def class_directions(self) -> tuple[int, ...] | None:
        """The directions that are classes of their own."""
        return self.directions if self.direction_classes else None


def _every(part: str) -> tuple[int, int]:
    first, count = part.split("/")
    return int(first) - 1, int(count)


class LabelsConfig(Section):
    """The label rules; the keys are the arguments of `LabelSpace.build`, but for the last two."""

    # unified name -> source classes `dataset/name`; `same_names: true` merges all identical names,
    # `common` also those of labels/common_names.yaml
    merge: MergeGroups = Field(default_factory=dict)
    absent: ClassesOfDatasets = Field(default_factory=dict)  # dataset -> unified classes it does not contain
    # dataset -> unified classes that it may list and show, and does not label: background avoided
    unlabelled: ClassesOfDatasets = Field(default_factory=dict)
    not_exhaustive: ClassesOfDatasets = Field(default_factory=dict)  # dataset -> classes it labels in part
    distinct: Names = ()  # equal names that mean different things
    drop: SourceClasses = ()  # source classes that are not learnt
    overlap: Pairs = ()  # classes that may share one box
    per_dataset: Names = ()  # classes with one member per dataset, reported as one
    open_members: StrictBool = False  # the members of `per_dataset` are no negatives of each other's objects


class InputConfig(Section):
    shorter: Count = 800  # pixels of the shorter side after resizing
    longer: Count = 1333  # limit for the longer side


class AugmentConfig(Section):
    flip: Fraction = 0.5  # this and the last three: probabilities
    scale_jitter: Range = (1.0, 1.0)  # range of a factor on the size
    photometric: StrictBool = False
    zoom_out: Fraction = 0.0  # on a canvas up to twice as wide and high
    iou_crop: Fraction = 0.0
    mosaic: Fraction = 0.0  # of four pictures of all datasets


class EvalConfig(Section):
    score_threshold: Fraction | None = None  # null: the protocol's (coco, voc 0.05, lvis 0.0001, wider_* 0.01)
    topk: Count = 1000  # candidates per pyramid level
    nms_iou: Fraction = 0.5
    agnostic_nms: StrictBool = False  # NMS among all classes that are looked for, instead of by class
    max_detections: Count | None = (
        None  # per image; null: the protocol's (100, lvis 300, wider_face 750, ..._pedestrian 300)
    )
    batch_size: Count = 8


class PseudoConfig(Section):
    """A teacher labels what datasets leave unlabelled; off where there is no such section (docs/config.md)."""

    teachers: Teachers = ()  # runs, weights files, hub ids; `self`: the network in training, by an average
    from_epoch: Count | None = None  # self: first after so many epochs; null: after half of them and one more
    every: Count | None = None  # self: and again after so many more; null: a quarter of all
    beta: Positive = 1.0  # a class's threshold is that of the best F-beta on validation data that label it
    uncertain_from: Fraction = 0.25  # of the threshold: scores between the two are avoided
    negative_weight: Fraction = 1.0  # of the background a teacher leaves (self: 0.5); 0: it stays avoided

    @model_validator(mode="before")
    @classmethod
    def _own_misses(cls, data: Any) -> Any:
        """By default the network's own misses count half: as negatives with full weight they would stay misses."""
        if isinstance(data, Mapping) and data.get("teachers") == "self":
            return {"negative_weight": 0.5, **data}
        return data

    def schedule(self, epochs: int | None) -> tuple[int, int]:
        """(from_epoch, every) of a training of so many epochs; None: nobody knows how many, and both are given.

        By default an epoch after the default learning rate begins to fall, at 1/2 of them: before that the weights
        are at their noisiest.
        """
        if epochs is None:
            assert self.from_epoch is not None
            assert self.every is not None
            return self.from_epoch, self.every
        first = max(1, min(epochs // 2 + 1, epochs - 1)) if self.from_epoch is None else self.from_epoch
        return first, max(1, epochs // 4) if self.every is None else self.every

    def never_labels(self, recipe: Recipe, pictures: int) -> str | None:
        """What to say where a training on so many pictures is over before the network in it labels anything."""
        most = recipe.most_epochs(pictures)
        if self.teachers != "self" or most is None:
            return None
        first = self.schedule(recipe.epochs_for(pictures))[0]
        if first < most:
            return None
        return (
            f"`pseudo.from_epoch`: expected less than {most}, since with {pictures:,} training pictures no more "
            f"epochs are begun, got {first}{' by default' if self.from_epoch is None else ''}; the teacher would "
            f"never label. Set it lower, or train longer"
        )


class Config(Section):
    """The whole file. Make it with `load_config` or `Config.from_dict`: they report mistakes readably."""

    datasets: dict[DatasetName, DatasetConfig] = Field(default_factory=dict)
    labels: LabelsConfig = LabelsConfig()
    model: Any  # these two sections belong to the architecture: see `config_type`
    loss: Any
    input: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    train: Recipe = Recipe()
    eval: EvalConfig = EvalConfig()
    union_test: UnionTest = None
    extend: ExtendSettings | None = None
    pseudo: PseudoConfig | None = None
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**32)] = 0  # what numpy takes
    output: File | None = None  # run directory; null: runs/<name of the config file> in the current folder

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], base: Path | None = None, known_datasets: Sequence[str] = ()
    ) -> Config:
        """A config from plain values.

        base: folder of relative paths (default: the current one). known_datasets: see `load_config`.

        Raises `ConfigError` that lists all mistakes.
        """
        config, problems = validated_config(dict(data), base or Path.cwd(), known_datasets)
        if config is None:
            raise ConfigError(problem_list(f"config: {len(problems)} mistake(s)", (p.text for p in problems)))
        return config

    @property
    def square(self) -> int | None:
        """Side that the network stretches every picture to; None: pictures keep their shape.

        Raises `UserError` where a checkpoint that says so cannot be read.
        """
        settings = ARCHITECTURES[self.model.name].settings
        return settings.side_of(self.model, self.loss, self.input.shorter)

    @property
    def canvases(self) -> int:
        """`train.canvases`; 0 where there is a `square`. Raises `UserError` as there."""
        return 0 if self.square else self.train.canvases

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle finds no type of `config_type` by its name."""
        return _unpickled, (self.model.name, self.__getstate__())

    def with_agnostic_nms(self, given: bool | None) -> Config:
        """The config with `eval.agnostic_nms` as a caller wants it; None = as it is."""
        if given is None:
            return self
        return self.model_copy(update={"eval": self.eval.model_copy(update={"agnostic_nms": given})})

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Config:
        known = (info.context or {}).get("known_datasets", ())
        problems = [*_dataset_problems(self), *_label_problems(self, known), *_recipe_problems(self)]
        problems += [*_pseudo_problems(self), *_extend_problems(self)]
        if problems:
            texts = "; ".join(problem.text for problem in problems)
            raise PydanticCustomError("contradictions", "{texts}", {"texts": texts, "problems": problems})
        return self


@cache
def _config_type(architecture: Architecture, names: tuple[str, ...] = ()) -> type[Config]:
    """names: where the config has none of these, so that the message lists them all."""
    model: Any = architecture.model
    if names:
        name_type: Any = Literal[names]
        model = create_model("Model", __base__=model, name=(name_type, DEFAULT))
    fields: dict[str, Any] = {"model": (model, model()), "loss": (architecture.loss, architecture.loss())}
    return create_model("Config", __base__=Config, **fields)


def config_type(data: Any) -> type[Config]:
    """`Config` with the `model` and `loss` sections of the architecture that the plain values name."""
    model = data.get("model") if isinstance(data, Mapping) else None
    name = model.get("name", DEFAULT) if isinstance(model, Mapping) else DEFAULT
    if str(name) in ARCHITECTURES:
        return _config_type(ARCHITECTURES[str(name)])
    return _config_type(ARCHITECTURES[DEFAULT], tuple(ARCHITECTURES))


def validated_config(
    data: dict[str, Any], base: Path, known_datasets: Sequence[str] = ()
) -> tuple[Config | None, list[Problem]]:
    """As `validated`. Of an unknown architecture nothing is said about its sections: they may fit the one meant."""
    config, problems = validated(config_type(data), data, base, known_datasets)
    name: Key = ("model", "name")
    if any(problem.keys[:1] == (name,) for problem in problems):
        its = {("model",), ("loss",)}
        problems = [p for p in problems if name in p.keys[:1] or its.isdisjoint(key[:1] for key in p.keys)]
    return config, problems


def _unpickled(architecture: str, state: dict[Any, Any]) -> Config:
    kind = _config_type(ARCHITECTURES[architecture])
    config = kind.__new__(kind)
    config.__setstate__(state)
    return config


# ---------------------------------------------------------------------- checks that need several values


def _problem(text: str, *keys: str | Key) -> Problem:
    """A mistake of these keys; one as text has dots between its parts."""
    return Problem(tuple(tuple(key.split(".")) if isinstance(key, str) else key for key in keys), text)


def _dataset_problems(config: Config) -> Iterator[Problem]:
    if not config.datasets:
        yield _problem("`datasets`: expected at least one dataset", "datasets")
    for name, dataset in config.datasets.items():
        at: Key = ("datasets", name)
        shown = dotted(at)
        splits = {split: getattr(dataset, split) for split in ALL_SPLITS}
        if all(given is None for given in splits.values()):
            text = f"`{shown}`: expected `train`, `val`, `test` or several of them"
            yield _problem(text, *((*at, split) for split in splits))
        files = any(isinstance(given, SplitConfig) for given in splits.values())
        if dataset.format is None and files:
            yield _problem(f"`{shown}.format` is missing: expected one of {', '.join(FORMATS)}", (*at, "format"))
        for split, given in splits.items():
            lists = isinstance(given, SplitConfig) and given.lists is not None
            if lists and lists_of(dataset.protocol) is None:
                readers = " or ".join(f"`{name}`" for name in PROTOCOLS if lists_of([name]))
                text = f"belongs to the protocol {readers}, got protocol {', '.join(dataset.protocol)}"
                yield _problem(f"`{shown}.{split}.lists` {text}", (*at, split, "lists"), (*at, "protocol"))
        if dataset.group_by is not None and dataset.part is None and dataset.held_out is None:
            text = "says which pictures stay together in a share; say one, such as `val: 1/6` or `part: 1/2`"
            yield _problem(f"`{shown}.group_by` {text}", (*at, "group_by"), (*at, "part"))
        if dataset.held_out is not None and dataset.train is None:
            text = f"{dataset.val} is a share of the training pictures, and there is no `train`"
            yield _problem(f"`{shown}.val`: {text}", (*at, "val"))
        editions = [name for name, kind in FORMATS.items() if "edition" in kind.keys]
        if dataset.edition is not None and dataset.format not in editions:
            which = " and ".join(f"`{name}`" for name in editions)
            text = f"`{shown}.edition`: only the format {which} has editions, got {dataset.edition}"
            yield _problem(text, (*at, "edition"), (*at, "format"))
        yield from _direction_problems(config, name, dataset)


def _direction_problems(config: Config, name: str, dataset: DatasetConfig) -> Iterator[Problem]:
    at: Key = ("datasets", name)
    shown, given = dotted(at), dataset.class_directions
    if given is not None:
        lost = sorted({-d % 360 for d in given} - set(given))
        if config.augment.flip and lost:
            text = (
                f"`{shown}.directions`: mirrored pictures also show {', '.join(map(str, lost))} degrees; add them, "
            )
            yield _problem(f"{text}or set `augment.flip` to 0", (*at, "directions"), "augment.flip")
        unknown = sorted(set(dataset.val_directions or (0,)) - set(given))
        judged = dataset.val is not None or dataset.test is not None
        if judged and unknown:
            text = f"degrees are not among `directions` {list(given)}, so there is no class for them"
            text = f"`{shown}.val_directions`: {', '.join(map(str, unknown))} {text}"
            yield _problem(text, (*at, "val_directions"), (*at, "directions"))
        if config.pseudo is not None:
            text = f"set `{shown}.direction_classes` to false, or remove one of the two"
            yield _problem(f"`pseudo` labels no directions; {text}", "pseudo", (*at, "directions"))
    for split in ("val", "test"):
        if getattr(getattr(dataset, split), "lists", None) is not None and dataset.val_directions:
            text = f"`{shown}.val_directions`: `{split}.lists` are of upright pictures; leave out one of the two"
            yield _problem(text, (*at, "val_directions"), (*at, split, "lists"))


def _label_problems(config: Config, known: Sequence[str]) -> Iterator[Problem]:
    """Rules that name a dataset there is none of; whether the classes exist is for `LabelSpace.build`.

    known: datasets of trained weights, which the rules may name as well.
    """
    labels = config.labels
    rules: list[tuple[Key, str]] = [(("labels", "drop"), entry) for entry in labels.drop]
    groups = {name: sources for name, sources in labels.merge.items() if isinstance(sources, tuple)}
    rules += [(("labels", "merge", name), entry) for name, sources in groups.items() for entry in sources]
    for at, entry in rules:
        dataset, slash, _ = entry.partition("/")
        if slash:
            yield from _unknown_dataset(config, known, at, dataset, f" (in {show(entry)})")
        else:
            yield _problem(f"`{dotted(at)}`: expected `dataset/name`, got {show(entry)}", at)
    if labels.per_dataset and config.pseudo is not None:
        text = "`pseudo` labels no classes per dataset; leave out `labels.per_dataset` or `pseudo`"
        yield _problem(text, "pseudo", "labels.per_dataset")
    if labels.open_members and not labels.per_dataset:
        text = "`labels.open_members` is about the classes of `labels.per_dataset`, which names none"
        yield _problem(text, "labels.open_members")
    for rule in ("absent", "unlabelled", "not_exhaustive"):
        for dataset in getattr(labels, rule):
            yield from _unknown_dataset(config, known, ("labels", rule, dataset), dataset)


def _unknown_dataset(
    config: Config, known: Sequence[str], at: Key, dataset: str, where: str = ""
) -> Iterator[Problem]:
    names = list(dict.fromkeys([*config.datasets, *known]))
    if not set(matching([dataset], names)) <= set(names):
        hint = suggest(dataset, names, "datasets")
        if not known and "did you mean" not in hint:
            hint += " (those of weights to extend: `crossdet check CONFIG --extends WEIGHTS`)"
        yield _problem(f"`{dotted(at)}`: no dataset {show(dataset)}{where}; {hint}", at, ("datasets", dataset))


def _recipe_problems(config: Config) -> Iterator[Problem]:
    def wrong(expected: str, value: Any, *keys: str) -> Problem:
        return _problem(f"`{keys[0]}`: expected {expected}, got {show(value)}", *keys)

    train, size = config.train, config.input
    if config.augment.scale_jitter[0] > config.augment.scale_jitter[1]:
        yield wrong("[smallest, largest]", config.augment.scale_jitter, "augment.scale_jitter")
    of_network = ARCHITECTURES[config.model.name].contradictions(config.model)
    for keys, expected, value in (*train.contradictions(), *of_network):
        yield wrong(expected, value, *keys)
    if size.shorter > size.longer:
        yield wrong(f"at most `input.longer` = {size.longer}", size.shorter, "input.shorter", "input.longer")


def _pseudo_problems(config: Config) -> Iterator[Problem]:
    pseudo, epochs = config.pseudo, config.train.epochs
    if pseudo is None:
        return
    if config.train.plain:
        text = "`pseudo`: with `train.plain` all background is trusted already; remove one of the two"
        yield _problem(text, "pseudo", "train.plain")
    if not pseudo.teachers:
        text = "`pseudo.teachers` is missing: expected `self` or a list of runs, weights files or hub ids"
        yield _problem(text, "pseudo.teachers", "pseudo")
    elif pseudo.teachers != "self":
        for key in ("from_epoch", "every"):
            if getattr(pseudo, key) is not None:
                text = f"`pseudo.{key}` is for `teachers: self`; others label once, before the training"
                yield _problem(text, f"pseudo.{key}", "pseudo.teachers")
    elif epochs is None and (config.train.minutes or config.train.max_steps):
        if pseudo.from_epoch is None or pseudo.every is None:
            text = "expected both where the length of the training is not in epochs (`train.epochs`)"
            yield _problem(
                f"`pseudo.from_epoch`, `pseudo.every`: {text}", "pseudo", "train.minutes", "train.max_steps"
            )
    elif epochs is not None and pseudo.schedule(epochs)[0] >= epochs:
        text = f"expected less than `train.epochs` = {epochs}, got {pseudo.schedule(epochs)[0]}"
        yield _problem(f"`pseudo.from_epoch`: {text}", "pseudo.from_epoch", "train.epochs", "pseudo")


def _extend_problems(config: Config) -> Iterator[Problem]:
    extend = config.extend
    if extend is not None and extend.trust and not extend.pseudo:
        text = "it is about the labels of `extend.pseudo`, which is off; set `pseudo: true`, or leave `trust` out"
        yield _problem(f"`extend.trust`: {text}", "extend.trust", "extend.pseudo")
