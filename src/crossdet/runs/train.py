"""From a config to built parts and to the functions that use them; the only place that builds.

`train`, `evaluate`, `predict` and `load_detector` are the Python API; the command line calls the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything

from crossdet.config import Config, load_config
from crossdet.config.sources import Sources, listed_only_problem, named_splits, open_sources
from crossdet.data.augment import Augment
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.loading import epoch_batches, make_loader
from crossdet.errors import UserError
from crossdet.evaluation.forgetting import main_numbers
from crossdet.evaluation.pictures import write_val_pictures
from crossdet.evaluation.run import EvalSettings
from crossdet.evaluation.splits import Split
from crossdet.inference import AnyImage, Detector, load_detector
from crossdet.labels.members import lonely_members
from crossdet.labels.space import LabelSpace
from crossdet.models.building import DetectorSettings, build_detector
from crossdet.models.provenance import START_FILE, Generation, first_generation, to_metadata
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.weights import STATE_FILE
from crossdet.runs.directory import check_run_dir, check_teachers_stay, make_run_dir, run_directory
from crossdet.runs.evaluate import (
    Evaluation,
    judged_classes,
    metrics_table,
    score_splits,
    splits_for_detector,
    splits_for_training,
    write_evaluation,
)
from crossdet.training.identity import run_identity
from crossdet.training.loop import DataOfEpoch, EpochData, FurtherLoss, fit
from crossdet.training.pseudo_labels import TEACHER_FOLDER
from crossdet.training.recipe import Recipe
from crossdet.training.teachers import TEACHER_DECAY, Lesson, Taught, open_teachers, taught_epochs
from crossdet.types import Batch, Detections

__all__ = ["evaluate", "load_detector", "predict", "train", "training_batches"]


def train(
    config: Config | str | Path, output: str | Path | None = None, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains the detector of `config`, evaluates it by every dataset's protocol, and returns the last record.

    Args:
        config: a `Config` or the path of a YAML file.
        output: run directory; default `config.output`.
        resume: continue the run in `output` exactly where its state stands; from the start if there is none.
        overwrite: delete what an earlier run left in `output`.

    Raises:
        UserError: a mistake in the config or the data, found before training starts.
        RunError: non-finite loss, interruption (resumable), full disk.
    """
    config = as_config(config)
    run_dir = run_directory(config, output)
    sources = open_sources(config)
    check_trainable(sources, config.train.plain)
    check_run_dir(run_dir, config, resume, overwrite)
    fabric = build_fabric(config)
    if resume and (run_dir / START_FILE).exists():
        raise UserError(f"{run_dir} is an extension; resume it with `crossdet extend`, its weights and its config")
    begun = resume and (run_dir / STATE_FILE).exists()
    lesson, teachers = lesson_of(config, sources), []
    if lesson is not None:
        check_teachers_stay(lesson.paths, run_dir)
    if lesson is not None and not begun:
        teachers = open_teachers(lesson, lambda path: load_detector(path, fabric.device))
    seed_everything(config.seed, verbose=False)
    settings = detector_settings(config)
    detector = build_detector(
        settings, len(sources.space.classes), torch.from_numpy(sources.space.overlap_array), config.model.weights
    )
    make_run_dir(fabric, run_dir, config, resume)
    datasets = {name: list(index.classes) for name, index in sources.train.items()}
    history = [first_generation(datasets, sources.space)]
    metadata = weights_metadata(config, sources.space, settings)

    def taught_data(taught: Taught) -> EpochData:
        labelled = replace(sources, space=taught.space, train=taught.train)
        return EpochData(training_data(config, labelled), taught.background_weight)

    data_of = None
    if lesson is not None:
        data_of = taught_epochs(fabric, lesson, teachers, run_dir / TEACHER_FOLDER, begun, taught_data)
    del teachers  # their memory is for the training
    record = train_detector(
        fabric,
        config,
        sources,
        detector,
        training_data(config, sources),
        run_dir,
        metadata,
        history,
        resume,
        data_of=data_of,
    )
    fabric.barrier()
    return record


