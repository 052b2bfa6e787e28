"""`crossdet extend`: a trained detector and a config -> the same detector for more classes, and what it
forgot.

The label space grows by name (`labels.edits.grown`), the old classes' weights are carried over bit for bit
(`Growable.carry_over`), and what follows is an ordinary training: one loss, one data path. What the modes change
about it stands in `training.modes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything

from crossdet.config import Config, as_config
from crossdet.config.sources import Sources, named_splits, open_sources
from crossdet.errors import UserError, problem_list, some
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.forgetting import (
    Change,
    changes,
    draw_generations,
    intervals,
    main_numbers,
    means,
    report_text,
    to_json,
)
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import best_per_image
from crossdet.evaluation.run import EvalSettings
from crossdet.evaluation.splits import Split
from crossdet.files import write_json
from crossdet.inference import Detector, load_detector
from crossdet.labels.edits import growth as grown_by
from crossdet.labels.placeholders import numbered_warning, unused_note, used
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.card import START_FILE, Card, Generation, Score, file_digest, new_generation, weights_path
from crossdet.models.contract import Growable
from crossdet.models.settings import NetworkSettings, Section
from crossdet.models.weights import METRICS_FILE, STATE_FILE, load_weights, update_card
from crossdet.runs.building import (
    build_fabric,
    build_network,
    check_trainable,
    new_card,
    teacher_settings,
    training_data,
)
from crossdet.runs.directory import check_run_dir, run_directory, training_in
from crossdet.runs.evaluate import Evaluation, judged_classes, score_network, splits_for_training
from crossdet.runs.train import train_network
from crossdet.training.identity import run_identity
from crossdet.training.modes import MODES, ExtendSettings, Growth, Remark, check_mode
from crossdet.training.modes.mode import Extension
from crossdet.training.pseudo_labels import TEACHER_FOLDER

REPORT_FILE = "forgetting.json"
PLOT_FILE = "generations.png"

NOTHING_HOLDS, SOME_HOLD = 0.25, 0.5
"""Of the learning rate with all old pictures: in an extension without pictures of some old class, and with a share
of the old ones (docs/extend.md)."""
Judged = dict[str, DetectionArrays]
"""Detections by dataset."""


def extend(
    run_or_weights: str | Path,
    config: Config | str | Path,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Extends a trained detector by what `config` brings, and reports what became of its old classes.

    The config holds the datasets to train on and to be scored on (new ones, old ones, or parts of old ones)
    and the label rules that say how their classes fit into the old ones; `config.extend` says how. Model and
    input settings are those of the weights: the config leaves them out or repeats them.

    Besides what `train` writes: `forgetting.json`, `generations.png`, and the generations in the weights'
    metadata.

    Returns:
        the last record of the training; its "forgetting" is the report, with `regressions` beyond the tolerance.

    Raises:
        UserError: a config that contradicts the weights, or any other mistake, before training starts.
        RunError: as `train`.
    """
    parent = Path(run_or_weights)
    tensors, card = load_weights(parent)
    known = card.space
    config = with_settings_of(card, as_config(config, known.datasets))
    choice = config.extend or ExtendSettings()
    run_dir = _another_directory(config, output, parent)
    sources = open_sources(config, known=known)
    check_trainable(sources, config.train.plain)
    growth = Growth(known, sources.space, sources.train)
    remarks = remarks_on(config, card, growth, sources)
    settings = extended_settings(config, card, growth)
    history = [*card.generations, _generation(choice.mode, parent, sources, run_dir, resume)]
    check_run_dir(run_dir, config, resume, overwrite, REPORT_FILE, known.datasets)

    fabric = build_fabric(config)
    seed_everything(config.seed, verbose=False)
    network = _grown_network(settings, growth, tensors, choice)
    points = card.operating or {}
    begun = replace(new_card(config, sources.space, settings, history), operating=points)
    identity = run_identity(begun, named_splits(sources))
    with training_in(fabric, run_dir, config, resume, overwrite, identity, network):
        if fabric.is_global_zero:
            told = [*grown_by(known, sources.space), *(f"{kind}: {text}" for kind, text in remarks)]
            print(*told, sep="\n", flush=True)
        old = _in_layout(load_detector(parent, fabric.device), config)
        goes_on = resume and (run_dir / STATE_FILE).exists()  # else nothing holds for the data of now
        before, seen = _start(fabric, config, sources, old, history[-1], run_dir, goes_on)
        mode = MODES[choice.mode]
        labels = run_dir / TEACHER_FOLDER
        extension = Extension(fabric, choice, growth, network, old, teacher_settings(config), labels, goes_on)
        course, space, train = mode.prepare(extension)
        del old, extension

        data = training_data(config, replace(sources, space=space, train=dict(train)), network.fill_colour)
        stored = partial(_stored_points, points, mode.keeps_thresholds)
        share = rate_share(config, growth)
        record = train_network(
            fabric, config, sources, network, data, run_dir, begun, identity, resume, course, stored, share
        )
        after, seen_now = _after(fabric, config, sources, known, run_dir)
        ends = intervals(_splits_of(sources, known), seen, seen_now)
        found = changes(before, after, ends)
        report = _report(
            fabric, run_dir, history, known.reported, before, after, found, means(found, ends), choice.tolerance
        )
        return record | {"forgetting": report}


