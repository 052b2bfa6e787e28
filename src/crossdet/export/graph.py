"""A network as an ONNX graph: pictures as they are decoded in, detections out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossdet.errors import RunError, UserError
from crossdet.export.about import Rules
from crossdet.export.sessions import package
from crossdet.models.contract import Limits, Network

OPSETS = (17, 18)
INPUTS = ("images", "thresholds", "sizes")
OUTPUTS, RAW_OUTPUTS = ("boxes", "scores", "labels"), ("logits", "boxes")
EXAMPLE = 2
"""Pictures of the batch that the graph is recorded with; of one picture the recorder would make a constant."""


class Whole(nn.Module):
    """images `[B, H, W, 3]` uint8 RGB, thresholds `[C]`, and where pictures may be padded sizes as of
    `Network.detection_module` -> `Found`."""

    def __init__(self, detecting: nn.Module) -> None:
        super().__init__()
        self.detecting = detecting

    def forward(self, images: Tensor, thresholds: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.detecting(images.permute(0, 3, 1, 2), thresholds, sizes))


class Raw(nn.Module):
    """images `[B, H, W, 3]` uint8 RGB -> what `Network.export_module` gives."""

    def __init__(self, outputs: nn.Module) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(images.permute(0, 3, 1, 2)))


def onnx_graph(network: Network, rules: Rules, nms_groups: Any, shape: tuple[int, int], opset: int) -> Any:
    """An `onnx.ModelProto`. shape: (height, width) of the pictures that it is recorded with; any other is possible
    where `rules.size` is None.

    Raises `UserError` where packages are missing or the architecture cannot do it.
    """
    for name in ("onnx", "onnxscript"):
        package(name, "onnx", "export writes with")
    limits = Limits(0.0, rules.topk, rules.max_detections, rules.nms_iou, rules.agnostic_nms, nms_groups)
    network = network.eval().cpu()
    module: torch.nn.Module
    given: tuple[torch.Tensor, ...]
    outputs: Sequence[str]
    images = torch.randint(0, 256, (EXAMPLE, *shape, 3), dtype=torch.uint8)
    try:
        if rules.raw:
            module, given, outputs = Raw(network.export_module()), (images,), RAW_OUTPUTS
        else:
            module = Whole(network.detection_module(torch.tensor(rules.classes), limits))
            given, outputs = (images, torch.full((network.num_classes,), 0.5)), OUTPUTS
            if rules.padded:
                given += (torch.tensor([shape] * EXAMPLE),)
    except NotImplementedError:
        raise UserError("this architecture has no graph of its detections; export with --raw") from None
    any_number = torch.export.Dim.DYNAMIC
    dynamic = {0: any_number} if rules.size is not None else dict.fromkeys(range(3), any_number)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                given,
                dynamo=True,
                opset_version=max(OPSETS),
                input_names=INPUTS[: len(given)],
                output_names=list(outputs),
                dynamic_shapes=(dynamic, None, {0: any_number})[: len(given)],
                custom_translation_table=translations(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            hint = " as a graph for any size; give one with --size HEIGHT WIDTH" if rules.size is None else ""
            reason = (str(error).strip().splitlines() or [""])[-1]
            raise RunError(f"torch cannot write this network{hint} ({reason[:300]})") from error
    assert program is not None
    model = program.model_proto
    return model if opset == max(OPSETS) else as_opset_17(model)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that torch's exporter does not know -> functions that write them in ONNX."""
    import onnx
    from onnxscript import opset18 as op

    import crossdet.models.detecting  # noqa: F401  # defines crossdet::kept

    def kept(boxes: Any, scores: Any, groups: Any, count: int, iou: float, most: int) -> Any:
        apart = op.Unsqueeze(scores, op.Constant(value_ints=[1]))
        if count > 1:  # a candidate scores in its own group alone
            shape = [1, count, 1]
            numbers = onnx.helper.make_tensor("groups", onnx.TensorProto.INT64, shape, list(range(count)))
            own = op.Equal(op.Unsqueeze(groups, op.Constant(value_ints=[1])), op.Constant(value=numbers))
            apart = op.Where(own, apart, op.Constant(value_float=0.0))
        chosen = op.NonMaxSuppression(
            boxes,
            apart,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[0.0]),
        )
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)  # image and candidate
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(chosen, start=0, end=1))
        nothing = op.Mul(scores, op.Constant(value_float=0.0))
        return op.Cast(op.ScatterND(nothing, places, ones), to=onnx.TensorProto.BOOL)

    def is_all_true(values: Any) -> Any:
        return op.Cast(
            op.ReduceMin(op.Cast(values, to=onnx.TensorProto.INT32), keepdims=0), to=onnx.TensorProto.BOOL
        )

    return {torch.ops.crossdet.kept.default: kept, torch.ops.aten._is_all_true.default: is_all_true}


AXES_WERE_ATTRIBUTES = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


NEWER_OPTIONS = {"num_outputs", "noop_with_empty_axes", "keep_aspect_ratio_policy", "antialias"}
"""What nodes of opset 17 cannot say and need not: parts without sizes are equal, no axes are all axes."""


def as_opset_17(model: Any) -> Any:
    """The same graph in the older form; torch and ONNX's own converter do not write it. Raises `RunError` where an
    operator has no older form."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for node in model.graph.node:
        lost = [a.name for a in node.attribute if a.name in NEWER_OPTIONS and not (a.name == "antialias" and a.i)]
        kept = [a for a in node.attribute if a.name not in lost]
        del node.attribute[:]
        node.attribute.extend(kept)
        if node.op_type in AXES_WERE_ATTRIBUTES and len(node.input) > 1:
            axes = onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = 17
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise RunError(f"this network cannot be written in opset 17; use --opset 18 ({error})") from None
    return model