def train_detector(
    fabric: Fabric,
    config: Config,
    sources: Sources,
    detector: RetinaNet,
    dataset: HybridDataset,
    run_dir: Path,
    metadata: dict[str, str],
    history: Sequence[Generation],
    resume: bool,
    operating: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    after_step: Callable[[], None] | None = None,
    further_loss: FurtherLoss | None = None,
    data_of: DataOfEpoch | None = None,
    fixed_statistics: bool = False,
) -> dict[str, Any]:
    """Trains built parts, evaluates on the validation splits, draws their pictures; returns the last record.

    history: the generations of the weights, this training's last; every weights file gets its own scores into it.
    operating: the operating points that are found -> those that are stored. after_step, further_loss, data_of,
    fixed_statistics: see `fit`.
    """
    if fabric.is_global_zero:
        for text in filter(None, [config.train.early_decay, *lonely_members(sources.space)]):
            print(f"warning: {text}", flush=True)
    if config.train.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    splits = splits_for_training(sources)

    def score(model: RetinaNet, when: str) -> dict[str, Any]:
        metrics = score_detector(fabric, config, sources, model, splits).metrics
        metrics["operating"] = operating(metrics.get("operating", {}))
        if fabric.is_global_zero:
            print(f"evaluation, {when}:\n{metrics_table(metrics)}", flush=True)
        return metrics

    def describe(metrics: dict[str, Any]) -> dict[str, str]:
        points = {"operating": json.dumps(metrics["operating"])} if metrics["operating"] else {}
        if sources.space.has_members:
            return points
        scores = main_numbers(metrics, judged_classes(splits))
        return points | to_metadata([*history[:-1], replace(history[-1], scores=tuple(scores))])

    record = fit(
        fabric,
        detector,
        dataset,
        list(sources.space.datasets),
        recipe(config),
        run_dir,
        evaluate=score if sources.val else None,
        metadata=metadata | to_metadata(history),
        resume=resume,
        after_step=after_step,
        further_loss=further_loss,
        data_of=data_of,
        fixed_statistics=fixed_statistics,
        identity=run_identity(metadata, named_splits(sources)),
        describe=describe,
    )
    if fabric.is_global_zero and sources.val:
        write_val_pictures(load_detector(run_dir, fabric.device), sources.space, sources.val, run_dir / "pictures")
    fabric.barrier()
    return record


def score_detector(
    fabric: Fabric, config: Config, sources: Sources, model: RetinaNet, splits: dict[str, Split]
) -> Evaluation:
    """Scores of a network on validation splits, at the precision and by all processes of a training."""
    return score_splits(
        model,
        config,
        splits,
        sources.lists,
        config.input,
        sources.space.folding,
        autocast=fabric.autocast(),
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )


def evaluate(
    run_or_weights: str | Path | Detector,
    config: Config | str | Path,
    split: str = "val",
    output: str | Path | None = None,
    fold: bool = True,
    agnostic_nms: bool | None = None,
    last: bool = False,
) -> dict[str, Any]:
    """Scores a trained detector on every dataset of `config`, each by its protocols on the classes it labels.

    The detector's classes are found by their unified names, so the config may hold other datasets than those it
    was trained on; datasets that it was trained on mean what they meant, and the label rules may name them.

    output: a folder for precision-recall curves (PNG and data) and for the detections in each dataset's own layout.
    fold: the directions of a class, and its classes per dataset, are judged as one class (docs/orientation.md);
    False: each for itself.
    agnostic_nms: of several classes at one place the best is left, among the classes that a dataset labels; None =
    as the config's `eval` says.
    last: of a run directory its newest weights, not its best ones.

    Raises:
        UserError: unreadable weights or data, or classes that the detector does not know.
    """
    detector = run_or_weights
    if not isinstance(detector, Detector):
        detector = load_detector(detector, last=last)
    config = as_config(config, detector.space.datasets).with_agnostic_nms(agnostic_nms)
    if all(getattr(dataset, split) is None for dataset in config.datasets.values()):
        raise UserError(f"no dataset of the config has a `{split}` split")
    sources = open_sources(config, [split], detector=detector.space)
    splits = splits_for_detector(sources, getattr(sources, split), detector, fold)
    folding = detector.space.folding if fold else None
    evaluation = score_splits(detector.model, config, splits, sources.lists, detector.settings, folding)
    if output is not None:
        name = run_or_weights if isinstance(run_or_weights, str | Path) else "detector"
        write_evaluation(Path(output), evaluation, Path(name).stem)
    return evaluation.metrics