# ------------------------------------------------------------------------------------------ before training


def _another_directory(config: Config, output: str | Path | None, parent: Path) -> Path:
    run_dir = run_directory(config, output)
    if weights_path(parent).resolve().parent == run_dir.resolve():
        raise UserError(f"{run_dir} holds the weights to extend; choose another directory with --output")
    return run_dir


def _grown_network(
    settings: NetworkSettings, growth: Growth, tensors: Mapping[str, torch.Tensor], choice: ExtendSettings
) -> Growable:
    """The network for all classes, with the old weights for the old ones, which are the first."""
    network = build_network(settings, growth.space)
    assert isinstance(network, Growable)  # `extended_settings` has seen that its architecture grows
    network.carry_over(tensors, len(growth.known.classes))
    if choice.init:
        network.begin_as(growth.begins_as(choice.init))
    return network


def with_settings_of(card: Card, config: Config) -> Config:
    """The config with the model and input settings of the weights.

    What the config says itself under `model` and `input` must be the same (`model.weights` is not used), but for
    `NetworkSettings.adjustable` keys where the network trains; `loss` and `eval` are those of the weights where the
    config says nothing.

    Raises:
        UserError: lists the keys that contradict; or the section is not for extensions (`pseudo`).
    """
    if config.pseudo is not None:
        raise UserError("pseudo: this section is for `crossdet train`; here it is `extend: {mode: distill}`")
    choice = config.extend or ExtendSettings()
    config = _of_architecture(card.settings.name, config)
    said, kind = config.model, ARCHITECTURES[card.settings.name]
    settings = card.settings
    if not MODES[choice.mode].keeps_thresholds:  # whose old answers stay what they are
        free = {key: getattr(said, key) for key in settings.adjustable & said.model_fields_set}
        settings = settings.adjusted({key: value for key, value in free.items() if value not in (None, "auto")})
    values = {key: getattr(settings, key) for key in kind.model.model_fields if key != "weights"}
    size = asdict(card.input)
    problems = [*_contradictions("model", said, values), *_contradictions("input", config.input, size)]
    if problems:
        raise UserError(
            problem_list("the config contradicts the weights; leave these keys out, they come from there", problems)
        )
    limits = {key: value for key, value in card.decoding.items() if key != "batch_size"}
    return config.model_copy(
        update={
            "model": said.model_copy(update=values),
            "input": config.input.model_copy(update=size),
            "loss": _filled(config.loss, dict(settings.loss)),
            "eval": _filled(config.eval, limits),
            "extend": MODES[choice.mode].adapted(choice, kind.grows_by),
        }
    )


