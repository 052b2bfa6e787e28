"""Which layers of a graph keep their numbers."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from forks import Fork
from onnx import TensorProto, helper, numpy_helper

from crossdet.export.files import openvino_model
from crossdet.export.precision import (
    above,
    ends,
    onnx_int8,
    onnx_narrow,
    openvino_int8,
    openvino_layers,
    openvino_narrow,
)
from crossdet.export.sessions import package

openvino = package("openvino", "openvino", "the tests read with")
PARENTS = {
    "pixels": [],
    "stem": ["pixels"],
    "relu": ["stem"],
    "left": ["relu"],
    "right": ["relu"],
    "sum": ["left", "relu"],
    "boxes": ["sum"],
    "scores": ["right"],
    "found": ["boxes", "scores"],
}


def test_the_first_and_the_last_layers():
    assert ends(PARENTS, ["stem", "left", "right", "boxes", "scores"]) == ["stem", "boxes", "scores"]
    assert ends(PARENTS, ["stem", "left", "boxes"]) == ["stem", "boxes"]
    assert ends(PARENTS, ["left"]) == ["left"]


def test_what_a_node_depends_on():
    assert above(PARENTS, ["boxes"]) == {"sum", "left", "relu", "stem", "pixels"}
    assert above(PARENTS, ["boxes", "left"]) == {"sum", "left", "relu", "stem", "pixels"}
    assert above(PARENTS, ["pixels"]) == set()


QUIETLY = """
import pathlib, sys, numpy, onnx
from crossdet.export.files import openvino_model, write_openvino
from crossdet.export.precision import openvino_int8
model = openvino_model(onnx.load(sys.argv[1]))
pictures = [{"images": numpy.random.default_rng(i).random((1, 3, 12, 16), numpy.float32)} for i in range(2)]
write_openvino(openvino_int8(model, pictures), {}, pathlib.Path(sys.argv[2]), half=True)
print(sorted(name for name in sys.modules if "telemetry" in name and name.startswith("openvino_")))
"""
LAYERS = {
    "first": ((40, 3), 1),
    "depthwise": ((40, 1), 40),
    "point": ((80, 40), 1),
    "grouped": ((80, 40), 2),
    "wide": ((24, 80), 1),
    "narrow": ((40, 24), 1),
    "last": ((1, 40), 1),
}
"""Name -> (channels out, in of a group), groups: one after the other, from RGB."""


def convolutions() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, weights, given = [], [], "images"
    for name, (channels, groups) in LAYERS.items():
        kernel = rng.normal(0, 0.9 / channels[1] ** 0.5, (*channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}.weight"))
        nodes.append(
            helper.make_node("Conv", [given, f"{name}.weight"], [name], name=name, group=groups, pads=[1] * 4)
        )
        given = name
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, "H", "W"])
    scores = helper.make_tensor_value_info("last", TensorProto.FLOAT, ["B", 1, "H", "W"])
    graph = helper.make_graph(nodes, "convolutions", [images], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_matrix_products_keep_their_numbers():
    """Of transformers: in 8 bits they take longer, and D-FINE lost 2.7 AP (docs/export.md)."""
    model = convolutions()
    weight = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "product.weight"))
    (flat,) = (node for node in model.graph.node if node.name == "last")
    product = helper.make_node("MatMul", [flat.output[0], "product.weight"], ["scores"], name="product")
    model.graph.node.append(product)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 1, "H", 5]))
    pictures = [{"images": np.random.default_rng(i).random((1, 3, 12, 4), np.float32)} for i in range(4)]
    short = onnx_int8(model, pictures)
    types = {tensor.name: tensor.data_type for tensor in short.graph.initializer}
    assert types["product.weight"] == TensorProto.FLOAT
    assert "point.weight" not in types


def test_8_bits_are_for_the_layers_between_that_are_not_narrow():
    model = convolutions()
    assert onnx_narrow(model, 1) == ["depthwise"]
    assert onnx_narrow(model, 32) == ["first", "depthwise", "narrow"]
    pictures = [{"images": np.random.default_rng(i).random((1, 3, 12, 16), np.float32)} for i in range(4)]
    short = onnx_int8(model, pictures)
    types = {tensor.name: tensor.data_type for tensor in short.graph.initializer}
    kept = {name.removesuffix(".weight") for name, kind in types.items() if kind == TensorProto.FLOAT}
    assert kept & set(LAYERS) == {"first", "depthwise", "narrow", "last"}
    assert sum(kind == TensorProto.INT8 for kind in types.values()) >= 2
    more = {tensor.name for tensor in onnx_int8(model, pictures, 40).graph.initializer}
    assert {f"{name}.weight" for name in LAYERS} - more == {"wide.weight"}
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, pictures[0])[0] for one in (model, short)
    )
    assert 0 < np.abs(before - after).max() < 0.05 * np.abs(before).max()


def in_8_bits(model) -> list[bool]:
    """By layer, in their order."""
    parents, layers = openvino_layers(model)
    kinds = {one.get_friendly_name(): one.get_type_name() for one in model.get_ordered_ops()}
    return [any(kinds[parent] == "FakeQuantize" for parent in parents[layer]) for layer in layers]


def test_nncf_calibrates_the_layers_between():
    model = convolutions()
    pictures = [{"images": np.random.default_rng(i).random((1, 3, 12, 16), np.float32)} for i in range(4)]
    whole, given = openvino_model(model), openvino_model(model)
    short = openvino_int8(given, pictures)
    assert in_8_bits(short) == [False, True, True, True, True, True, False]  # the first and the last keep theirs
    assert openvino_narrow(whole, 32) == [openvino_layers(whole)[1][place] for place in (0, 1, 5)]
    narrow = openvino_int8(openvino_model(model), pictures, 32)
    assert in_8_bits(narrow) == [False, False, True, True, True, False, False]
    core = openvino.Core()
    before, after = (core.compile_model(one, "CPU")(pictures[0])[0] for one in (whole, short))
    assert 0 < np.abs(before - after).max() < 0.1 * np.abs(before).max()


def test_nothing_is_sent_and_nothing_noted_in_the_home_folder(tmp_path):
    """OpenVINO and NNCF do both unasked."""
    onnx.save(convolutions(), tmp_path / "model.onnx")
    (tmp_path / "home").mkdir()
    (tmp_path / "script.py").write_text(QUIETLY)
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    files = (tmp_path / name for name in ("script.py", "model.onnx", "model.xml"))
    done = Fork(*files, environment=environment).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "model.bin").stat().st_size > 0
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize("own", [{}, {"openvino_telemetry": None}, {"openvino_telemetry": SimpleNamespace()}])
def test_what_a_program_has_imported_itself_stays(own, monkeypatch):
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    for name, module in own.items():
        monkeypatch.setitem(sys.modules, name, module)

    def opened() -> None:
        for _ in range(50):
            package("openvino", "openvino", "the tests read with")

    with ThreadPoolExecutor(4) as threads:
        for one in [threads.submit(opened) for _ in range(4)]:
            one.result()
    assert {name: sys.modules[name] for name in sys.modules if name == "openvino_telemetry"} == own
