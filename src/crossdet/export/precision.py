"""Graphs in shorter numbers: 16-bit floats, and 8-bit integers as onnxruntime and NNCF calibrate them."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
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


NARROW = {"onnx": (32, 64, 128), "openvino": (0, 32, 64)}
"""By the kind of file: layers with at most so many input channels keep 32 bits; the next number where that loses
too much. NNCF, which corrects biases, begins with none."""


def onnx_int8(model: Any, inputs: Sequence[Inputs], narrow: int = NARROW["onnx"][0]) -> Any:
    """Convolutions in 8 bits (QDQ, weights per channel), but for the first, the last and the narrow ones (depthwise
    ones are): where few input channels are summed, nothing averages out, so 8 bits cost most there (docs/log.md),
    and they are little of the work. So do matrix products of transformers, which take longer in 8 bits and lose
    accuracy. An activation's range is the mean of the pictures' ranges, not the widest of all.

    inputs: pictures to see the activations' ranges on. narrow: as in `onnx_narrow`. `model` stays as it is.
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
        layers = [node.name for node in prepared.graph.node if node.op_type == "Conv"]
        quantize_static(
            ready,
            done,
            Reader(),
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=sorted({*ends(onnx_parents(prepared), layers), *onnx_narrow(prepared, narrow)}),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )
        return onnx.load(done)


def onnx_narrow(model: Any, most: int) -> list[str]:
    """Convolutions of an ONNX model that sum at most so many input channels (of a group)."""
    few = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1 and tensor.dims[1] <= most}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in few]


def openvino_narrow(model: Any, most: int) -> list[str]:
    """The same of an `openvino.Model`."""
    place = {"Convolution": 1, "GroupConvolution": 2}  # of the input channels in the shape of the weights
    return [
        one.get_friendly_name()
        for one in model.get_ordered_ops()
        if one.get_type_name() in place and one.input_value(1).get_shape()[place[one.get_type_name()]] <= most
    ]


def openvino_int8(model: Any, inputs: Sequence[Inputs], narrow: int = NARROW["openvino"][0]) -> Any:
    """As NNCF does it, of an `openvino.Model`, but for the first, the last and the narrow layers."""
    nncf = package("nncf", "openvino", "--precision int8 calibrates with")
    nncf.set_log_level(logging.ERROR)
    # of torch, which looks for a compiler that nobody needs here
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    data = nncf.Dataset([list(one.values()) for one in inputs])
    with redirect_stdout(io.StringIO()):  # bars of its own, which `--json -` has no place for
        return nncf.quantize(
            model,
            data,
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(
                names=sorted({*ends(*openvino_layers(model)), *openvino_narrow(model, narrow)})
            ),
        )


def onnx_layers_in_8_bits(model: Any) -> int:
    """How many convolutions take weights in 8 bits."""
    short = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return sum(node.op_type == "Conv" and node.input[1] in short for node in model.graph.node)


def openvino_layers_in_8_bits(model: Any) -> int:
    """The same of an `openvino.Model`, matrix products included."""
    parents, layers = openvino_layers(model)
    fake = {one.get_friendly_name() for one in model.get_ordered_ops() if one.get_type_name() == "FakeQuantize"}
    return sum(not fake.isdisjoint(parents[layer]) for layer in layers)


Parents = Mapping[str, Sequence[str]]
"""Node -> the nodes whose outputs it reads."""


def onnx_parents(model: Any) -> Parents:
    maker = {output: node.name for node in model.graph.node for output in node.output}
    return {node.name: [maker[name] for name in node.input if name in maker] for node in model.graph.node}


def openvino_layers(model: Any) -> tuple[Parents, list[str]]:
    """Of an `openvino.Model`; and the names of its layers with weights."""
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    operations = model.get_ordered_ops()
    parents = {
        one.get_friendly_name(): [i.get_source_output().get_node().get_friendly_name() for i in one.inputs()]
        for one in operations
    }
    return parents, [one.get_friendly_name() for one in operations if one.get_type_name() in kinds]


def ends(parents: Parents, layers: Sequence[str]) -> list[str]:
    """Those of the layers that none of them comes before, and those that none comes after: they read pixels and
    predict, and 8 bits cost most there (docs/export.md)."""
    known = set(layers)
    inner = known & above(parents, layers)
    return [name for name in layers if name not in inner or not known & above(parents, [name])]


def above(parents: Parents, names: Iterable[str]) -> set[str]:
    """All nodes that the outputs of these depend on; themselves only where another of them depends on them."""
    found: set[str] = set()
    waiting = [parent for name in names for parent in parents[name]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += parents[node]
    return found


def before_last(model: Any) -> set[str]:
    """Names of the nodes that a layer with weights comes after, and of those layers."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    layers = {
        node.name for node in model.graph.node if node.op_type in WEIGHTED and weights.intersection(node.input[1:2])
    }
    return above(onnx_parents(model), layers) | layers
