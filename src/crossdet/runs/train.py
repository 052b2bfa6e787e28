"""`crossdet train`: a config -> a trained detector in a run directory, scored on every dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything

from crossdet.config import Config, as_config
from crossdet.config.beginning import beginning
from crossdet.config.chosen import batch_norm_lines, start_of
from crossdet.config.doubts import label_warnings, training_warnings
from crossdet.config.sources import Sources, named_splits, open_sources
from crossdet.data.hybrid import HybridDataset
from crossdet.errors import UserError
from crossdet.evaluation.forgetting import main_numbers
from crossdet.evaluation.pictures import write_val_pictures
from crossdet.inference import load_detector
from crossdet.models.card import START_FILE, Card, first_generation
from crossdet.models.contract import Network
from crossdet.models.hub import fetched
from crossdet.models.weights import STATE_FILE
from crossdet.runs.building import (
    build_fabric,
    build_network,
    check_trainable,
    device_line,
    has_fixed_batch_norm,
    network_settings,
    new_card,
    teacher_settings,
    training_data,
)
from crossdet.runs.directory import check_run_dir, check_teachers_stay, run_directory, training_in
from crossdet.runs.evaluate import judged_classes, metrics_table, score_network, splits_for_training
from crossdet.training.identity import Identity, run_identity
from crossdet.training.loop import fit
from crossdet.training.pseudo_labels import TEACHER_FOLDER
from crossdet.training.schedule import Schedule
from crossdet.training.state import Course, EpochData
from crossdet.training.teachers import TEACHER_DECAY, TeacherLabels, TeacherPlan, open_teachers, teacher_epochs
from crossdet.training.watch import Watch

PICTURES = "pictures"


def train(
    config: Config | str | Path, output: str | Path | None = None, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains the detector of `config`, evaluates it by every dataset's protocol, and returns the last record.

    Args:
        config: a `Config` or the path of a YAML file.
        output: run directory; default `config.output`.
        resume: continue the run in `output` exactly where its state stands; from the start if there is none. With
            more `train.epochs` than it was to have it goes on with their schedule.
        overwrite: delete what an earlier run left in `output`.

    Raises:
        UserError: a mistake in the config or the data, found before training starts.
        RunError: non-finite loss, interruption (resumable), full disk.
    """
    config = as_config(config)
    run_dir = run_directory(config, output)
    sources = open_sources(config)
    check_trainable(sources, config.train.plain)
    epochs = config.train.epochs_for(sources.train_pictures)
    last_file = PICTURES if sources.val else STATE_FILE
    began = check_run_dir(run_dir, config, resume, overwrite, last_file, epochs=epochs)
    fabric = build_fabric(config)
    if resume and (run_dir / START_FILE).exists():
        raise UserError(f"{run_dir} is an extension; resume it with `crossdet extend`, its weights and its config")
    begun = resume and (run_dir / STATE_FILE).exists()
    if resume and not begun and fabric.is_global_zero:
        print(f"resume: {run_dir} holds no state of a training; it starts from the beginning", flush=True)
    plan, teachers = teacher_plan_of(config, sources), []
    if plan is not None:
        check_teachers_stay(plan.sources, run_dir)
    if plan is not None and not begun:
        teachers = open_teachers(plan, lambda source: load_detector(fetched(source), fabric.device))
    settings = network_settings(config, began)  # may make a backbone to count its parameters, so before the seed
    seed_everything(config.seed, verbose=False)
    network = build_network(settings, sources.space, config.model.weights)
    datasets = {name: list(index.classes) for name, index in sources.train.items()}
    card = new_card(config, sources.space, settings, [first_generation(datasets, sources.space)])
    identity = run_identity(card, named_splits(sources))
    with training_in(fabric, run_dir, config, resume, overwrite, identity, network):

        def labelled_data(by_teacher: TeacherLabels) -> EpochData:
            labelled = replace(sources, space=by_teacher.space, train=by_teacher.train)
            return EpochData(training_data(config, labelled, network.fill_colour), by_teacher.background_weight)

        course = Course()
        if plan is not None:
            course = Course(
                data_of=teacher_epochs(fabric, plan, teachers, run_dir / TEACHER_FOLDER, begun, labelled_data),
                teacher_decay=TEACHER_DECAY if plan.schedule is not None else None,
                labels_from=None if plan.schedule is None else plan.schedule[0],
            )
        del teachers  # their memory is for the training
        data = training_data(config, sources, network.fill_colour)
        record = train_network(fabric, config, sources, network, data, run_dir, card, identity, resume, course)
        fabric.barrier()
        return record