def _of_architecture(name: str, config: Config) -> Config:
    """The config with the sections of this architecture, where it does not say itself of which they are."""
    if config.model.name == name or "name" in config.model.model_fields_set:
        return config
    sections = {"model": config.model, "loss": config.loss}
    said = [f"`{at}.{key}`" for at, section in sections.items() for key in sorted(section.model_fields_set)]
    if said:
        raise UserError(
            f"{', '.join(said)}: without `model.name` these are of {config.model.name}, but the weights are of "
            f"{name}; leave them out, or say `model.name: {name}`"
        )
    kind = ARCHITECTURES[name]
    return config.model_copy(update={"model": kind.model(), "loss": kind.loss()})


def _contradictions(name: str, said: Section, values: Mapping[str, Any]) -> Iterator[str]:
    """What a section says itself and the weights say otherwise; null and auto say nothing."""
    for key in sorted(said.model_fields_set & values.keys()):
        ours, theirs = getattr(said, key), values[key]
        if isinstance(ours, Section):
            yield from _contradictions(f"{name}.{key}", ours, dict(theirs))
        elif ours not in (None, "auto") and ours != theirs:
            yield f"`{name}.{key}`: {_shown(ours)}, but the weights have {_shown(theirs)}"


def _filled(section: Any, values: Mapping[str, Any]) -> Any:
    """The section with `values` where it says nothing itself."""
    known = {key: values[key] for key in type(section).model_fields if key in values}
    return section.model_copy(update={k: v for k, v in known.items() if k not in section.model_fields_set})


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def remarks_on(config: Config, card: Card, growth: Growth, sources: Sources) -> list[Remark]:
    """What is worth saying, of the mode, of batch norm, of names, and of what will not be known. Raises `UserError`
    for what cannot work."""
    choice = config.extend or ExtendSettings()
    remarks = check_mode(choice, growth, ARCHITECTURES[card.settings.name].grows_by)
    remarks += _of_batch_norm(config, card.settings)
    remarks += [Remark("warning", text) for text in [numbered_warning(growth.known.classes)] if text]
    remarks += [Remark("note", text) for text in [unused_note(growth.known.classes)] if text]
    still = MODES[choice.mode].keeps_thresholds
    if not still and (unjudged := _unjudged(sources, growth.known)):
        text = (
            f"no validation pictures of {some(unjudged, 8)}: what the extension makes of them will not be known. "
            "Give the config datasets that label them, with a `val` split (a `train` split they need not have)"
        )
        remarks.append(Remark("note", text))
    return remarks


def _of_batch_norm(config: Config, settings: NetworkSettings) -> Iterator[Remark]:
    choice = config.extend or ExtendSettings()
    has_any = settings.has_batch_norm
    fixed = has_any and getattr(settings, "freeze_batch_norm", False)
    still = MODES[choice.mode].keeps_thresholds  # nothing of the backbone trains
    if not choice.fixed_statistics and (fixed or still or not has_any):
        why = f"the mode {choice.mode} trains nothing of the backbone" if still else "these weights have fixed ones"
        why = why if has_any else f"{settings.name} has no batch norm"
        yield Remark("note", f"`extend.fixed_statistics: false` changes nothing: {why}")
    elif fixed and not still and config.train.recipe == "auto":
        text = (
            "batch norm of the backbone stays fixed, as in these weights: `train.recipe: auto` trains it in new "
            "networks only. Behind it features stand less of a learning rate (`train.lr`)"
        )
        yield Remark("note", text)


def _unjudged(sources: Sources, known: LabelSpace) -> list[str]:
    """Old classes, as they are reported, that no validation split has an object of."""
    splits = _splits_of(sources, known).values()
    judged = {int(c) for split in splits for c in np.unique(split.labels()[split.index.is_object])}
    return used([name for c, name in enumerate(known.reported) if c not in judged])


