"""The protocols once more: slow, one box at a time, written from their descriptions and not from our code."""

from __future__ import annotations

import math

import numpy as np


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    union = area_a + area_b - width * height
    return width * height / union if union else 0.0


def corners(box):
    x, y, w, h = (float(v) for v in box)
    return x, y, x + w, y + h


def area_under(recall, precision):
    """VOC 2010: precision made monotone, area of the steps."""
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum(
        (recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1]
    )


def eleven_points(recall, precision):
    total = 0.0
    for k in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= k * 0.1]
        total += max(reached) if reached else 0.0
    return total / 11


# ------------------------------------------------------------------------------------------ PASCAL VOC


def voc_class(objects, detections, threshold=0.5, inclusive=True):
    """objects: image -> [(box, difficult)]; detections: [(image, score, box)]. (area AP, 11-point AP)."""
    taken = {(image, row): False for image, rows in objects.items() for row in range(len(rows))}
    positives = sum(not difficult for rows in objects.values() for _, difficult in rows)
    right = wrong = 0
    recall, precision = [], []
    for image, _, box in sorted(detections, key=lambda d: -d[1]):  # stable
        best, best_row = -1.0, None
        for row, (other, _) in enumerate(objects.get(image, [])):
            overlap = iou(box, other, 1)
            if overlap > best:
                best, best_row = overlap, row
        passed = best_row is not None and (best >= threshold if inclusive else best > threshold)
        if passed and objects[image][best_row][1]:
            pass  # difficult: not counted
        elif passed and not taken[image, best_row]:
            taken[image, best_row] = True
            right += 1
        else:
            wrong += 1
        recall.append(right / positives if positives else math.nan)
        precision.append(right / (right + wrong) if right + wrong else 0.0)
    if not positives:
        return math.nan, math.nan
    return area_under(recall, precision), eleven_points(recall, precision)


# ------------------------------------------------------------------------------------------ WIDER FACE


def half_away(value):
    """MATLAB's rounding to int32."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def int32_iou(detection, face):
    """boxoverlap.m where the faces are int32: int32 with double gives int32, rounded."""
    x1, y1 = half_away(max(face[0], detection[0])), half_away(max(face[1], detection[1]))
    x2, y2 = half_away(min(face[2], detection[2])), half_away(min(face[3], detection[3]))
    width, height = x2 - x1 + 1, y2 - y1 + 1
    if width <= 0 or height <= 0:
        return 0
    inside = width * height
    face_area = (face[2] - face[0] + 1) * (face[3] - face[1] + 1)
    area = (detection[2] - detection[0] + 1) * (detection[3] - detection[1] + 1)
    union = half_away(face_area + area) - inside
    return half_away(inside / union) if union else 2**31 - 1


def wider_face(images, setting_kept, single=False):  # noqa: C901  (slow and in one piece, to be read beside MATLAB)
    """images: [(faces [x, y, w, h], detections [(x, y, w, h, score)])]; setting_kept: per image a set of rows."""
    everything = [d[4] for _, detections in images for d in detections]
    real = np.float32 if single else float
    if everything:
        low, high = real(min(real(s) for s in everything)), real(max(real(s) for s in everything))
        if single:
            high = max(high, np.finfo(np.float32).tiny)
    faces_total = sum(len(kept) for kept in setting_kept)
    proposals, matched = [0] * 1000, [0] * 1000
    for (faces, detections), kept in zip(images, setting_kept, strict=True):
        if not faces or not detections:
            continue
        ordered = sorted(detections, key=lambda d: -d[4])
        scores = [float((real(d[4]) - low) / (high - low)) if high > low else 0.0 for d in ordered]
        taken, counted, found = set(), [], []
        for detection in ordered:
            box = corners(detection[:4])
            best, best_row = -1.0, None
            for row, face in enumerate(faces):
                overlap = int32_iou(box, corners(face)) if single else iou(box, corners(face), 1)
                if overlap > best:
                    best, best_row = overlap, row
            proposal = True
            if best >= 0.5:
                if best_row not in kept:
                    proposal = False
                else:
                    taken.add(best_row)
            counted.append((counted[-1] if counted else 0) + proposal)
            found.append(len(taken))
        for k in range(1, 1001):
            last = -1
            for row, score in enumerate(scores):
                if score >= 1 - k / 1000:
                    last = row
            if last >= 0:
                proposals[k - 1] += counted[last]
                matched[k - 1] += found[last]
    if not faces_total:
        return math.nan
    precision = [m / p if p else 0.0 for m, p in zip(matched, proposals, strict=True)]
    return area_under([m / faces_total for m in matched], precision)


# ------------------------------------------------------------------------------------------ WIDER Pedestrian


def mostly_ignored(box, regions, edition):
    left, right = min(box[0], box[2]), max(box[0], box[2])
    top, bottom = min(box[1], box[3]), max(box[1], box[3])
    covered = -0.01
    extra = 1 if edition == 2019 else 0
    for region in regions:
        x1, x2 = min(region[0], region[2]), max(region[0], region[2])
        y1, y2 = min(region[1], region[3]), max(region[1], region[3])
        if not (x2 < left or x1 > right or y2 < top or y1 > bottom):
            covered += (min(x2, right) - max(x1, left) + extra) * (min(y2, bottom) - max(y1, top) + extra)
    area = (right - left) * (bottom - top)
    return covered > 0 and (area == 0 or covered / area > 0.5)


def challenge(truth, regions, detections, edition):
    """truth, regions: image -> [x, y, w, h]; detections: [(image, score, (x, y, w, h))]. AP per IoU threshold."""
    ignored = {image: [corners(r) for r in rows] for image, rows in regions.items()}
    boxes = {
        image: [b for b in map(corners, rows) if not mostly_ignored(b, ignored.get(image, []), edition)]
        for image, rows in truth.items()
    }
    kept = [
        (image, score, corners(box))
        for image, score, box in detections
        if not mostly_ignored(corners(box), ignored.get(image, []), edition)
    ]
    objects = {image: [(box, False) for box in rows] for image, rows in boxes.items()}
    return [voc_class(objects, kept, t, inclusive=False)[0] for t in np.arange(0.5, 1.0, 0.05)]
