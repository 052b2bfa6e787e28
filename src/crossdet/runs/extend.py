"""`crossdet extend`: a trained detector and a config -> the same detector for more classes, and what it
forgot.

The label space grows by name (`label_edits.grown`), the old classes' weights are carried over bit for bit
(`models.class_rows`), and what follows is an ordinary training: one loss, one data path. The modes differ in
what they train on and in what is trained: `replay` nothing else, `distill` holds the old detector's answers on the
new images (`logit_matching`) or adds its labels to them (`pseudo`), `frozen` trains the rows of the new
classes alone, or with an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything

from crossdet.config import Config, ExtendConfig
from crossdet.config.sources import Sources, open_sources
from crossdet.errors import UserError, problem_list
from crossdet.evaluation.forgetting import changes, draw_generations, main_numbers, report_text, to_json
from crossdet.evaluation.splits import Split
from crossdet.files import write_json
from crossdet.inference import Detector, load_detector
from crossdet.labels.edits import growth
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.building import DetectorSettings, build_detector
from crossdet.models.provenance import (
    START_FILE,
    Generation,
    Score,
    file_digest,
    generations,
    new_generation,
    to_metadata,
    weights_path,
)
from crossdet.models.retinanet.distillation import logit_matching
from crossdet.models.retinanet.growth import carry_over, train_new_classes_only
from crossdet.models.retinanet.subnets import Adapter
from crossdet.models.weights import METRICS_FILE, load_weights, update_metadata
from crossdet.runs.directory import check_run_dir, make_run_dir, run_directory
from crossdet.runs.evaluate import judged_classes, splits_for_training
from crossdet.runs.train import (
    as_config,
    build_fabric,
    check_trainable,
    detector_settings,
    score_detector,
    teacher_settings,
    train_detector,
    training_data,
    weights_metadata,
)
from crossdet.training.pseudo_labels import TEACHER_FOLDER, Teacher, label_images, taught_space

REPORT_FILE = "forgetting.json"
PLOT_FILE = "generations.png"


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
        the last record of the training; under "forgetting" the report, with `regressions` beyond the
        tolerance.

    Raises:
        UserError: a config that contradicts the weights, or any other mistake, before training starts.
        RunError: as `train`.
    """
    parent = Path(run_or_weights)
    tensors, metadata = load_weights(parent)
    known = LabelSpace.from_json(metadata["labels"])
    config = with_settings_of(metadata, as_config(config, known.datasets))
    choice = config.extend or ExtendConfig()
    run_dir = run_directory(config, output)
    if weights_path(parent).resolve().parent == run_dir.resolve():
        raise UserError(f"{run_dir} holds the weights to extend; choose another directory with --output")
    sources = open_sources(config, known=known)
    check_trainable(sources, config.train.plain)
    note = check_mode(choice, known, sources, config.model.group_norm)
    history = [*generations(metadata), _generation(choice.mode, parent, sources, run_dir, resume)]
    check_run_dir(run_dir, config, resume, overwrite, REPORT_FILE, known.datasets)

    fabric = build_fabric(config)
    seed_everything(config.seed, verbose=False)
    adapters = _adapters(choice, len(known.classes), len(sources.space.classes), metadata)
    groups = DetectorSettings.from_json(metadata["model"]).group_channels
    settings = replace(detector_settings(config), adapters=adapters, group_channels=groups)
    overlap = torch.from_numpy(sources.space.overlap_array)
    detector = build_detector(settings, len(sources.space.classes), overlap)
    carry_over(detector, tensors, len(known.classes))
    after_step = None
    if choice.mode == "frozen":
        after_step = train_new_classes_only(detector, len(known.classes))
    make_run_dir(fabric, run_dir, config, resume)
    if fabric.is_global_zero:
        print(*growth(known, sources.space), *filter(None, [note]), sep="\n", flush=True)
    old = _in_layout(load_detector(parent, fabric.device), config)
    before = _start(fabric, config, sources, old, history[-1], run_dir, resume)
    taught = sources
    further_loss = None
    if choice.mode == "distill" and choice.pseudo:
        taught = _taught(fabric, config, sources, old, choice, run_dir, resume)
    if choice.mode == "distill" and choice.match:
        further_loss = logit_matching(old.model, choice.match)
    del old

    points: dict[str, Any] = json.loads(metadata.get("operating", "{}"))
    written = weights_metadata(config, sources.space, settings)
    record = train_detector(
        fabric,
        config,
        sources,
        detector,
        training_data(config, taught),
        run_dir,
        written | {"operating": json.dumps(points)},
        history,
        resume,
        _stored_points(points, frozen=choice.mode == "frozen"),
        after_step,
        further_loss,
        fixed_statistics=choice.fixed_statistics,
    )
    after = _after(fabric, config, sources, known, run_dir)
    report = _report(fabric, run_dir, history, known.reported, before, after, choice.tolerance)
    return record | {"forgetting": report}