def rate_share(config: Config, growth: Growth) -> float:
    """The share of the architecture's learning rate that is usual for an extension: the less, the less there is to
    hold old classes. All of it where nothing old is trained, or all old pictures are seen again."""
    choice, known = config.extend or ExtendSettings(), growth.known
    if config.train.recipe != "auto" or MODES[choice.mode].keeps_thresholds:
        return 1.0
    if growth.without_images():
        return NOTHING_HOLDS
    again = all(name in growth.train and config.datasets[name].part is None for name in known.datasets)
    return 1.0 if again else SOME_HOLD


def extended_settings(config: Config, card: Card, growth: Growth) -> NetworkSettings:
    """Of the network that grows: those of the weights, with the loss of the config."""
    choice = config.extend or ExtendSettings()
    name = card.settings.name
    mode = MODES[choice.mode]
    needs = mode.needs(choice) | ({"begin_as"} if choice.init else set())
    lacks = sorted(needs - ARCHITECTURES[name].grows_by)
    if lacks:
        key, fix = f"extend.mode: {choice.mode}", mode.without.get(lacks[0], "use another mode")
        if lacks == ["begin_as"]:
            key, fix = "extend.init", "leave it out"
        raise UserError(
            f"{key}, but networks of the architecture {name} cannot do that (they have no "
            f"{' and no '.join(f'`{one}`' for one in lacks)}); {fix}"
        )
    free = {key: getattr(config.model, key) for key in card.settings.adjustable}
    settings = card.settings.adjusted(free).model_copy(update={"loss": config.loss})
    return settings.extended(choice.mode, choice.adapter, len(growth.known.classes), len(growth.space.classes))


def _generation(mode: str, parent: Path, sources: Sources, run_dir: Path, resume: bool) -> Generation:
    """The generation that this run makes; of a resumed run the one that it began with."""
    digest = file_digest(parent)
    start = run_dir / START_FILE
    if resume and start.exists():
        begun = Generation.from_dict(json.loads(start.read_text())["generation"])
        if begun.parent != digest:
            raise UserError(
                f"{run_dir}: the run was started from other weights than {parent} are now (SHA-256 "
                f"{begun.parent}); give those, or start a new run with --output"
            )
        return begun
    datasets = {name: list(index.classes) for name, index in sources.train.items()}
    return new_generation(mode, datasets, sources.space, digest)


def _in_layout(detector: Detector, config: Config) -> Detector:
    """The detector in the memory layout of the training, so that equal weights give equal numbers."""
    wide = torch.channels_last if config.train.channels_last else torch.contiguous_format
    detector.model.to(memory_format=wide)
    return detector


def _start(
    fabric: Fabric,
    config: Config,
    sources: Sources,
    old: Detector,
    generation: Generation,
    run_dir: Path,
    goes_on: bool,
) -> tuple[list[Score], Judged]:
    """What the old detector scores on its classes, kept in the run directory with the generation; what it finds.
    goes_on: the training has a state, and the scores are those that it began with."""
    file = run_dir / START_FILE
    splits = _splits_of(sources, old.space)
    scores: list[Score] = []
    seen: Judged = {}
    if splits:
        known = replace(sources, space=old.space)  # merged classes without members that are new
        evaluation = score_network(fabric, config, known, old.model, splits)
        scores, seen = main_numbers(evaluation.metrics, judged_classes(splits)), _judged(config, evaluation)
    if goes_on and file.exists():
        return [Score(**score) for score in json.loads(file.read_text())["before"]], seen
    if fabric.is_global_zero:
        write_json(file, {"generation": asdict(generation), "before": [asdict(s) for s in scores]})
    fabric.barrier()
    return scores, seen


