"""From a row of the paper's tables to a config, a run and a JSON; and the queue of all of them.

No torch before a training starts: naming, resolving and listing experiments is instant.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from crossdet.config import Config, dump_config, load_config
from crossdet.config.mistakes import suggest
from crossdet.errors import UserError, problem_list
from crossdet.files import write_atomically
from crossdet_research import jobs, study
from crossdet_research.paper import data as paper_data
from crossdet_research.paper import rows as paper
from crossdet_research.study import Job, Method
from crossdet_research.tables import Run

Scale = Literal["full", "mini"]
DATA = "DATA"
"""Stands for the data folder in stored configs."""


@dataclass(frozen=True)
class Experiment:
    """One training at one scale. photos: table 5 at mini scale on photographs instead of generated pictures."""

    training: paper.Training
    scale: Scale
    photos: bool = False

    @property
    def name(self) -> str:
        return f"{self.training.name}_photos" if self.photos else self.training.name

    def stem(self, seed: int) -> str:
        """Name of its run directory, config and JSON."""
        return f"{self.name}_seed{seed}"


@dataclass(frozen=True)
class Place:
    """root: the data folder. output: where results go. images: generated ones per dataset, at mini scale."""

    root: Path
    output: Path
    images: int = paper.MINI_IMAGES


def find_rows(names: Sequence[str]) -> list[paper.Row]:
    """The rows meant by `t1/coco_resnet50` (a row), `coco_resnet50` (all rows of a training) or `t1` (a table).
    Raises `UserError` with all names that are none of these."""
    chosen: list[paper.Row] = []
    problems = []
    known = [*map(paper.short, paper.TITLES), *paper.TRAININGS, *(row.name for row in paper.ROWS)]
    for name in names:
        found = [row for row in paper.ROWS if name in (row.name, row.training, paper.short(row.table))]
        if not found:
            problems.append(f"no row, training or table {name!r}; {suggest(name, known, 'names')}")
        chosen += [row for row in found if row not in chosen]
    if problems:
        raise UserError(problem_list("`crossdet-research paper list` shows what there is", problems))
    return chosen


def experiments_of(rows: Sequence[paper.Row], scale: Scale, root: Path) -> list[Experiment]:
    """Each distinct training once, in the order of the rows."""
    photos = scale == "mini" and paper_data.has_photos(root)
    return list(
        dict.fromkeys(Experiment(paper.TRAININGS[row.training], scale, photos and row.table == "5") for row in rows)
    )


def settings(experiment: Experiment, root: Path, seed: int = 0, images: int = paper.MINI_IMAGES) -> dict[str, Any]:
    """The config as plain values; data paths are `root` and what lies below it."""
    training = experiment.training
    full = experiment.scale == "full"
    blocks = {paper.DATASETS[name].key: _block(experiment, name) for name in training.datasets}
    recipe = paper.FULL if full else paper.MINI
    return {
        "datasets": {key: _below(root, block) for key, block in blocks.items()},
        "labels": {"merge": merge_rules(training, by_name=not full)},
        "model": {
            "backbone": training.backbone if full else paper.MINI_BACKBONES[training.backbone],
            **recipe["model"],
            "anchors": {"scales": list(training.anchors.scales), "ratios": list(training.anchors.ratios)},
        },
        "loss": {"foreground_negatives": "all"},  # sec. 3.3: every positive anchor
        "input": dict(recipe["input"]),
        "train": {**recipe["train"], **({} if full else mini_schedule(_image_count(experiment, root, images)))},
        "eval": dict(recipe.get("eval", {})),
        "seed": seed,
    }


def mini_schedule(images: int) -> dict[str, Any]:
    """`MINI_STEPS` steps with warm-up and falls at the same steps, for a union of `images` training images."""
    epochs = paper.MINI_STEPS * paper.MINI["train"]["batch_size"] / images
    return {
        "epochs": max(1, math.ceil(epochs)),
        "warmup_epochs": round(paper.MINI_WARMUP * epochs, 4),
        "steps": [round(share * epochs, 4) for share in paper.MINI_FALLS],
        "max_steps": paper.MINI_STEPS,
    }


def merge_rules(training: paper.Training, by_name: bool = False) -> dict[str, Any]:
    """Merge groups. WIDER Pedestrian's two classes are always one, as its challenge judges them. by_name: at mini
    scale the classes that VOC shares with COCO have equal names. Without `merge` person and pedestrian stay two
    classes: no rule is needed, their names differ."""
    rules: dict[str, Any] = {}
    people = ["peds/pedestrian", "peds/cyclist"]
    if "PED" in training.datasets:
        if training.merge and "COCO" in training.datasets:
            rules["person"] = ["coco/person", *people]
        else:
            rules["pedestrian"] = people
    if {"COCO", "VOC"} <= set(training.datasets):
        if by_name:
            rules["same_names"] = True
        else:
            names = {voc: paper.COCO_NAMES.get(voc, voc) for voc in paper.VOC_CLASSES}
            rules |= {coco: [f"coco/{coco}", f"voc/{voc}"] for voc, coco in names.items()}
    return rules


def resolve(experiment: Experiment, place: Place, seed: int = 0, overrides: Sequence[str] = ()) -> Config:
    """The validated config, with `key=value` overrides; no data file needs to exist. Under torchrun `train.devices`
    is the number of its processes. Raises `ConfigError`."""
    root = place.root.absolute()
    values = settings(experiment, root, seed, place.images)
    devices = [f"train.devices={jobs.processes()}"] if jobs.processes() > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{experiment.stem(seed)}.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        config = load_config(file, [*overrides, *devices])
    return config.model_copy(update={"output": None})


def show(row_or_training: str, place: Place, scale: Scale, seed: int = 0, overrides: Sequence[str] = ()) -> str:
    """The full resolved config as YAML, below a comment that says what it stands for."""
    rows = find_rows([row_or_training])
    experiments = experiments_of(rows, scale, place.root)
    trainings = {experiment.training.name for experiment in experiments}
    if len(trainings) > 1:
        raise UserError(
            f"{row_or_training}: {len(trainings)} trainings; name one of {', '.join(sorted(trainings))}"
        )
    experiment, training = experiments[0], experiments[0].training
    text = dump_config(resolve(experiment, place, seed, overrides))
    all_rows = [row.name for row in paper.ROWS if row.training == training.name]
    notes = sorted({note for row in rows for note in row.notes})
    head = [
        f"{training.name}, {scale} scale: {', '.join(paper.DATASETS[name].title for name in training.datasets)}",
        f"rows of the paper: {', '.join(all_rows)}",
        f"data: {data_kind(experiment)}",
        *([f"contradictions: {', '.join(map(str, notes))} (crossdet-research paper list)"] if notes else []),
        f"run: crossdet-research paper run {row_or_training} --data {place.root} --scale {scale} --seed {seed}",
    ]
    return "".join(f"# {line}\n" for line in head) + text


def data_kind(experiment: Experiment) -> str:
    if experiment.scale == "full":
        return "official downloads"
    return "small sets of photographs" if experiment.photos else "generated pictures"


def _block(experiment: Experiment, name: str) -> Mapping[str, Any]:
    dataset = paper.DATASETS[name]
    if experiment.scale == "full":
        return dataset.full
    return dataset.photos if experiment.photos else dataset.mini


def _below(root: Path, block: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's section with the paths of its splits below `root`."""

    def path(value: Any) -> Any:
        return [path(item) for item in value] if isinstance(value, list) else str(root / str(value))

    return {
        key: {k: v if k == "image_set" else path(v) for k, v in value.items()} if key in ("train", "val") else value
        for key, value in block.items()
    }