def predict(
    weights: str | Path | Detector,
    images: AnyImage | list[AnyImage] | tuple[AnyImage, ...],
    classes: Sequence[str] | None = None,
    score_threshold: float | None = None,
    agnostic_nms: bool | None = None,
) -> list[Detections]:
    """Detections of each image; see `crossdet.inference.Detector` for what an image may be.

    agnostic_nms: of several classes at one place the best is left; None = as the weights say.
    """
    detector = weights if isinstance(weights, Detector) else load_detector(weights)
    many = list(images) if isinstance(images, list | tuple) else [images]
    more = {} if agnostic_nms is None else {"agnostic_nms": agnostic_nms}
    return [detector(image, classes, score_threshold, **more) for image in many]


# ------------------------------------------------------------------------------------------ builders


def build_fabric(config: Config) -> Fabric:
    """Fabric for the config's devices and precision. Started by torchrun, it takes the processes from there."""
    settings = config.train
    accelerator = settings.accelerator
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("train.accelerator: cuda, but torch sees no GPU here; use auto or cpu")
    devices, nodes, strategy = settings.devices, 1, "ddp" if settings.devices > 1 else "auto"
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        strategy = "ddp"
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=nodes, precision=settings.precision, strategy=strategy
    )
    fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Whether this process speaks for the run: true for the only process, and for rank 0 of several."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def detector_settings(config: Config) -> DetectorSettings:
    """Architecture and loss settings; batch norm is frozen iff weights are given, unless the config says."""
    model, loss = config.model, config.loss
    frozen = model.freeze_batch_norm
    return DetectorSettings(
        backbone=model.backbone,
        channels=model.channels,
        head_depth=model.head_depth,
        group_norm=model.group_norm,
        scales=model.anchors.scales,
        ratios=model.anchors.ratios,
        prior=model.prior,
        positive_iou=model.positive_iou,
        negative_iou=model.negative_iou,
        low_quality_matches=model.low_quality_matches,
        alpha=loss.alpha,
        gamma=loss.gamma,
        foreground_negatives=loss.foreground_negatives,
        box_beta=loss.box_beta,
        box_weight=loss.box_weight,
        normaliser=loss.normaliser,
        frozen_batch_norm=model.weights != "none" if frozen is None else frozen,
    )


def recipe(config: Config) -> Recipe:
    t, pseudo = config.train, config.pseudo
    return Recipe(
        epochs=t.epochs,
        batch_size=t.batch_size,
        lr=t.lr,
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        warmup_epochs=t.warmup_epochs,
        warmup_factor=t.warmup_factor,
        steps=t.steps,
        step_factor=t.step_factor,
        max_steps=t.max_steps,
        clip_norm=t.clip_norm,
        accumulate=t.accumulate,
        ema=t.ema,
        teacher_ema=TEACHER_DECAY if pseudo is not None and pseudo.teachers == "self" else None,
        compile=t.compile,
        group_aspect=t.group_aspect,
        workers=t.workers,
        seed=config.seed,
        eval_every=t.eval_every,
        checkpoint_minutes=t.checkpoint_minutes,
        checkpoint_steps=t.checkpoint_steps,
        log_every=t.log_every,
    )