def train_network(
    fabric: Fabric,
    config: Config,
    sources: Sources,
    network: Network,
    dataset: HybridDataset,
    run_dir: Path,
    card: Card,
    identity: Identity,
    resume: bool,
    course: Course,
    operating: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    rate_share: float = 1.0,
) -> dict[str, Any]:
    """Trains built parts, evaluates on the validation splits, draws their pictures; returns the last record.

    card: of the weights; its last generation is this training's, and every weights file gets its own scores into
    it. identity: of what is trained, for its state. operating: the operating points that are found -> those that
    are stored. rate_share: of `Start`, in an extension.
    """
    fresh = len(card.generations) == 1
    schedule = Schedule.of(config.train, len(dataset), start_of(config, not fresh, rate_share))
    if fabric.is_global_zero:
        print(*_told(fabric, config, sources, card, schedule, fresh), sep="\n", flush=True)
    if config.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if config.train.freeze_stem:
        network.freeze_stem()
    splits = splits_for_training(sources)
    watch = Watch(
        sources.train,
        sources.val,
        config.input.shorter,
        fresh=fresh,
        knew=not fresh or config.model.weights != "none",
        fixed=has_fixed_batch_norm(network, card.settings),
    )

    def score(model: Network, when: str) -> dict[str, Any]:
        metrics = score_network(fabric, config, sources, model, splits).metrics
        metrics["operating"] = operating(metrics.get("operating", {}))
        if fabric.is_global_zero:
            print(f"evaluation, {when}:\n{metrics_table(metrics)}", flush=True)
        return metrics

    def describe(metrics: dict[str, Any]) -> Card:
        scored = replace(card, operating=metrics["operating"] or card.operating)
        if sources.space.has_members:
            return scored
        *earlier, this = card.generations
        scores = main_numbers(metrics, judged_classes(splits))
        return replace(scored, generations=(*earlier, replace(this, scores=tuple(scores))))

    record = fit(
        fabric,
        network,
        dataset,
        list(sources.space.datasets),
        schedule,
        config.seed,
        run_dir,
        card,
        score if sources.val else None,
        describe,
        replace(course, watch=watch),
        resume,
        identity,
    )
    if fabric.is_global_zero and sources.val:
        detector = load_detector(run_dir, fabric.device)
        write_val_pictures(detector, sources.space, sources.val, run_dir / PICTURES)
    fabric.barrier()
    return record


def _told(
    fabric: Fabric, config: Config, sources: Sources, card: Card, schedule: Schedule, fresh: bool
) -> list[str]:
    """What is said before a training. fresh: it extends nothing."""
    network_is, *_ = card.settings.described(card.space.classes)
    begun = beginning(card.settings, card.space, config.model.weights) if fresh else []
    begun += batch_norm_lines(config, fabric.world_size, card.settings) if fresh else []
    warnings = [*training_warnings(config, sources, not fresh), *label_warnings(config, sources, ["train"])]
    lines = [f"network: {network_is}", *begun, device_line(fabric, config), *schedule.lines()]
    return [*lines, *(f"warning: {text}" for text in warnings)]


def teacher_plan_of(config: Config, sources: Sources) -> TeacherPlan | None:
    """What teachers do in a joint training; None without them."""
    pseudo = config.pseudo
    if pseudo is None:
        return None
    if problem := pseudo.never_labels(config.train, sources.train_pictures):
        raise UserError(problem)
    return TeacherPlan(
        sources.space,
        sources.train,
        splits_for_training(sources),
        teacher_settings(config),
        () if isinstance(pseudo.teachers, str) else pseudo.teachers,
        pseudo.schedule(config.train.epochs_for(sources.train_pictures)) if pseudo.teachers == "self" else None,
        pseudo.beta,
        pseudo.uncertain_from,
        pseudo.negative_weight,
    )
