"""Graphs in shorter numbers: 16-bit floats, and 8-bit integers as onnxruntime and NNCF calibrate them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crossdet.export.sessions import package

Inputs = dict[str, Any]
"""Name -> array, of one run of the graph."""
PRECISIONS = ("fp32", "fp16", "int8")
WEIGHTED = ("Conv", "MatMul", "Gemm")


def onnx_half(model: Any) -> Any:
    """All up to the last layer with weights in 16-bit floats; scores, boxes and suppression keep 32, for 16 cannot
    tell pixels of a large picture apart."""
    package("onnxruntime", "onnx", "--precision fp16 converts with")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    before = before_last(model)
    rest = [node.name for node in model.graph.node if node.name not in before]
    return convert_float_to_float16(model, keep_io_types=True, node_block_list=rest, disable_shape_infer=True)


def onnx_int8(model: Any, inputs: Sequence[Inputs]) -> Any:
    """Convolutions and matrix products in 8 bits (QDQ, weights per channel), but for the last ones, which predict.

    inputs: pictures to see the activations' ranges on.
    """
    package("onnxruntime", "onnx", "--precision int8 calibrates with")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Inputs] = iter(inputs)

        def get_next(self) -> Inputs | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        given, ready, done = (str(Path(folder) / name) for name in ("given.onnx", "ready.onnx", "done.onnx"))
        onnx.save(model, given)
        quant_pre_process(given, ready, skip_symbolic_shape=True)
        prepared = onnx.load(ready)
        before = before_last(prepared, strictly=True)
        last = [node.name for node in prepared.graph.node if node.op_type in WEIGHTED and node.name not in before]
        quantize_static(
            ready,
            done,
            Reader(),
            op_types_to_quantize=list(WEIGHTED),
            nodes_to_exclude=last,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(done)


def openvino_int8(model: Any, inputs: Sequence[Inputs]) -> Any:
    """As NNCF does it, of an `openvino.Model`."""
    nncf = package("nncf", "openvino", "--precision int8 calibrates with")
    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset([list(one.values()) for one in inputs])
    return nncf.quantize(model, data, subset_size=len(inputs), preset=nncf.QuantizationPreset.MIXED)


def before_last(model: Any, strictly: bool = False) -> set[str]:
    """Names of the nodes that a layer with weights comes after; and those layers themselves, unless `strictly`."""
    maker = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    layers = [
        node for node in model.graph.node if node.op_type in WEIGHTED and weights.intersection(node.input[1:2])
    ]
    found: set[str] = set()
    waiting = [name for node in layers for name in node.input]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found if strictly else found | {node.name for node in layers}
