"""`crossdet score`: scores of detections in files, by five protocols. No config, no torch.

The commands read files, call the protocols of `crossdet.evaluation`, print and write; `record` is the JSON, with
ratios in 0..1 and nothing rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crossdet.commands.score_printing import percent, print_line, print_table
from crossdet.commands.terminal import STDOUT, check_not_read, save_json
from crossdet.errors import UserError, some

if TYPE_CHECKING:
    from crossdet.evaluation.files.wider_pedestrian import PedestrianFiles
    from crossdet.evaluation.precision_recall import Curve
    from crossdet.evaluation.protocols.wider_pedestrian import ChallengeScores

app = typer.Typer(
    name="score",
    help="Score detections in files by the protocol of COCO, LVIS, PASCAL VOC, WIDER FACE or WIDER Pedestrian.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

CocoResults = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="results list: image_id, category_id, bbox, score")
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", dir_okay=False, help="also write the numbers as JSON (-: to stdout)"),
]
CurvesFolder = Annotated[
    Path | None,
    typer.Option("--curves", metavar="DIR", help="write precision-recall curves there: curves.json and figures"),
]
MethodName = Annotated[
    str | None,
    typer.Option("--name", metavar="TEXT", help="of the method in the figures (default: the detections' name)"),
]


@app.command()
def coco(
    instances: Annotated[Path, typer.Argument(metavar="INSTANCES", help="COCO instances file (JSON)")],
    results: CocoResults,
    classes: Annotated[bool, typer.Option("--per-class", help="also print AP and AP50 of every class")] = False,
    max_detections: Annotated[
        int, typer.Option(min=1, metavar="N", help="detections that count per image and class, best first")
    ] = 100,
    json_file: JsonFile = None,
    curves: CurvesFolder = None,
    name: MethodName = None,
) -> None:
    """COCO: AP, AP50, AP75, by size, AR. The numbers of pycocotools.

    Example: crossdet score coco instances_val2017.json results.json --json scores.json
    """
    from crossdet.evaluation.files.coco import read_coco_results, read_coco_truth
    from crossdet.evaluation.protocols.coco import coco_scores

    _check_outputs(json_file, curves, instances, results)
    truth = read_coco_truth(instances)
    detections, left_out = read_coco_results(results, truth)
    found = coco_scores(truth.truth, detections, list(truth.names), max_detections, sized=True)
    per_class = {truth.names[number]: found.per_class[number] for number in truth.names}
    title = f"COCO, {instances.name}: {len(truth.truth.image_ids)} images, {len(detections.scores)} detections"
    print_table(title, ("metric", "%"), [(key, percent(value)) for key, value in found.scores.items()])
    if classes:
        rows = [(c, percent(v["AP"]), percent(v["AP50"]), str(v["boxes"])) for c, v in per_class.items()]
        print_table("per class", ("class", "AP %", "AP50 %", "boxes"), rows)
    notes = [*truth.notes, *left_out]
    if max_detections != 100:
        notes.append(f"the best {max_detections} detections per image and class count, also for AR100")
    _finish(notes, {**found.scores, "per_class": per_class}, json_file)
    _write_curves(curves, name, results, instances, {"coco": found.curves})


@app.command()
def lvis(
    instances: Annotated[Path, typer.Argument(metavar="INSTANCES", help="LVIS annotation file (JSON)")],
    results: CocoResults,
    max_detections: Annotated[
        int, typer.Option(min=1, metavar="N", help="detections that count per image, best first")
    ] = 300,
    json_file: JsonFile = None,
    curves: CurvesFolder = None,
    name: MethodName = None,
) -> None:
    """LVIS: AP in federated images, by size and by how frequent a class is. The numbers of the LVIS API.

    Example: crossdet score lvis lvis_v1_val.json results.json --json scores.json
    """
    from crossdet.evaluation.files.coco import read_coco_results, read_lvis_truth
    from crossdet.evaluation.protocols.entry import best_per_image
    from crossdet.evaluation.protocols.lvis import lvis_scores

    _check_outputs(json_file, curves, instances, results)
    truth, frequencies = read_lvis_truth(instances)
    detections, left_out = read_coco_results(results, truth)
    kept = best_per_image(detections, max_detections)
    found = lvis_scores(truth.truth, kept, list(truth.names), frequencies or None, sized=True)
    title = f"LVIS, {instances.name}: {len(truth.truth.image_ids)} images, {len(detections.scores)} detections"
    print_table(title, ("metric", "%"), [(key, percent(value)) for key, value in found.scores.items()])
    notes = [*truth.notes, *left_out]
    if not frequencies:
        notes.append("no category has a `frequency`, so there is no APr, APc and APf")
    per_class = {truth.names[number]: found.per_class[number] for number in truth.names}
    _finish(notes, {**found.scores, "per_class": per_class}, json_file)
    _write_curves(curves, name, results, instances, {"lvis": found.curves})


@app.command()
def voc(
    truth: Annotated[
        Path, typer.Argument(metavar="VOC_DIR", help="folder with Annotations and ImageSets, such as VOC2007")
    ],
    results: Annotated[
        Path,
        typer.Argument(
            metavar="DETS_DIR",
            help="CLASS.txt or comp4_det_test_CLASS.txt, lines: image score xmin ymin xmax ymax, 1-based",
        ),
    ],
    image_set: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_NAME", help="images to score: a file, or a name in ImageSets/Main (default: every XML)"
        ),
    ] = None,
    iou: Annotated[float, typer.Option(help="IoU from which on a detection is right")] = 0.5,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="the IoU must be larger than --iou, not equal (py-faster-rcnn, detectron2)"),
    ] = False,
    json_file: JsonFile = None,
    curves: CurvesFolder = None,
    name: MethodName = None,
) -> None:
    """PASCAL VOC: AP per class and mAP, by area (2010 and later) and by 11 points (2007).

    Example: crossdet score voc VOCdevkit/VOC2007 results --image-set test
    """
    from crossdet.evaluation.files.voc import read_voc_results, read_voc_truth
    from crossdet.evaluation.protocols.voc import numbers_of, voc_scores

    _check_outputs(json_file, curves, truth, results, image_set)
    files = read_voc_truth(truth, image_set)
    read = read_voc_results(results, files)
    found = voc_scores(files.truth, read.detections, range(len(files.classes)), iou, not strict)
    by_name = {files.classes[label]: scores for label, scores in found.per_class.items()}
    record = {
        "mAP_area": found.map_area,
        "mAP_11pt": found.map_11pt,
        "iou": iou,
        "inclusive": not strict,
        "per_class": numbers_of(by_name),
    }
    rows = [(c, percent(v.area), percent(v.eleven_point), str(v.objects)) for c, v in by_name.items()]
    objects = sum(v.objects for v in by_name.values())
    rows.append(("mAP", percent(found.map_area), percent(found.map_11pt), str(objects)))
    condition = f"IoU {'>' if strict else '>='} {iou:g}"
    title = f"PASCAL VOC, {files.source}: {len(files.images)} images, {condition}"
    print_table(title, ("class", "AP by area %", "AP 11 points %", "objects"), rows)
    notes = []
    if read.missing:
        notes.append(f"{len(read.missing)} class(es) without a file count as not detected: {some(read.missing, 3)}")
    if read.unknown:
        strange = some(read.unknown, 3)
        notes.append(f"{len(read.unknown)} file(s) of no class of the ground truth left out: {strange}")
    _finish(notes, record, json_file)
    _write_curves(curves, name, results, truth, {"voc": {c: v.curve for c, v in by_name.items()}})


@app.command(name="wider_face")
def wider_face(
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="GT_DIR", help="folder with wider_face_val.mat and wider_easy_val.mat, ..medium.., ..hard.."
        ),
    ],
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PRED_DIR",
            help="EVENT/IMAGE.txt for each image: name, number of detections, then lines x y w h score",
        ),
    ],
    arithmetic: Annotated[
        Literal["double", "matlab_int32"],
        typer.Option(help="double: as the Python ports; matlab_int32: as the released MATLAB code computes"),
    ] = "double",
    json_file: JsonFile = None,
    curves: CurvesFolder = None,
    name: MethodName = None,
) -> None:
    """WIDER FACE: AP of the easy, medium and hard faces of the validation set.

    Example: crossdet score wider_face eval_tools/ground_truth predictions --json scores.json
    """
    import numpy as np

    from crossdet.evaluation.files.wider_face import read_wider_face_predictions
    from crossdet.evaluation.files.wider_face_lists import read_wider_face_truth
    from crossdet.evaluation.protocols.wider_face import wider_face_scores

    _check_outputs(json_file, curves, truth, predictions)
    lists = read_wider_face_truth(truth)
    read = read_wider_face_predictions(predictions, lists.names)
    found = wider_face_scores(lists.truth, read.detections, arithmetic)
    record = {
        **found.scores,
        "faces": found.faces,
        "images": len(lists.names),
        "missing": read.missing,
        "unknown": read.unknown,
    }
    rows = [(key, percent(value), str(found.faces[key])) for key, value in found.scores.items()]
    count = len(read.detections.scores)
    title = f"WIDER FACE, {arithmetic} arithmetic: {len(lists.names)} images, {count} detections"
    print_table(title, ("faces", "AP %", "number"), rows)
    notes = []
    if count and np.ptp(read.detections.scores) == 0:
        notes.append(
            "all scores are equal: here every detection counts at the last threshold, the released code divides "
            "0 by 0 and gives 0"
        )
    notes += _file_notes(read.missing, read.unknown, len(lists.names))
    _finish(notes, record, json_file)
    _write_curves(curves, name, predictions, truth, {"wider_face": found.curves})


def _file_notes(missing: Sequence[str], unknown: Sequence[str], images: int) -> Iterator[str]:
    """missing: images without a prediction file; unknown: prediction files without an image."""
    if missing:
        known = f"{len(missing)} of {images} images have no prediction file"
        yield f"{known} and count as without detections: {some(missing, 3)}"
    if unknown:
        yield f"{len(unknown)} prediction file(s) of no image of the set left out: {some(unknown, 3)}"


@app.command(name="wider_pedestrian")
def wider_pedestrian(
    annotations: Annotated[
        Path,
        typer.Argument(metavar="ANNOTATIONS", help="boxes, 2018 (name c x y w h ...) or 2019 (name x y w h ...)"),
    ],
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="the submission, lines: name score x y w h")
    ],
    ignore: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ignore regions, lines: name x y w h ...")
    ] = None,
    edition: Annotated[
        Literal["2018", "2019"] | None,
        typer.Option(help="of layout and metric (default: by the layout of ANNOTATIONS)"),
    ] = None,
    cyclists: Annotated[
        Literal["join", "ignore"],
        typer.Option(help="COCO-style: join = they are pedestrians, ignore = neither right nor wrong to detect"),
    ] = "join",
    json_file: JsonFile = None,
    curves: CurvesFolder = None,
    name: MethodName = None,
) -> None:
    """WIDER Pedestrian: the challenge's AP, and COCO-style AP with ignore regions as crowds.

    Example: crossdet score wider_pedestrian val_annotations.txt submission.txt --ignore val_ignore.txt
    """
    from crossdet.evaluation.files.wider_pedestrian import coco_style, read_pedestrian_truth, read_submission
    from crossdet.evaluation.protocols.coco import coco_scores
    from crossdet.evaluation.protocols.wider_pedestrian import challenge_scores

    _check_outputs(json_file, curves, annotations, predictions, ignore)
    files = read_pedestrian_truth(annotations, ignore, None if edition is None else int(edition))
    if cyclists == "ignore" and files.edition == 2019:
        raise UserError("--cyclists ignore: edition 2019 has no class ids, so cyclists cannot be told apart")
    detections = read_submission(predictions, annotations, files.images)
    challenge = challenge_scores(files.truth, detections, files.edition)
    style = coco_scores(coco_style(files, cyclists == "ignore"), detections, [0], sized=True)
    ratios = {key: style.scores[key] for key in ("AP", "AP50", "AP75")}
    record = {
        "challenge": {
            "AP": challenge.AP,
            "per_iou": challenge.per_iou,
            "edition": files.edition,
            "boxes": challenge.boxes,
            "detections": challenge.detections,
        },
        "coco_style": {**ratios, "cyclists": cyclists},
        "ignore_regions": len(files.truth.regions),
    }
    rows = [*_challenge_rows(challenge, files.edition), *_style_rows(ratios, files.edition, ignore, cyclists)]
    count = f"{files.truth.images} images, {len(files.truth.boxes)} boxes, {len(detections.scores)} detections"
    print_table(f"WIDER Pedestrian {files.edition}: {count}", ("metric", "%"), rows)
    _finish(_region_notes(files, annotations, ignore), record, json_file)
    chosen = {"IoU .50": challenge.curves[0], "IoU .75": challenge.curves[5]}
    coco_curves = {key: style.curves[key] for key in ("AP50", "AP75")}
    groups = {f"wider_pedestrian challenge {files.edition}": chosen, "wider_pedestrian coco-style": coco_curves}
    _write_curves(curves, name, predictions, annotations, groups)


def _challenge_rows(challenge: ChallengeScores, edition: int) -> list[tuple[str, str]]:
    first = f"challenge {edition} AP"
    rows = [(first, percent(challenge.AP))]
    return rows + [(f"{first} at IoU .{50 + 5 * at}", percent(challenge.per_iou[at])) for at in (0, 5)]


def _style_rows(
    ratios: Mapping[str, float], edition: int, ignore: Path | None, cyclists: str
) -> list[tuple[str, str]]:
    regions = "no ignore regions" if ignore is None else "ignore regions as crowd"
    riders = f", cyclists {'joined' if cyclists == 'join' else 'ignored'}" if edition == 2018 else ""
    return [(f"COCO-style {key}, {regions}{riders}", percent(value)) for key, value in ratios.items()]


def _region_notes(files: PedestrianFiles, annotations: Path, ignore: Path | None) -> Iterator[str]:
    if ignore is None:
        yield "no ignore regions were used (--ignore FILE): what lies in them counts like everything else"
    else:
        yield f"{len(files.truth.regions)} ignore regions used"
    if files.outside:
        yield f"{files.outside} ignore regions of images that are not in {annotations} left out"


def _check_outputs(json_file: Path | None, curves: Path | None, *inputs: Path | str | None) -> None:
    from crossdet.evaluation.curves import DATA_FILE

    read = [Path(one) for one in inputs if one]
    check_not_read("--json", json_file, read)
    check_not_read("--curves", curves and curves / DATA_FILE, read)


def _finish(notes: Iterable[str], record: dict[str, Any], json_file: Path | None) -> None:
    for note in notes:
        print_line(note)
    save_json(json_file, record)
    if json_file not in (None, STDOUT):
        print_line(f"numbers in {json_file}")


def _write_curves(
    folder: Path | None,
    method: str | None,
    predictions: Path,
    truth: Path,
    curves: Mapping[str, Mapping[str, Curve]],
) -> None:
    """curves: protocol -> name -> curve."""
    if folder is None:
        return
    from crossdet.evaluation.curves import NamedCurve, write_run_curves

    dataset = _title(truth)
    named = [NamedCurve(dataset, p, n, curve) for p, group in curves.items() for n, curve in group.items()]
    files = write_run_curves(folder, method or _title(predictions), named)
    print_line(f"curves in {folder} ({len(files)} files)")


def _title(path: Path) -> str:
    """The name of a folder, the name of a file without extension."""
    whole = path.absolute()
    return whole.name if whole.is_dir() else whole.stem
