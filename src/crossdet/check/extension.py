"""`crossdet check CONFIG --extends WEIGHTS`: what `crossdet extend` would make of a config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crossdet.check.inspection import report_on
from crossdet.check.report import Report
from crossdet.check.weights import check_opens
from crossdet.config import Config
from crossdet.config.schema import ALL_SPLITS
from crossdet.config.sources import open_sources
from crossdet.errors import UserError
from crossdet.labels.edits import growth
from crossdet.models.card import read_card
from crossdet.runs.building import check_trainable
from crossdet.runs.extend import extended_settings, rate_share, remarks_on, with_settings_of
from crossdet.training.modes import Growth


def inspect_extension(
    config: Config, weights: Path, max_images: int | None = None, decode: bool = False
) -> tuple[Report, Config]:
    """The report on a config as `crossdet extend` reads it, and that config: with the settings of the weights.

    Label rules are those of the weights and what the config adds; anchors are judged at the weights' input size.
    max_images, decode: as for `inspect`.

    Raises:
        UserError: with all contradictions to the weights, or all mistakes of the config's files and label rules.
    """
    card = read_card(weights)
    known = card.space
    config = with_settings_of(card, config)
    sources = open_sources(config, ALL_SPLITS, known=known)
    grown = Growth(known, sources.space, sources.train)
    report = report_on(config, sources, max_images, len(known.classes), decode, rate_share(config, grown))
    errors, remarks = list(report.errors), []
    try:
        check_trainable(sources, config.train.plain)
        remarks = remarks_on(config, card, grown, sources)
        extended_settings(config, card, grown)
        check_opens(weights, card)
    except UserError as error:
        errors += [] if str(error) in errors else [str(error)]
    warnings = (*report.warnings, *(text for kind, text in remarks if kind == "warning"))
    notes = (*growth(known, sources.space), *report.notes, *(text for kind, text in remarks if kind == "note"))
    return replace(report, errors=tuple(errors), warnings=warnings, notes=notes), config
