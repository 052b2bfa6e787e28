"""The commands of docs/export.md, on a run of two steps of the tests' own network.

torch takes a minute to write the smallest RetinaNet.
"""

import json
import logging
import shlex

import pytest
import yaml

from crossdet.models.architectures import ARCHITECTURES
from crossdet.runs import export as exporting

from ..unit.models.tiny import TINY as TINY_NETWORK
from .shown import blocks
from .stand_ins import coco, pictures

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)


def test_the_commands(tmp_path, monkeypatch, crossdet):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY_NETWORK)
    logging.getLogger("torch.__trace").setLevel(logging.ERROR)  # pytest records everything, which takes minutes
    made, write = {}, exporting.onnx_graph

    def once(network, *given):  # ONNX and OpenVINO of one network have the same graph
        return made.get(str(given)) or made.setdefault(str(given), write(network, *given))

    monkeypatch.setattr(exporting, "onnx_graph", once)
    data = {}
    for split, count in (("train", 8), ("val", 4)):
        coco(tmp_path, split, f"{split}.json", ["face", "person", "car"], count, count)
        data[split] = {"images": split, "annotations": f"{split}.json"}
    pictures(tmp_path / "images", ["a.jpg", "b.jpg"], ["x"], 9)
    config = {
        "datasets": {"street": {"format": "coco", **data}},
        "model": {"name": "tiny"},
        "input": {"shorter": 64, "longer": 96},
        "train": {"max_steps": 2, "workers": 0, "accelerator": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert crossdet("train", "config.yaml", "-o", "runs/first").returncode == 0
    lines = [line for block in blocks("export.md", "sh") for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in lines] == ["export", "export", "export", "predict", "eval"]
    for line in lines:
        done = crossdet(*shlex.split(line, comments=True)[1:])
        assert done.returncode == 0, (line, done.stderr)
    files = {file.name for file in (tmp_path / "runs/first").iterdir()}
    assert {"best.xml", "best.bin", "best.onnx", "best_int8.onnx"} <= files
    assert len(made) == 2
    found = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert (found["weights"], len(found["images"])) == ("runs/first/best.onnx", 2)
