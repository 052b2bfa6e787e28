"""What an exported file says of itself: the card of its weights, and what others need of it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossdet.data.canvases import resized
from crossdet.errors import UserError
from crossdet.models.card import DAMAGED, Card

FORMAT = "crossdet-export/1"
STORED = ("format", "card", "rules", "precision", "opset", "licence", "source")
"""Entries of the metadata that crossdet reads."""


@dataclass(frozen=True)
class Rules:
    """How a picture becomes an input, and what was decided about the outputs.

    size: (height, width) of all inputs; None: any. stretched: pictures fill that size, whatever their shape; else
    they keep it. fill: RGB of what a picture of fixed size leaves free, at the right and the bottom. classes: ids
    that are looked for. max_detections, nms_iou, agnostic_nms, topk: see `contract.Limits`; of folded classes
    max_detections is before they are folded. raw: the file gives a network's own outputs, and no detections.
    reported: most detections in a picture where nobody asks for another number; None: as many as the file gives.
    suppresses: whether overlapping detections are suppressed. by_fold: whether all members of a fold suppress each
    other. antialias: see `contract.Network`. Older files do not say the last four.
    """

    size: tuple[int, int] | None
    stretched: bool
    fill: tuple[int, int, int]
    classes: tuple[int, ...]
    max_detections: int
    nms_iou: float
    agnostic_nms: bool
    topk: int
    raw: bool = False
    reported: int | None = None
    suppresses: bool = True
    by_fold: bool = False
    antialias: bool = True

    @property
    def padded(self) -> bool:
        """Whether a picture may leave a part of the input free, so that a file of detections asks for its size."""
        return self.size is not None and not self.stretched and not self.raw


@dataclass(frozen=True)
class About:
    """precision: fp32, fp16 or int8. licence: of the weights, as their maker stated it. source: name and SHA-256 of
    the weights file."""

    card: Card
    rules: Rules
    precision: str
    opset: int
    licence: str
    source: Mapping[str, str]

    def to_metadata(self) -> dict[str, str]:
        """Strings. `card` is what crossdet reads; the others say the same for other readers, as JSON."""
        space, rules = self.card.space, self.rules
        avoided = {
            dataset: [space.classes[c] for c in row.nonzero()[0].tolist()]
            for dataset, row in zip(space.datasets, space.avoid_array, strict=True)
        }
        content: dict[str, Any] = {
            "card": self.card.to_metadata(),
            "rules": asdict(rules),
            "input": self._input(),
            "classes": {str(c): space.classes[c] for c in rules.classes},
            "thresholds": self.card.thresholds,
            "avoided": avoided,
            "generations": [asdict(generation) for generation in self.card.generations],
            "precision": self.precision,
            "opset": self.opset,
            "licence": self.licence,
            "source": dict(self.source),
        }
        return {"format": FORMAT} | {key: json.dumps(value) for key, value in content.items()}

    def input_size(self, height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
        """(height, width) of a picture of that size as an input, where the file takes any. shorter, longer: where
        the network has no square of its own."""
        return resized(height, width, shorter, longer, square=self.card.settings.stretched_to)

    def _input(self) -> dict[str, Any]:
        card, rules = self.card, self.rules
        kernel = "bilinear with antialiasing, as Pillow and torchvision do it"
        if not rules.antialias:
            kernel = "bilinear without antialiasing, as torchvision does it"
        side = card.settings.stretched_to
        if rules.size is None and side is not None:
            resize = f"stretched to {side} x {side} pixels"
        elif rules.size is None:
            resize = f"shorter side to {card.input.shorter} pixels, longer side at most {card.input.longer}"
        else:
            how = "stretched to" if rules.stretched else "as large as fits into, at the top left of"
            resize = f"{how} {rules.size[0]} x {rules.size[1]} pixels (height x width)"
        square = None if side is None else (side, side)
        size = square if rules.size is None else rules.size
        padded = {
            "sizes": "int64 [B, 2], height and width of each picture in its input, at the top left",
            "fill": f"RGB {', '.join(map(str, rules.fill))}, where a picture leaves the input free",
        }
        return {
            "images": "uint8 [B, H, W, 3], RGB; normalisation and padding are inside",
            "resize": f"{resize}; {kernel}",
            "size": size,  # height and width; none: the sides that follow
            "shorter": card.input.shorter if size is None else None,
            "longer": card.input.longer if size is None else None,
            "thresholds": f"float32 [{len(card.space.classes)}], per class; 2: not looked for",
            "boxes": "x1, y1, x2, y2 in pixels of the input; rows with label -1 are none",
            **(padded if rules.padded else {}),
        }

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> About:
        """Raises `UserError` for a file of other software."""
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} was not written by `crossdet export` (format {metadata.get('format')!r})")
        try:
            read = {key: json.loads(metadata[key]) for key in STORED[1:]}
            rules = read["rules"]
            size = None if rules["size"] is None else tuple(rules["size"])
            fixed = rules | {"size": size, "fill": tuple(rules["fill"]), "classes": tuple(rules["classes"])}
            card = Card.from_metadata(read["card"])
            fixed.setdefault("antialias", card.settings.antialias)
            return cls(**read | {"card": card, "rules": Rules(**fixed)})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except DAMAGED as error:
            raise UserError(f"{path}: what it says about itself is damaged ({error!r}); export it anew") from None
