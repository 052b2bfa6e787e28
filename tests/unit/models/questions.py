"""What a device is asked: every question waits for all that it was told to do before."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Questions(TorchDispatchMode):
    """Places in crossdet that ask for a value: as a number, or for a size that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        asks = any(word in name for word in ("nonzero", "_local_scalar_dense", "masked_select", "unique"))
        if name.startswith("aten.index") and len(args) > 1 and isinstance(args[1], (list, tuple)):
            asks |= any(one.dtype in (torch.bool, torch.uint8) for one in args[1] if one is not None)
        caller = next(f for f in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in f.filename)
        if asks and "transformers" not in caller.filename:
            self.places.append(f"{caller.filename}:{caller.lineno} ({name})")
        return function(*args, **(kwargs or {}))
