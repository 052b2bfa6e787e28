"""`crossdet audit`: runs one or several detectors over the datasets of a config, for all classes at once, and
reports what no protocol sees (`evaluation.audit`) as numbers, one HTML page and files for a labelling tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from crossdet.config import Config, UnionTestConfig
from crossdet.config.listed_only import listed_without_box, names_learnt_from
from crossdet.config.sources import Sources, check_split, open_sources, union_test_index
from crossdet.data.index import Index
from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.audit import AuditedSplit, audit, to_json, union_scores
from crossdet.evaluation.audit_page import AuditedRun, export_coco, write_page
from crossdet.evaluation.audit_summary import summary
from crossdet.evaluation.run import EvalSettings, detect_folded
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.evaluation.tables import lineless_table, percent
from crossdet.evaluation.union import in_classes
from crossdet.export.detector import most_detections
from crossdet.export.network import ExportedNetwork
from crossdet.files import check_room, safe_names, write_json
from crossdet.inference import Detector, load_detector
from crossdet.labels.space import DROPPED
from crossdet.runs.building import loader_workers
from crossdet.runs.evaluate import positions, splits_for_detector
from crossdet.yaml_text import rule

SCORE_THRESHOLD = 0.05
MAX_DETECTIONS = 1000
"""Of all classes together, so that the many of one class do not crowd out another's: with 300 they did, where a
young detector had sixteen classes, and thresholds were others than those of `predict`."""


def audit_runs(
    runs: Sequence[Path],
    config: Config,
    output: Path,
    split: str = "val",
    agnostic_nms: bool | None = None,
    last: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Audits the detectors of `runs` on the `split` of every dataset of `config`, and on its `union_test`.

    Writes `audit.html`, `audit.json` and, of the first run, `unlabelled_DATASET.json` into `output`; returns what
    `audit.json` holds: run name -> numbers. agnostic_nms: None = as the config's `eval` says. last: of a run
    directory its newest weights, not its best ones. device: of `load_detector`.

    Raises:
        UserError: unreadable weights or data, detectors of different classes, no dataset with such a split.
        RunError: what cannot be written.
    """
    check_room(output)
    audited = [one for one, _ in audited_runs(runs, config.with_agnostic_nms(agnostic_nms), split, last, device)]
    content = {
        run.name: to_json(run.audit) | {"union_test": run.union, "summary": list(run.summary)} for run in audited
    }
    names = safe_names([part.name for part in audited[0].splits])
    for part, name in zip(audited[0].splits, names, strict=True):
        export_coco(output / f"unlabelled_{name}.json", part, audited[0].audit)
    write_json(output / "audit.json", content)
    write_page(output / "audit.html", audited)
    return content


def audited_runs(
    runs: Sequence[Path],
    config: Config,
    split: str = "val",
    last: bool = False,
    device: str | None = None,
    only_known: bool = False,
) -> list[tuple[AuditedRun, Detector]]:
    """Each detector with its audit; arguments and errors as of `audit_runs`, which writes it. only_known: of
    `splits_for_detector`."""
    detectors = [load_detector(run, device, last=last) for run in runs]
    names = _run_names(runs)
    for name, detector in zip(names, detectors, strict=True):
        mine, first = _classes(detector), _classes(detectors[0])
        if mine != first and sorted(mine) == sorted(first):
            raise UserError(f"{name} has the classes of {names[0]} in another order; audit them one by one")
        if mine != first:
            raise UserError(
                f"{name} knows other classes ({', '.join(mine)}) than {names[0]} ({', '.join(first)}); audit them "
                f"one by one"
            )
    check_split(config, split)
    sources = open_sources(config, [split], detector=detectors[0].space)
    indexes: dict[str, Index] = getattr(sources, split)
    union = None if config.union_test is None else open_union_test(config.union_test, detectors[0])
    return [
        (_audit(name, detector, sources, indexes, union, config, only_known), detector)
        for name, detector in zip(names, detectors, strict=True)
    ]


def _folds(detector: Detector) -> bool:
    """Merged classes are looked at as one; directions and classes per dataset each for itself."""
    return not detector.space.has_members


def _classes(detector: Detector) -> tuple[str, ...]:
    return detector.space.reported if _folds(detector) else detector.classes


