"""What an audit says of a detector, in a few sentences: the first thing on its page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossdet.evaluation.tables import percent


def summary(record: Mapping[str, Any]) -> list[str]:
    """Sentences on one detector, the surest first. record: of `audit_runs`, without "summary"."""
    return [*_union(record["union_test"]), *_foreign(record["foreign"]), _unlabelled(record)]


def _union(union: Mapping[str, Any] | None) -> list[str]:
    if union is None:
        return []
    score = percent(union["AP50"])
    return [f"Union test, {union['images']} pictures in which every class is labelled: AP50 {score}."]


def _foreign(rows: list[Mapping[str, Any]]) -> list[str]:
    """Detections of classes that a dataset does not label, of all datasets together, per picture."""
    pictures = sum({row["dataset"]: row["images"] for row in rows}.values())
    if not pictures:
        return []
    found = sum(row["above_threshold"] for row in rows)
    if not found:
        return [
            "It finds none of the classes that a dataset does not label. Either there are none, or it has learnt "
            "not to see them there; a union test tells the two apart."
        ]
    wrong = sum(sum(row["on_labelled_objects"].values()) for row in rows)
    absent = sum(row["on_background"] for row in rows if row["declared_absent"])
    also = f", and {absent / pictures:.2f} on background where the class is declared absent" if absent else ""
    return [
        f"Of classes that a dataset does not label it finds {found / pictures:.2f} objects in a picture; "
        f"{wrong / pictures:.2f} lie on objects that are labelled as something else{also}: these are wrong."
    ]


def _unlabelled(record: Mapping[str, Any]) -> str:
    rows = record["probably_unlabelled"]
    if not rows:
        return "No detection looks like an unlabelled object."
    first = rows[0]
    total = sum(row["count"] for row in rows)
    most = f", most of them {first['class']} in {first['dataset']}" if len(rows) > 1 else ""
    where = "" if most else f" of {first['class']} in {first['dataset']}"
    return f"About {total:.0f} detections{where} may be unlabelled objects{most}."
