"""ONNX graphs written as files of the kinds that `crossdet export` knows."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdet.errors import RunError
from crossdet.export.sessions import RT_INFO, package
from crossdet.files import write_atomically


def write_onnx(model: Any, metadata: Mapping[str, str], file: Path) -> None:
    """With `metadata_props`."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    write_atomically(file, model.SerializeToString())


def openvino_model(model: Any) -> Any:
    """The same graph as an `openvino.Model`."""
    openvino = package("openvino", "openvino", "--to openvino writes with")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return openvino.convert_model(path)


def write_openvino(model: Any, metadata: Mapping[str, str], file: Path, half: bool) -> None:
    """`file` (.xml) and the `.bin` beside it, with `rt_info`. half: weights as 16-bit floats, which a CPU computes
    with in 32 bits."""
    openvino = package("openvino", "openvino", "--to openvino writes with")
    for key, value in metadata.items():
        model.set_rt_info(value, [RT_INFO, key])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        try:
            openvino.save_model(model, path, compress_to_fp16=half)
        except RuntimeError as error:  # as it calls what the disk says
            raise RunError(f"{file} could not be written ({str(error).strip()}); nothing was written") from error
        write_atomically(file.with_suffix(".bin"), path.with_suffix(".bin").read_bytes())
        write_atomically(file, path.read_bytes())