def _run_names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, with what stands before it where two are equal."""
    paths = [run.with_suffix("") if run.suffix == ".safetensors" else run for run in runs]
    plain = [path.resolve().name for path in paths]
    if twice := [str(run) for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"{twice[0]} is given twice; compare it with another detector")
    return [name if plain.count(name) == 1 else str(path) for name, path in zip(plain, paths, strict=True)]


def _audit(
    name: str,
    detector: Detector,
    sources: Sources,
    indexes: dict[str, Index],
    union: Split | None,
    config: Config,
    only_known: bool,
) -> AuditedRun:
    in_its_classes = splits_for_detector(sources, indexes, detector, _folds(detector), only_known)
    unlabelled = _listed_without_box(sources, indexes, detector)
    splits = [
        AuditedSplit(
            name=dataset,
            index=split.index,
            truth=ground_truth(split),
            **(relations := _relations(sources, detector, dataset, unlabelled.get(dataset, ()))),
            detections=_detect(detector, split.index, config, _sought(detector, split, relations["annotated"])),
        )
        for dataset, split in in_its_classes.items()
    ]
    overlap = overlap_of(detector)
    thresholds = detector.class_thresholds() if not _folds(detector) else [*detector.thresholds_used(None).values()]
    found = audit(splits, _classes(detector), overlap, thresholds)
    scores = None
    if union is not None:
        detections = _detect(detector, union.index, config)
        scores = union_scores(ground_truth(union), detections, union.classes, found, overlap)
    told = [
        f"{dataset} lists {', '.join(classes)} and has no box of it in these pictures: taken for not labelled "
        f"there, which {rule('unlabelled', {dataset: list(classes)})} says; `labels.absent` says that no picture "
        f"shows it."
        for dataset, classes in unlabelled.items()
    ]
    return AuditedRun(name, found, splits, scores, _fewer(detector), [*told, *summary(to_json(found), scores)])


def _listed_without_box(
    sources: Sources, indexes: dict[str, Index], detector: Detector
) -> dict[str, tuple[str, ...]]:
    """Dataset -> the detector's classes that it lists, has no box of and did not teach the detector: most often
    nobody labelled them, and to find them would be no mistake."""
    known = detector.space
    found = {}
    for dataset, classes in listed_without_box(sources.space, indexes, sources.labelled).items():
        learnt = names_learnt_from(known, dataset)
        if left := tuple(c for c in classes if c not in learnt and c in (*known.classes, *known.reported)):
            found[dataset] = left
    return found


def _relations(
    sources: Sources, detector: Detector, dataset: str, unlabelled: Sequence[str] = ()
) -> dict[str, NDArray[np.bool_]]:
    """`annotated` and `trusted` of a dataset, `[C]` in the detector's classes. Of a merged class it labels some
    member; its background is trusted only where it is for all members. unlabelled: unified names that it lists."""
    space = sources.space
    row = space.dataset_index(dataset)
    folded = space.classes if space.folding is None else [space.folding.names[c] for c in space.folding.of]
    lists = np.array(
        [{name, whole} & {*unlabelled} != set() for name, whole in zip(space.classes, folded, strict=True)]
    )
    at = np.array(positions(space, detector, _folds(detector)))
    count = len(_classes(detector))
    annotated, avoided, known = (
        np.bincount(at[chosen & (at != DROPPED)], minlength=count) > 0
        for chosen in (space.annotated_array[row] & ~lists, space.avoid_array[row] | lists, np.ones(len(at), bool))
    )
    return {"annotated": annotated, "trusted": known & ~avoided}


def overlap_of(detector: Detector) -> NDArray[np.bool_]:
    """`[C, C]`: some members of the two classes may share a box."""
    folding, overlap = detector.space.folding if _folds(detector) else None, detector.space.overlap_array
    if folding is None:
        return overlap
    folded = np.zeros((len(folding.names), len(folding.names)), bool)
    a, b = np.nonzero(overlap)
    folded[folding.of[a], folding.of[b]] = True
    return folded


def _sought(detector: Detector, split: Split, annotated: NDArray[np.bool_]) -> list[int] | None:
    """The detector's classes that are looked for: of merged ones that the dataset labels as in `evaluate`, since
    what an unlabelled member finds there is not wrong; of others all. None: all, as nothing is merged."""
    folding = detector.space.folding
    if split.members is None or folding is None:
        return None
    return sorted({*split.members, *np.flatnonzero(~annotated[folding.of]).tolist()})


def _detect(
    detector: Detector, index: Index, config: Config, sought: Sequence[int] | None = None
) -> DetectionArrays:
    folding = detector.space.folding if _folds(detector) else None
    classes = None if sought is None else range(len(_classes(detector)))
    return detect_folded(detector.model, index, classes, _settings(detector, config), folding, sought).detections


def _fewer(detector: Detector) -> int | None:
    """The most detections of a picture that an exported file gives; None: `MAX_DETECTIONS` or more."""
    if not isinstance(detector.model, ExportedNetwork):
        return None
    gives = most_detections(detector.model.session.about, _folds(detector))
    return gives if gives < MAX_DETECTIONS else None


def _settings(detector: Detector, config: Config) -> EvalSettings:
    fewer = _fewer(detector)
    most = MAX_DETECTIONS if fewer is None else max(1, fewer)
    own: dict[str, Any] = {"score_threshold": SCORE_THRESHOLD, "max_detections": most}
    return EvalSettings.of(detector.settings, config.eval, loader_workers(config), **own)


def open_union_test(given: UnionTestConfig | Index, detector: Detector) -> Split:
    """The fully labelled images in the detector's classes; classes that it does not know are left out.

    Raises `UserError` where the files cannot be read or no class is known.
    """
    own = dict(zip(detector.classes, positions(detector.space, detector, _folds(detector)), strict=True))
    split = in_classes(union_test_index(given), _classes(detector), own)
    if not split.classes:
        raise UserError(
            f"union_test: none of its classes ({', '.join(split.index.classes)}) is one of the detector's "
            f"({', '.join(split.names)}); it needs the unified names"
        )
    return split


# ------------------------------------------------------------------------------------------ tables


def audit_tables(content: dict[str, Any]) -> list[tuple[str, Table]]:
    """What `audit_runs` returned, for the terminal: (title, table) per image, of findings, of the union test."""
    runs = list(content)
    tables = [
        (
            "detections per image of classes that a dataset does not label\n"
            "(in brackets: of these on objects labelled as something else)",
            _per_image_table(content, runs),
        )
    ]
    if content[runs[0]]["probably_unlabelled"]:
        title = f"objects that may be unlabelled, as {runs[0]} sees it (a guess on the high side)"
        tables.append((title, _findings_table(content[runs[0]])))
    unions = [content[run]["union_test"] for run in runs]
    if None not in unions:
        title = (
            f"union test, {unions[0]['images']} images with every class labelled: {' / '.join(runs)}\n"
            "(false positives per image: on objects of other classes, and elsewhere)"
        )
        tables.append((title, _union_table(unions)))
    return tables


def _per_image_table(content: dict[str, Any], runs: list[str]) -> Table:
    """A row per class and run."""
    first = content[runs[0]]["foreign"]
    datasets = list(dict.fromkeys(row["dataset"] for row in first))
    several = len(runs) > 1
    table = _table(["class", *(["run"] if several else []), *datasets])
    rows = {(run, row["class"], row["dataset"]): row for run in runs for row in content[run]["foreign"]}
    for name in dict.fromkeys(row["class"] for row in first):
        for run in runs:
            cells = [_cell(rows.get((run, name, dataset))) for dataset in datasets]
            table.add_row(name if run == runs[0] else "", *([run] if several else []), *cells)
    return table


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "labelled"
    wrong = sum(row["on_labelled_objects"].values()) / max(1, row["images"])
    return f"{row['per_image']:.2f} ({wrong:.2f})"


def _findings_table(first: dict[str, Any]) -> Table:
    table = _table(["dataset", "class", "about"])
    for row in first["probably_unlabelled"][:10]:
        table.add_row(row["dataset"], row["class"], f"{row['count']:.0f}")
    return table


def _union_table(unions: list[dict[str, Any]]) -> Table:
    table = _table(["class", "AP50", "on objects", "elsewhere"])
    keys = ("false_on_other_objects_per_image", "false_elsewhere_per_image")
    for name in unions[0]["per_class"]:
        rows = [union["per_class"][name] for union in unions]
        wrong = [" / ".join(f"{row[key]:.2f}" for row in rows) for key in keys]
        table.add_row(name, " / ".join(percent(row["AP50"]) for row in rows), *wrong)
    table.add_row("mean", " / ".join(percent(union["AP50"]) for union in unions))
    return table


def _table(columns: list[str]) -> Table:
    return lineless_table(*columns, no_wrap=0, padding=(0, 2))