# ------------------------------------------------------------------------------------------ before training


def with_settings_of(metadata: Mapping[str, str], config: Config) -> Config:
    """The config with the model and input settings of the weights.

    What the config says itself under `model` and `input` must be the same (`model.weights` is not used);
    `loss` and `eval` are those of the weights where the config says nothing.

    Raises:
        UserError: lists the keys that contradict; or the section is not for extensions (`pseudo`).
    """
    if config.pseudo is not None:
        raise UserError("pseudo: this section is for `crossdet train`; here it is `extend: {mode: distill}`")
    settings = asdict(DetectorSettings.from_json(metadata["model"]))
    settings["freeze_batch_norm"] = settings.pop("frozen_batch_norm")
    anchors = {key: settings[key] for key in ("scales", "ratios")}
    size = json.loads(metadata["input"])
    fixed: list[tuple[str, Any, dict[str, Any]]] = [
        ("model", config.model, settings),
        ("model.anchors", config.model.anchors, anchors),
        ("input", config.input, size),
    ]
    problems = []
    for name, section, values in fixed:
        for key in sorted(section.model_fields_set & values.keys()):
            said = getattr(section, key)
            if said is not None and said != values[key]:
                problems.append(f"`{name}.{key}`: {_shown(said)}, but the weights have {_shown(values[key])}")
    if problems:
        raise UserError(
            problem_list("the config contradicts the weights; leave these keys out, they come from there", problems)
        )

    def filled(section: Any, values: Mapping[str, Any]) -> Any:
        missing = {key: values[key] for key in type(section).model_fields if key in values}
        return section.model_copy(
            update={key: value for key, value in missing.items() if key not in section.model_fields_set}
        )

    model = config.model.model_copy(
        update={key: value for key, value in settings.items() if key in type(config.model).model_fields}
        | {"anchors": config.model.anchors.model_copy(update=anchors)}
    )
    limits = {key: value for key, value in json.loads(metadata["eval"]).items() if key != "batch_size"}
    return config.model_copy(
        update={
            "model": model,
            "input": config.input.model_copy(update=size),
            "loss": filled(config.loss, settings),
            "eval": filled(config.eval, limits),
            "extend": config.extend or ExtendConfig(),
        }
    )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def _adapters(choice: ExtendConfig, known: int, classes: int, metadata: Mapping[str, str]) -> tuple[Adapter, ...]:
    """Those of the weights, and that of this extension for the classes from `known` on. Where old rows train, too,
    they may use all channels."""
    old = DetectorSettings.from_json(metadata["model"]).adapters
    if choice.mode != "frozen":
        return tuple(adapter._replace(first=0) for adapter in old)
    return (*old, Adapter(known, choice.adapter, known, classes)) if choice.adapter else old


def check_mode(choice: ExtendConfig, known: LabelSpace, sources: Sources, group_norm: bool) -> str | None:
    """Refuses what cannot work (`UserError`); returns a note about what probably will not."""
    mode = choice.mode
    unused = [f"`{key}`" for key in ("pseudo", "match") if getattr(choice, key) != getattr(ExtendConfig(), key)]
    if mode != "distill" and unused:
        raise UserError(
            f"extend: {' and '.join(unused)} of the mode distill, but this is {mode}; say `--mode distill`, or "
            f"leave it out"
        )
    if mode == "distill" and not choice.pseudo and not choice.match:
        raise UserError("extend: the mode distill needs a weight under `match`, `pseudo: true`, or both")
    if mode != "frozen" and choice.adapter:
        raise UserError(
            f"extend.adapter: {choice.adapter}, but only the mode frozen has adapters, and this is {mode}; "
            f"leave it out"
        )
    if group_norm and choice.adapter == 1:
        raise UserError("extend.adapter: 1, but group norm needs at least two channels; take 2 or more")
    new = sources.space.classes[len(known.classes) :]
    if mode == "frozen" and not new:
        raise UserError(
            f"extend.mode: frozen trains new classes only, and the config brings none (the weights know "
            f"{', '.join(known.classes)}); use replay or distill"
        )
    if mode == "frozen" and not choice.adapter:
        return (
            "note: boxes of the new classes come from what the old ones taught; if theirs have other shapes they "
            "need some of their own, `--set extend.adapter=32`"
        )
    learnt = {int(c) for name, index in sources.train.items() for c in sources.space.ids(name, index.classes)} - {
        DROPPED
    }
    forgotten = [name for c, name in enumerate(known.classes) if c not in learnt]
    if mode == "replay" and forgotten:
        return (
            f"note: replay without training images of {', '.join(forgotten)}: give the old datasets again (a "
            f"share is `part: 1/4`), or use the mode distill or frozen"
        )
    return None


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
    resume: bool,
) -> list[Score]:
    """What the old detector scores on its classes; kept in the run directory with the generation."""
    file = run_dir / START_FILE
    if resume and file.exists():
        return [Score(**score) for score in json.loads(file.read_text())["before"]]
    splits = _splits_of(sources, old.space)
    scores: list[Score] = []
    if splits:
        known = replace(sources, space=old.space)  # merged classes without members that are new
        metrics = score_detector(fabric, config, known, old.model, splits).metrics
        scores = main_numbers(metrics, judged_classes(splits))
    if fabric.is_global_zero:
        write_json(file, {"generation": asdict(generation), "before": [asdict(s) for s in scores]})
    fabric.barrier()
    return scores