def training_data(config: Config, sources: Sources) -> HybridDataset:
    """The hybrid dataset of all training splits, with the config's augmentation."""
    space = sources.space
    parts = []
    for name, index in sources.train.items():
        dataset = config.datasets[name]
        parts.append(
            Part(
                index=index,
                row=space.dataset_index(name),
                class_ids=space.ids(name, index.classes),
                weight=dataset.weight,
                repeat_threshold=dataset.repeat_threshold,
                difficult_as_region=dataset.difficult == "ignore",
                one_direction=True,
            )
        )
    transform = Augment(
        shorter=config.input.shorter,
        longer=config.input.longer,
        flip=config.augment.flip,
        scale_jitter=(config.augment.scale_jitter[0], config.augment.scale_jitter[1]),
        photometric=config.augment.photometric,
    )
    return HybridDataset(parts, space, transform, plain=config.train.plain)


def teacher_settings(config: Config) -> EvalSettings:
    """How a teacher looks at images: as large as the network in training, with the limits of `eval`, and NMS by
    class: one class's label must not depend on what else the teacher sees there."""
    own = {"score_threshold": None, "max_detections": None, "agnostic_nms": False}
    return EvalSettings.of(config.input, config.eval, config.train.workers, **own)


def lesson_of(config: Config, sources: Sources) -> Lesson | None:
    """What teachers do in a joint training; None without them."""
    pseudo = config.pseudo
    if pseudo is None:
        return None
    return Lesson(
        sources.space,
        sources.train,
        splits_for_training(sources),
        teacher_settings(config),
        () if isinstance(pseudo.teachers, str) else pseudo.teachers,
        pseudo.schedule(config.train.epochs) if pseudo.teachers == "self" else None,
        pseudo.beta,
        pseudo.uncertain_from,
        pseudo.negative_weight,
    )


def training_batches(
    config: Config | str | Path, count: int, epoch: int = 0, known: LabelSpace | None = None
) -> tuple[list[Batch], Sources]:
    """The first training batches of an epoch, exactly as training would see them (for looking at them).

    known: the label space that an extension grows.
    """
    config = as_config(config)
    sources = open_sources(config, known=known)
    check_trainable(sources, plain=True)  # looking is how the question gets answered
    dataset = training_data(config, sources)
    batches = epoch_batches(
        dataset.sizes(),
        dataset.draw_weights(),
        config.train.batch_size,
        config.seed,
        epoch,
        config.train.group_aspect,
    )
    return list(make_loader(dataset, batches[:count])), sources


def weights_metadata(config: Config, space: LabelSpace, settings: DetectorSettings) -> dict[str, str]:
    """What a weights file carries besides tensors: enough to predict with it."""
    return {
        "labels": space.to_json(),
        "model": settings.to_json(),
        "input": json.dumps({"shorter": config.input.shorter, "longer": config.input.longer}),
        "eval": config.eval.model_dump_json(),
    }


def as_config(config: Config | str | Path, known_datasets: Sequence[str] = ()) -> Config:
    """The config itself, or the one in a file. known_datasets: see `load_config`."""
    return config if isinstance(config, Config) else load_config(config, known_datasets=known_datasets)


def check_trainable(sources: Sources, plain: bool = False) -> None:
    """Raises `UserError` if there is nothing to train on, or if it is not said whose background may be trusted.

    plain: all background is trusted on purpose (`train.plain`).
    """
    if not sources.train:
        raise UserError("no dataset of the config has a `train` split")
    empty = [name for name, index in sources.train.items() if not len(index)]
    if empty:
        raise UserError(f"datasets without a single training image: {', '.join(empty)}")
    if not any(len(index.boxes) for index in sources.train.values()):
        raise UserError("the training splits hold no box at all")
    if sources.listed_only and not plain:
        raise UserError(listed_only_problem(sources.listed_only))