def _image_count(experiment: Experiment, root: Path, images: int) -> int:
    if not experiment.photos:
        return images * len(experiment.training.datasets)
    return sum(paper_data.count_photos(root, name) for name in experiment.training.datasets)


@dataclass(frozen=True)
class PaperJob(Job):
    experiment: Experiment

    of_queue = "for the paper's queue"

    @property
    def title(self) -> str:
        return f"{self.experiment.name}, {self.experiment.scale}, seed {self.seed}"

    def problems(self) -> Iterator[str]:
        if self.file.exists():
            jobs.check_same(self.what, jobs.read_json(self.file).get("config"), self.file)
        elif (self.run_dir / "state.pt").exists() and not self.note:
            yield (
                f"{self.run_dir} holds a run of another command, or has lost its {jobs.NOTE}; move it away, or use "
                f"another folder with --output"
            )

    def train(self) -> dict[str, Any]:
        record = super().train()
        if jobs.is_first():
            write_atomically(self.file.with_suffix(".yaml"), dump_config(self.config).encode())
        return record

    def result(self, record: Run | None, diverged: str | None) -> dict[str, Any]:
        from crossdet.config.sources import open_sources

        sources, training, photos = open_sources(self.config), self.experiment.training, self.experiment.photos
        common = super().result(record, diverged)
        content = {
            "training": training.name,
            "scale": self.experiment.scale,
            "data": data_kind(self.experiment),
            "rows": [
                row.name for row in paper.ROWS if row.training == training.name and (not photos or row.table == "5")
            ],
            "datasets": {
                name: {"train_images": len(sources.train[name]), "val_images": len(sources.val[name])}
                for name in sources.train
            },
            "classes": len(sources.space.classes),
            "metrics": study.metrics_of(record),
            "seconds": round(self.note.get("seconds", 0.0), 1),
            "hardware": self.note.get("hardware", {}),
            "version": self.note.get("version", {}),
        }
        return {key: common[key] for key in ("seed", "epochs", "steps", "finished", "config")} | content