def _splits_of(sources: Sources, known: LabelSpace) -> dict[str, Split]:
    """The validation splits as far as old classes go; datasets without any are left out."""
    splits = {}
    for name, split in splits_for_training(sources).items():
        ids = np.where(split.class_ids < len(known.reported), split.class_ids, DROPPED)
        if (ids != DROPPED).any():
            splits[name] = replace(split, class_ids=ids)
    return splits


def _stored_points(points: dict[str, Any], frozen: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Thresholds of classes that no validation data speak of stay; with frozen old classes all old ones do."""
    return lambda found: {**found, **points} if frozen else {**points, **found}


# ------------------------------------------------------------------------------------------ the teacher


def _taught(
    fabric: Fabric,
    config: Config,
    sources: Sources,
    old: Detector,
    choice: ExtendConfig,
    run_dir: Path,
    resume: bool,
) -> Sources:
    """The training splits with the old detector's labels, and the label space that knows of them.

    Found once; a resumed run reads what it found.
    """
    thresholds = dict(enumerate(old.class_thresholds()))
    teacher = Teacher(
        "the old detector", old.model, {c: c for c in thresholds}, teacher_settings(config), thresholds
    )
    train, taught = label_images(
        fabric,
        [teacher],
        sources.space,
        sources.train,
        choice.uncertain_from,
        run_dir / TEACHER_FOLDER,
        keep=resume,
    )
    return replace(sources, space=taught_space(sources.space, taught, choice.trust), train=train)


# ------------------------------------------------------------------------------------------ afterwards


def _after(fabric: Fabric, config: Config, sources: Sources, known: LabelSpace, run_dir: Path) -> list[Score]:
    """The main numbers of all classes, of the weights that the run stands for: its best ones.

    Of a dataset with old and new classes the old ones are looked at again without the new, as before: the new
    classes' detections would take places under the protocol's limit per image.
    """
    metrics = _metrics_of_best(run_dir)
    if metrics is None:
        return []
    splits = splits_for_training(sources)
    scores = main_numbers(metrics, judged_classes(splits))
    old = _splits_of(sources, known)
    mixed = {name: split for name, split in old.items() if split.classes != splits[name].classes}
    if mixed:
        model = _in_layout(load_detector(run_dir, fabric.device), config).model
        again = main_numbers(score_detector(fabric, config, sources, model, mixed).metrics, judged_classes(mixed))
        alone = {(score.name, score.dataset): score for score in again}
        scores = [alone.get((score.name, score.dataset), score) for score in scores]
    return scores


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
    tolerance: float | None,
) -> dict[str, Any]:
    """Prints the report and writes it: JSON, plot, and the scores into the weights' metadata."""
    found = changes(before, after)
    content = to_json(found, tolerance, old)
    if fabric.is_global_zero:
        history = [*history[:-1], replace(history[-1], scores=tuple(after))]
        update_metadata(run_dir, to_metadata(history))
        numbers = run_dir / METRICS_FILE
        write_json(numbers, json.loads(numbers.read_text()) | {"forgetting": content})
        draw_generations(run_dir / PLOT_FILE, history, before)
        write_json(run_dir / REPORT_FILE, content)  # the last file: with it the run is complete
        print(report_text(found, old), flush=True)
    fabric.barrier()
    return content
