"""RetinaNet and D-FINE as ONNX and OpenVINO from their runs, compared with them on validation pictures.

Other tests of exports use the tests' own network, whose graph is written in a second.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import onnx
import pytest
from worlds import World

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.models.detr.made import tiny

from crossdet import train
from crossdet.export.graph import as_opset_17
from crossdet.models.detr import building
from crossdet.runs import export as exporting
from crossdet.runs.export import Request, export


@pytest.fixture(scope="module")
def retinanet(trained):
    return trained.folder


@pytest.fixture(scope="module")
def dfine(world: World, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dfine")
    building.write(tiny("dfine", 2, square=64, prior=0.2), ("car", "face"), folder / "zoo")
    changes = {"model": {"name": "dfine", "weights": str(folder / "zoo")}, "input": None}
    changes |= {"train.max_steps": 2, "train.lr": 0.001, "train.steps": None, "train.recipe": None}
    train(world.config(changes), output=folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("retinanet", None), ("dfine", (64, 64))])
def test_files_answer_as_their_run(name, size, request, tmp_path, monkeypatch):
    run = request.getfixturevalue(name)
    graphs = []
    write = exporting.onnx_graph

    def noted(*given):
        graphs.append(write(*given))
        return copy.deepcopy(graphs[-1])

    monkeypatch.setattr(exporting, "onnx_graph", noted)
    for kind, file in (("onnx", "run.onnx"), ("openvino", "run.xml")):
        record = export(run, Request(kind, size), tmp_path / file)
        sets = record["sets"]
        assert sets is not None, record["not_compared"]
        assert sets["matched"] > 10
        assert (sets["alone"], sets["boxes"] < 1e-3, sets["scores"] < 1e-4) == (0, True, True), sets
        assert record["ap"].keys() == {"cars", "faces"}
        for row in record["ap"].values():
            assert row["after"] == pytest.approx(row["before"], abs=1e-3, nan_ok=True)
        monkeypatch.setattr(exporting, "onnx_graph", lambda *_: copy.deepcopy(graphs[0]))
    older = as_opset_17(copy.deepcopy(graphs[0]))
    monkeypatch.setattr(exporting, "onnx_graph", lambda *_: older)
    record = export(run, Request("onnx", size, opset=17), tmp_path / "older.onnx", pictures=1)
    assert [one.version for one in onnx.load(tmp_path / "older.onnx").opset_import if one.domain == ""] == [17]
    assert (record["sets"]["alone"], record["sets"]["boxes"] < 1e-3) == (0, True)