def run_queue(
    experiments: Sequence[Experiment],
    place: Place,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Runs what is not finished, all experiments with the first seed first; returns the JSON of each.

    A finished one is skipped, an unfinished one continued. A training whose loss diverges is named at the end and
    does not stop the others.

    Raises `UserError` of mistakes in config or data, and what `study.check` and `study.run` raise.
    """
    queue = []
    for seed in seeds:
        for experiment in experiments:
            config, stem = resolve(experiment, place, seed, overrides), experiment.stem(seed)
            folder, roots = place.output / experiment.scale, {place.root: DATA}
            queue.append(
                PaperJob(
                    method=Method(experiment.name, experiment.name),
                    seed=seed,
                    config=config,
                    what=jobs.comparable(config, roots),
                    run_dir=folder / stem,
                    file=folder / f"{stem}.json",
                    roots=roots,
                    experiment=experiment,
                )
            )
    study.check(queue)
    todo = [job for job in queue if not job.file.exists()]
    _prepare([job.experiment for job in todo], place)
    _check_files([job.config for job in todo])
    first = jobs.is_first()  # of the processes: it speaks for all
    return study.run(queue, say if first else lambda _: None, divergence_is_a_result=False)


def _prepare(experiments: Sequence[Experiment], place: Place) -> None:
    """Writes the generated pictures that are needed, where they are missing."""
    generated = [e for e in experiments if e.scale == "mini" and not e.photos]
    if jobs.processes() > 1 and any(e.scale == "mini" for e in experiments):
        raise UserError("mini experiments take minutes on one device; start them without torchrun")
    names = {name for experiment in generated for name in experiment.training.datasets}
    if names - {"VOC"}:
        paper_data.write_world(place.root, place.images)
    if "VOC" in names:
        paper_data.write_voc_objects(place.root, place.images)


def _check_files(configs: Sequence[Config]) -> None:
    """Raises `UserError` with all data files of the whole queue that are not there: not after hours of training."""
    files = [file for config in configs for found in jobs.data_files(config).values() for file in found]
    missing = [file for file in dict.fromkeys(files) if not file.exists()]
    if missing:
        raise UserError(
            problem_list("data that is not there (docs/paper.md says where it comes from)", map(str, missing))
        )
