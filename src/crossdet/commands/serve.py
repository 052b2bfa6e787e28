"""`crossdet serve`: a page to try a detector on one's own pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import ANY_WEIGHTS, Device, JsonFile, Last, check_device, save_json, say
from crossdet.errors import UserError


def serve(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help=ANY_WEIGHTS)],
    against: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="another detector, shown side by side")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen at; by default only this machine can reach it")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = 8080,
    file_mb: Annotated[float, typer.Option(min=0.001, help="largest file of a picture")] = 20.0,
    megapixels: Annotated[float, typer.Option(min=0.001, help="largest picture, in million pixels")] = 50.0,
    rate: Annotated[
        float, typer.Option(min=0.01, help="requests of one address per second, in the long run")
    ] = 20.0,
    last: Last = False,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Open a page to drop pictures or use a camera, choose classes and move thresholds."""
    from crossdet.models.card import name_of, taken
    from crossdet.models.hub import fetched
    from crossdet.opening import load_detector
    from crossdet.serving.app import LOOPBACK, Server
    from crossdet.serving.app import serve as run
    from crossdet.serving.limits import ServeLimits

    for option, value in (("--file-mb", file_mb), ("--megapixels", megapixels), ("--rate", rate)):
        if not math.isfinite(value):
            raise UserError(f"{option} {value}: expected a number; one that no picture reaches sets no limit")
    paths = [fetched(path) for path in (weights, against) if path is not None]
    check_device(device, paths)
    plain = [name_of(path) for path in paths]
    names = plain if len(set(plain)) == len(plain) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"--against {against}: that is the detector itself")
    for path in paths:
        say(taken(path, last))
    detectors = {name: load_detector(path, device, last=last) for name, path in zip(names, paths, strict=True)}
    alone = host in LOOPBACK
    server = Server(detectors, ServeLimits(file_mb, megapixels, rate), LOOPBACK if alone else ())

    def started(taken: int) -> None:
        if not alone:
            say(f"warning: everybody who reaches {host} can use this page; nothing asks for a password", "yellow")
        shown = f"[{host}]" if ":" in host else host  # IPv6
        url = f"http://{shown}:{taken}"
        classes = {name: list(detector.offered) for name, detector in detectors.items()}
        save_json(json_file, {"url": url, "detectors": classes})
        say(f"{url}  (Ctrl-C ends it)")

    run(server, host, port, started)
