"""Precision-recall curves as data and as figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import crossdet.evaluation.curves as module
from crossdet.commands.curves import curves as command
from crossdet.errors import UserError
from crossdet.evaluation.curves import (
    MAX_POINTS,
    NamedCurve,
    draw_figure,
    overlay,
    read_methods,
    shaping_points,
    write_curves,
    write_run_curves,
)
from crossdet.evaluation.precision_recall import Curve, area_ap, eleven_point_ap, exact_curve


def curve(ap, points=50):
    recall = np.linspace(0, ap, points)
    return Curve(recall, 1 - recall**3, ap)


def faces(*aps):
    names = ("easy", "medium", "hard")
    return [NamedCurve("faces", "wider_face", name, curve(ap)) for name, ap in zip(names, aps, strict=True)]


def test_data_survives_writing_and_reading(tmp_path):
    given_curves = [
        *faces(0.9, 0.8, 0.5),
        NamedCurve("x", "voc", "no object", Curve(*2 * (np.zeros(0),), math.nan)),
    ]
    write_curves(tmp_path / "c.json", "mine", given_curves)
    ((method, read),) = read_methods(tmp_path / "c.json")
    assert method == "mine"
    for one, other in zip(given_curves, read, strict=True):
        assert (one.dataset, one.protocol, one.name) == (other.dataset, other.protocol, other.name)
        assert one.curve.recall.tolist() == other.curve.recall.tolist()
        assert one.curve.precision.tolist() == other.curve.precision.tolist()
        assert repr(float(one.curve.ap)) == repr(other.curve.ap)


def test_an_overlay_is_drawn_again_from_its_small_file(tmp_path):
    for number, name in enumerate(("one", "two")):
        more = NamedCurve("coco", "coco", "AP50", curve(0.3))
        write_curves(tmp_path / f"{name}.json", name, [*faces(0.9, 0.8, 0.5 + number / 7), more])
    large = NamedCurve("faces", "wider_face", "hard", curve(0.61234567, 1500))
    write_curves(tmp_path / "three.json", "three", [large])
    files = [(None, tmp_path / f"{name}.json") for name in ("one", "two", "three")]
    small = tmp_path / "small.json"
    (first,) = overlay(files, tmp_path / "first", ["faces"], small)
    assert first.name == "faces_wider_face.png"
    (again,) = overlay([(None, small)], tmp_path / "again")
    assert again.name == first.name
    stored = json.loads(small.read_text())["methods"]
    assert [row["method"] for row in stored] == ["one", "two", "three"]
    assert [row["ap"] for row in stored[1]["curves"]] == [0.9, 0.8, 0.5 + 1 / 7]
    assert 100 < len(stored[2]["curves"][0]["recall"]) <= 300
    assert stored[2]["curves"][0]["ap"] == 0.61234567
    difference = np.asarray(Image.open(first), float) - np.asarray(Image.open(again), float)
    assert np.abs(difference).mean() < 0.5  # of 255: rounding moves lines by less than a pixel
    with pytest.raises(UserError, match=r"--dataset fases: no curves of it; there are some of faces, coco"):
        overlay(files, tmp_path / "none", ["fases"])
    assert len(read_methods(small)) == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(MAX_POINTS + 1, 30_000))
def test_thinned_curves_look_the_same(seed, points):
    """No point of the whole curve is far from the line through the kept ones."""
    rng = np.random.default_rng(seed)
    recall, precision = exact_curve(rng.random(points) < 0.5, np.ones(points, bool), points)
    kept = shaping_points(Curve(recall, precision, 0.5))
    assert len(kept) <= MAX_POINTS
    assert (kept[0], kept[-1]) == (0, points - 1)
    drawn = np.interp(np.arange(points), kept, precision[kept])
    assert np.abs(drawn - precision)[20:].max() < 0.03


def test_a_panel_per_curve_and_a_line_per_method_best_first():
    methods = [("aware", faces(0.9, 0.8, 0.5)), ("naive", faces(0.85, 0.82, 0.4))]
    figure = draw_figure("faces", "wider_face", methods)
    assert figure.get_suptitle() == "faces, wider_face"
    assert [panel.get_title() for panel in figure.axes] == ["easy", "medium", "hard"]
    legends = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in figure.axes]
    assert legends[0] == ["aware (AP 0.900)", "naive (AP 0.850)"]
    assert legends[1] == ["naive (AP 0.820)", "aware (AP 0.800)"]
    colours = [{line.get_label().split()[0]: line.get_color() for line in p.get_lines()} for p in figure.axes]
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 2
    (line,) = [line for line in figure.axes[2].get_lines() if line.get_label().startswith("aware")]
    assert line.get_xdata().tolist() == methods[0][1][2].curve.recall.tolist()
    assert draw_figure("faces", "coco", methods) is None


def test_a_figure_per_dataset_and_protocol_with_safe_names(tmp_path):
    curves = [
        *faces(0.9, 0.8, 0.5),
        NamedCurve("a/b c", "voc", "car", curve(0.5)),
        NamedCurve("a_b c", "voc", "car", curve(0.5)),
        NamedCurve("none", "voc", "car", Curve(np.zeros(0), np.zeros(0), math.nan)),
    ]
    files = write_run_curves(tmp_path, "run", curves)
    names = ["curves.json", "faces_wider_face.png", "a_b_c_voc.png", "a_b_c_voc_2.png"]
    assert [file.name for file in files] == names
    with Image.open(files[1]) as picture:
        assert picture.width > 1000


def test_several_runs_in_one_figure(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_run_curves(tmp_path / name, "run", faces(0.9, 0.8, 0.5))
    drawn = []
    monkeypatch.setattr(module, "draw_curves", lambda folder, methods: drawn.extend(methods) or [folder])
    a, b = tmp_path / "a", tmp_path / "b/curves.json"
    overlay([(None, a), (None, b), ("third", a), (None, a), (None, a)], tmp_path / "out")
    assert [name for name, _ in drawn] == ["run", "run, b", "third", "run, a", "run, a 2"]
    monkeypatch.undo()
    assert [file.name for file in overlay([(None, a), ("x" * 90, b)], tmp_path / "out")] == ["faces_wider_face.png"]


def test_an_overlay_takes_the_place_of_none_of_its_files(tmp_path):
    write_run_curves(tmp_path / "a", "run", faces(0.9, 0.8, 0.5))
    file = tmp_path / "a" / "curves.json"
    for one in (tmp_path / "a", file):
        with pytest.raises(UserError, match=r"--data .*curves\.json: this file is read; choose another name"):
            command([str(one)], tmp_path / "out", data=file)


def test_a_path_may_hold_the_sign_after_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("lr=0.1", "b"):
        write_run_curves(tmp_path / folder, "run", faces(0.9, 0.8, 0.5))
    drawn = []
    monkeypatch.setattr(module, "draw_curves", lambda folder, methods: drawn.extend(methods) or [folder])
    command(["lr=0.1", "mine=lr=0.1/curves.json", "a=1=b", "=b"], tmp_path / "out")
    assert [name for name, _ in drawn] == ["run", "mine", "a=1", "run, b"]
    with pytest.raises(UserError, match=r"^gone: "):
        command(["mine=gone"], tmp_path / "out")


def test_files_that_are_no_curves_are_told(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json"):
        read_methods(tmp_path / "gone.json")
    for content in ("[1", "[]", "{}", json.dumps({"format": "crossdet-curves/1"})):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=r"bad\.json: no precision-recall curves"):
            read_methods(tmp_path / "bad.json")
    write_curves(tmp_path / "none.json", "m", [])
    with pytest.raises(UserError, match="no curve with an AP"):
        overlay([(None, tmp_path / "none.json")], tmp_path)


# ------------------------------------------------------------------------------------------ from curve to number


def test_exact_curve_by_hand():
    """Right, not counted, wrong, right; two objects."""
    recall, precision = exact_curve(np.array([True, False, False, True]), np.array([True, False, True, True]), 2)
    assert recall.tolist() == [0.5, 0.5, 0.5, 1.0]
    assert precision.tolist() == [1.0, 1.0, 0.5, pytest.approx(2 / 3)]
    assert area_ap(recall, precision) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert eleven_point_ap(recall, precision) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_precision_before_anything_is_counted_is_zero():
    recall, precision = exact_curve(np.array([False, True]), np.array([False, True]), 1)
    assert precision.tolist() == [0.0, 1.0]
    assert area_ap(recall, precision) == 1.0
    assert np.isnan(exact_curve(np.array([False]), np.array([True]), 0)[0]).all()