def _judged(config: Config, evaluation: Evaluation) -> Judged:
    """The detections that the COCO protocol judged, of the datasets that it is the first protocol of."""
    coco, found = PROTOCOLS["coco"], {}
    for name, scores in evaluation.scores.items():
        limits = EvalSettings.of(config.input, config.eval).of_dataset(config.datasets[name]).limits(coco)
        if _has_intervals(config, name):
            detections = scores.found.detections.above(limits.score_threshold)
            found[name] = best_per_image(detections, limits.max_detections)
    return found


def _has_intervals(config: Config, dataset: str) -> bool:
    """Whether the detections in a dataset are asked for: `intervals` are of COCO's AP alone."""
    return config.datasets[dataset].protocol[0] == PROTOCOLS["coco"].name


def _splits_of(sources: Sources, known: LabelSpace) -> dict[str, Split]:
    """The validation splits as far as old classes go; datasets without any are left out."""
    splits = {}
    for name, split in splits_for_training(sources).items():
        ids = np.where(split.class_ids < len(known.reported), split.class_ids, DROPPED)
        if (ids != DROPPED).any():
            splits[name] = replace(split, class_ids=ids)
    return splits


def _stored_points(points: Mapping[str, Any], kept: bool, found: dict[str, Any]) -> dict[str, Any]:
    """Thresholds of classes that no validation data speak of stay; all old ones where old classes are `kept`."""
    return {**found, **points} if kept else {**points, **found}


# ------------------------------------------------------------------------------------------ afterwards


def _after(
    fabric: Fabric, config: Config, sources: Sources, known: LabelSpace, run_dir: Path
) -> tuple[list[Score], Judged]:
    """The main numbers of all classes, of the weights that the run stands for: its best ones; and what these find
    of old classes.

    Of a dataset with old and new classes the old ones are looked at again without the new, as before: the new
    classes' detections would take places under the protocol's limit per image.
    """
    metrics = _metrics_of_best(run_dir)
    if metrics is None:
        return [], {}
    splits = splits_for_training(sources)
    scores = main_numbers(metrics, judged_classes(splits))
    old = _splits_of(sources, known)
    mixed = {name for name, split in old.items() if split.classes != splits[name].classes}
    old = {name: split for name, split in old.items() if name in mixed or _has_intervals(config, name)}
    if not old:
        return scores, {}
    model = _in_layout(load_detector(run_dir, fabric.device), config).model
    evaluation = score_network(fabric, config, sources, model, old)
    again = main_numbers(evaluation.metrics, judged_classes(old))
    alone = {(score.name, score.dataset): score for score in again if score.dataset in mixed}
    return [alone.get((score.name, score.dataset), score) for score in scores], _judged(config, evaluation)


def _metrics_of_best(run_dir: Path) -> dict[str, Any] | None:
    """The record of the best evaluation, or of the last epoch where none is the best; None: nothing was judged."""
    content = json.loads((run_dir / METRICS_FILE).read_text())
    records = [r for r in content["epochs"] if r["epoch"] == content["best_epoch"]]
    found: dict[str, Any] | None = (records or content["epochs"][-1:])[0].get("metrics")
    return found


def _report(
    fabric: Fabric,
    run_dir: Path,
    history: list[Generation],
    old: Sequence[str],
    before: list[Score],
    after: list[Score],
    found: Sequence[Change],
    mean: Sequence[Change],
    tolerance: float | None,
) -> dict[str, Any]:
    """Prints the report and writes it: JSON, plot, and the scores into the weights' metadata."""
    content = to_json(found, tolerance, old, mean)
    if fabric.is_global_zero:
        history = [*history[:-1], replace(history[-1], scores=tuple(after))]
        update_card(run_dir, generations=tuple(history))
        numbers = run_dir / METRICS_FILE
        write_json(numbers, json.loads(numbers.read_text()) | {"forgetting": content})
        draw_generations(run_dir / PLOT_FILE, history, before)
        write_json(run_dir / REPORT_FILE, content)  # the last file: with it the run is complete
        print(report_text(found, old, mean), flush=True)
    fabric.barrier()
    return content
