"""`crossdet export`: a detector as a file for other software."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from crossdet.commands.terminal import JsonFile, Last, OwnWeights, listed_names, out, save_json, say
from crossdet.evaluation.tables import lineless_table, percent


def export(
    run: OwnWeights,
    to: Annotated[
        str, typer.Option("--to", metavar="KIND", help="onnx, openvino, or hf: a directory for HF transformers")
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="default: beside the weights")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="one size of all inputs (default: any)")
    ] = None,
    opset: Annotated[int, typer.Option(help="of ONNX: 17 or 18")] = 18,
    precision: Annotated[str, typer.Option(metavar="NUMBERS", help="fp32, fp16 or int8")] = "fp32",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="look only for these classes (unified names, or patterns such as white_*; "
            "a comma within a name: \\,)",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="the network's own outputs instead of detections")] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="pictures that int8 is calibrated on (default: validation pictures)"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="of AP that int8 may lose; beyond it more layers keep 32 bits (default: 1)"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="whose validation pictures are compared on (default: the run's own)"),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="pictures per dataset for AP (default: all)")
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="most detections per picture (default: as the protocols want)")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="licence of the weights, for the file's metadata")
    ] = None,
    last: Last = False,
    json_file: JsonFile = None,
) -> None:
    """Write a detector for onnxruntime or OpenVINO, and compare the file with the detector on real pictures."""
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched

    run = fetched(run)
    say(taken(run, last))

    from crossdet.runs.export import NOT_STATED, Request
    from crossdet.runs.export import export as write

    names = None if classes is None else tuple(listed_names(classes))
    stated = licence or NOT_STATED
    request = Request(to, size, opset, precision, names, raw, calibrate, stated, max_detections, tolerance)
    record = write(run, request, output, data, pictures, last, say)
    how = f", {record['precision']}, opset {record['opset']}" if "opset" in record else ""
    say(f"{record['file']}  ({record['bytes'] / 1e6:.1f} MB{how})")
    if how:
        _print(record)
    elif record["suppresses"]:
        say("note: transformers reports an object's second finds, too, which crossdet leaves out", "yellow")
    save_json(json_file, record)


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or math.isnan(after - before):
        return "-"
    return f"{100 * (after - before):+.2f}"


def _print(record: dict[str, Any]) -> None:
    """The parity table."""
    if "int8" in record:
        _print_int8(record["int8"])
    sets = record["sets"]
    if sets is None:
        say(f"not compared: {record['not_compared']}")
        return
    near = f"boxes to {sets['boxes']:.2g} pixels, scores to {sets['scores']:.2g}"
    more = f"; {sets['alone']} in one alone, score up to {sets['alone_score']:.2f}" if sets["alone"] else ""
    say(f"{sets['pictures']} pictures, {sets['matched']} detections in both: {near}{more}")
    table = lineless_table("", "before", "after", "difference")
    for dataset, row in record["ap"].items():
        for one in (row, *row["further"].values()):
            by = f" ({one['protocol']})" if row["further"] else ""
            for name, before in one["before"].items():
                after = one["after"][name]
                shown = percent(before, 2), percent(after, 2), _change(before, after)
                table.add_row(f"{dataset} {name}{by}", *shown)
    time = record["latency_ms"]
    ratio = f"{time['torch'] / time['exported']:.2f} x"
    table.add_row("ms per picture, 1 thread", f"{time['torch']:.1f}", f"{time['exported']:.1f}", ratio)
    out.print(table)


def _print_int8(int8: dict[str, Any]) -> None:
    """How many layers are in 8 bits, what was tried where the first file lost too much, and whether the one that is
    kept still does."""
    narrow = f", those of up to {int8['narrow']} channels keep 32" if int8["narrow"] else ""
    say(f"{int8['layers']} layers are in 8 bits{narrow}")
    if len(int8["tried"]) > 1:
        tried = "; ".join(f"{one['layers']} layers {one['lost']:.2f}" for one in int8["tried"])
        say(f"points that were lost at most: {tried}")
    if int8["lost"] is not None and int8["lost"] > int8["tolerance"]:
        say(f"warning: more than --tolerance {int8['tolerance']:g} is lost; --precision fp16 loses less", "yellow")
