"""The audit's page at its limits: many pairs, odd names, unreadable pictures, pictures decoded once."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from crossdet.data.index import IndexBuilder, Strings
from crossdet.evaluation import audit_page
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.audit import AuditedSplit, audit
from crossdet.evaluation.audit_page import AuditedRun, write_page

CLASSES = ("dog", "face")


@pytest.fixture
def street(tmp_path):
    """Two pictures with a dog each. Faces fire on background, twice and once, and on the dog of the second."""
    builder = IndexBuilder(tmp_path)
    for number in range(2):
        Image.new("RGB", (200, 60), (90, 120, 90)).save(tmp_path / f"{number}.png")
        builder.image(f"{number}.png", 60, 200)
    dog = np.array([[0.0, 10, 20, 30]])
    faces = np.array([[100.0, 10, 120, 30], [2, 10, 22, 30], [60, 10, 80, 30], [150, 10, 170, 30]])
    return AuditedSplit(
        name="street",
        index=builder.build(["dog"]),
        truth=GroundTruth(
            image_ids=np.arange(2),
            boxes=np.repeat(dog, 2, 0),
            labels=np.zeros(2, np.int64),
            crowd=np.zeros(2, bool),
            area=np.full(2, 400.0),
            image_of_box=np.arange(2),
        ),
        annotated=np.array([True, False]),
        trusted=np.array([True, False]),
        detections=DetectionArrays(
            faces, np.array([0.9, 0.8, 0.75, 0.7]), np.ones(4, np.int64), np.array([0, 1, 1, 0])
        ),
    )


def page_of(file, *splits, name="run"):
    splits = list(splits)
    found = audit(splits, CLASSES, np.zeros((2, 2), bool))
    write_page(file, [AuditedRun(name, found, splits, None)])
    return file.read_text(encoding="utf-8")


def test_every_picture_is_decoded_once(street, tmp_path, monkeypatch):
    read, paths = audit_page.read_picture, []

    def counting(index, row):
        paths.append(index.path(row))
        return read(index, row)

    monkeypatch.setattr(audit_page, "read_picture", counting)
    page = page_of(tmp_path / "a.html", street)
    assert page.count("data:image/jpeg") == 4
    assert sorted(path.name for path in paths) == ["0.png", "1.png"]  # by score they alternate


def test_crops_beyond_the_limit_are_left_out_and_told(street, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_page, "MOST_CROPS", 1)
    page = page_of(tmp_path / "a.html", street)
    assert page.count("data:image/jpeg") == 1
    assert "on background: not shown, so that the page stays small" in page


def test_an_unreadable_picture_is_named(street, tmp_path):
    (tmp_path / "1.png").write_bytes(b"broken")
    page = page_of(tmp_path / "a.html", street)
    assert "<li>street: 1.png</li>" in page
    assert page.count("data:image/jpeg") == 2


def test_file_names_that_are_no_utf8_do_not_stop_the_page(street, tmp_path):
    odd = replace(street, index=replace(street.index, names=Strings.pack(["\udcff.png", "1.png"])))
    assert "(cannot be read)" in page_of(tmp_path / "a.html", odd)


def test_every_link_leads_to_a_section_whatever_the_names(street, tmp_path):
    page = page_of(tmp_path / "a.html", replace(street, name="100%25 '#\"<u>&"), name="<i>'\"")
    links, sections = re.findall(r"href='#([^']*)'", page), re.findall(r"<section id='([^']*)'", page)
    assert links
    assert set(links) == set(sections) == {"c1-0"}
    assert "<u>" not in page
    assert "<i>" not in page
    assert "100%25 &#x27;#&quot;&lt;u&gt;&amp;" in page


def test_the_dashed_box_of_the_labelled_object_is_drawn():
    plain = Image.new("RGB", (100, 100), (90, 120, 90))
    with_object = audit_page._crop(plain, (30, 30, 60, 60), (34, 34, 66, 66))
    assert with_object != audit_page._crop(plain, (30, 30, 60, 60), None)
