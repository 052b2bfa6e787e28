"""What a method is asked for and what it answers; no torch in here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCORE, MOST = 0.001, 100
"""Of all methods: lowest score of a detection that is judged, and most per picture. A detector after a short
training scores low; the 0.05 of a tool's own evaluation would judge that instead of its boxes."""


@dataclass(frozen=True)
class Settings:
    """What all methods share. size: longer side of a picture in pixels. weights: ImageNet's for MobileNetV2, None:
    random. workers: loader processes, 0 = none. given: overrides of crossdet's config, `KEY=VALUE`."""

    data: str
    weights: str | None
    minutes: float
    size: int
    threads: int
    workers: int = 0
    batch: int = 8
    seed: int = 0
    device: str = "cpu"
    given: tuple[str, ...] = ()

    def shown(self, method: str) -> dict[str, Any]:
        """Without folders: those of another machine are the same settings."""
        shown = asdict(self) | {"weights": "imagenet" if self.weights else "random", "given": list(self.given)}
        del shown["data"]
        return shown if method == "crossdet" else shown | {"given": []}


@dataclass(frozen=True)
class Job:
    """One training. folder: an empty one, for what it writes."""

    set: str
    method: str
    settings: Settings
    folder: str

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


def read_job(file: Path) -> Job:
    content = json.loads(file.read_text())
    settings = content.pop("settings")
    return Job(settings=Settings(**settings | {"given": tuple(settings["given"])}), **content)


@dataclass
class Training:
    """seconds: from asking for the first batch to the end of the last step. losses: in their order, maybe not of
    all steps. start: of the backbone. about: what else a reader wants to know."""

    seconds: float
    steps: int
    pictures: int
    losses: list[float]
    start: str
    about: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        few = max(1, len(self.losses) // 10)
        first, last = self.losses[:few], self.losses[-few:]
        return {
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "pictures": self.pictures,
            "loss_first_tenth": sum(first) / max(1, len(first)),
            "loss_last_tenth": sum(last) / max(1, len(last)),
            "start": self.start,
            **self.about,
        }
