"""What an audit says of a detector, in a few sentences: the first thing on its page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossdet.evaluation.tables import percent

Row = Mapping[str, Any]


def summary(found: Mapping[str, Any], union: Mapping[str, Any] | None) -> list[str]:
    """Sentences on one detector, the surest first. found: of `evaluation.audit.to_json`. union: of `union_scores`;
    None without a union test."""
    foreign: Sequence[Row] = found["foreign"]
    if not foreign:
        return [*_union(union), "Every dataset labels every class, so there is nothing else to look for."]
    return [
        *_union(union),
        *_detections(foreign, union is not None),
        *_unlabelled(found["probably_unlabelled"]),
        *_unknown(foreign),
    ]


def _union(union: Mapping[str, Any] | None) -> list[str]:
    if union is None:
        return []
    score = percent(union["AP50"])
    return [f"Union test, {union['images']} pictures in which every class is labelled: AP50 {score}."]


def _detections(foreign: Sequence[Row], has_union: bool) -> list[str]:
    """Of classes that a dataset does not label, in all datasets together, per picture."""
    pictures = sum({row["dataset"]: row["images"] for row in foreign}.values())
    if not pictures:
        return []
    found = sum(row["above_threshold"] for row in foreign)
    if not found:
        open_ones = [row for row in foreign if not row["declared_absent"]]
        doubt = "Either there are none, or it has learnt not to see them there"
        tells = "." if has_union else "; a union test (`union_test` in the config) tells the two apart."
        none = "It finds none of the classes that a dataset does not label."
        return [f"{none} {doubt}{tells}" if open_ones else none]
    wrong = sum(sum(row["on_labelled_objects"].values()) for row in foreign)
    absent = sum(row["on_background"] for row in foreign if row["declared_absent"])
    also = f"{absent / pictures:.2f} on background where the class is declared absent" if absent else ""
    on_others = f"{wrong / pictures:.2f} lie on objects that are labelled as something else" if wrong else ""
    told = f"In a picture there are {found / pictures:.2f} detections of classes that its dataset does not label"
    if not wrong and not absent:
        return [f"{told}; none lies on an object that is labelled as something else."]
    return [f"{told}; {', and '.join(filter(None, [on_others, also]))}: these are wrong."]


def _unlabelled(rows: Sequence[Row]) -> list[str]:
    """rows: the most first."""
    if not rows:
        return []
    first, total = rows[0], sum(row["count"] for row in rows)
    where = f"{first['class']} in {first['dataset']}"
    many = f"{total:.0f} objects may be" if round(total) > 1 else "1 object may be"
    most = f" of {where}" if len(rows) == 1 else f", the most, about {first['count']:.0f}, of {where}"
    return [f"About {many} unlabelled{most} (a guess on the high side)."]


def _unknown(foreign: Sequence[Row]) -> list[str]:
    """Of classes that nothing is known about where they are labelled, so that nobody can say how many are right."""
    names = dict.fromkeys(
        row["class"] for row in foreign if row["on_background"] and math.isnan(row["expected_unlabelled"])
    )
    if not names:
        return []
    of = ", ".join(names)
    return [f"How many of the detections of {of} are right cannot be said: where it is labelled none is found."]
