"""Backbones: any timm model with NCHW features at strides 8, 16 and 32."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.format import Format
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from crossdet.errors import UserError
from crossdet.models.backbone_names import ALIASES, backbone_problem
from crossdet.models.hub import unreadable

FEATURE_STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """`forward(images [B, 3, H, W])` -> `[C3, C4, C5]` at strides 8, 16, 32.

    positions: of the three maps in the list of the timm model. channels: of the three. mean, std: of the images in
    0..1 that the weights were trained with.
    """

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        name = ALIASES.get(name, name)
        try:
            probe: Any = timm.create_model(name, features_only=True, pretrained=False)
            strides = list(probe.feature_info.reduction())
        except Exception as error:  # the models raise what they like, and hub names what the network does
            if problem := backbone_problem(name):
                raise UserError(problem) from None
            hub = " (a name with a hub must be reachable, also with `weights: none`)" if ":" in name else ""
            raise UserError(
                f"model.backbone: {name!r} is no timm model with feature maps ({_reason(error)}){hub}; "
                f"timm.list_models() names them, e.g. resnet50, mobilenetv2_100, convnext_tiny"
            ) from None
        # Chosen by what the maps are, not by their position: models start their lists at stride 2 or 4.
        positions = [strides.index(s) for s in FEATURE_STRIDES if s in strides]
        if len(positions) != len(FEATURE_STRIDES):
            raise UserError(
                f"model.backbone: {name!r} has features at strides {strides}; strides 8, 16 and 32 are needed"
            )
        if getattr(probe, "output_fmt", None) not in (None, Format.NCHW):
            raise UserError(f"model.backbone: {name!r} gives {probe.output_fmt} features; NCHW is needed")
        try:
            body: Any = timm.create_model(
                name, features_only=True, pretrained=pretrained, out_indices=tuple(positions)
            )
        except Exception as error:
            if not pretrained:
                raise UserError(f"model.backbone: {name!r} cannot be made ({_reason(error)})") from error
            raise UserError(
                f"model.weights: the ImageNet weights of {name!r} could not be fetched ({_reason(error)}); "
                f"give a local .safetensors or .pth file, or `weights: none`"
            ) from error
        self.body = body
        self.name = name
        self.positions = positions
        self.channels: list[int] = body.feature_info.channels()
        config = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, ...] = config.mean if config else (0.485, 0.456, 0.406)
        self.std: tuple[float, ...] = config.std if config else (0.229, 0.224, 0.225)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)

    def stem(self) -> list[nn.Module]:
        """The layers up to and with those at stride 4.

        Raises `UserError` for models that do not say which these are.
        """
        return stem_of(self.body, self.name)


def stem_of(body: Any, name: str) -> list[nn.Module]:
    """Of a timm model with feature maps: see `Backbone.stem`."""
    ends = [info["module"] for info in body.feature_info.info if info["reduction"] <= 4]
    modules = dict(body.named_modules())  # in the order in which they are used
    end = next((part for part in modules if ends and part in (ends[-1], ends[-1].replace(".", "_"))), None)
    if end is None:
        raise UserError(
            f"train.freeze_stem: {name!r} does not say which of its layers are at stride 4; leave it out"
        )
    names = list(modules)
    before = names[: names.index(end)]
    of_end = [part for part in names if part == end or part.startswith(f"{end}.")]
    return [modules[part] for part in (*before, *of_end) if part and not end.startswith(f"{part}.")]


def _reason(error: Exception) -> str:
    """The first line of the error; the hub's errors are pages long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_backbone_weights(backbone: Backbone, path: Path) -> None:
    """Loads a .safetensors or .pth file with timm's (for ResNets also torchvision's) parameter names.

    Left-over entries (classifier, pooling head) are ignored; a missing or misshapen one is an error, since a
    half-loaded backbone trains without complaint and badly.
    """
    state = read_state(path)
    wanted = backbone.body.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise UserError(
            f"model.weights: {path} does not fit the backbone: {len(missing)} of {len(wanted)} entries missing"
            f"{' (' + missing[0] + ', ...)' if missing else ''}, {len(wrong)} of another shape"
            f"{' (' + wrong[0] + ', ...)' if wrong else ''}"
        )
    backbone.body.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file; a pickle is read with `weights_only=True`, so it runs no code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own words about what is told below
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"weights file {path} does not exist") from None
    except pickle.UnpicklingError:
        reason = (
            "it is no file of PyTorch weights, or holds more than tensors, which could run code and is never loaded"
        )
        hint = "give a .safetensors file, or a `state_dict` that torch.save has written"
        raise UserError(f"weights file {path} cannot be read: {reason}; {hint}") from None
    except Exception as error:  # on a file that is no pickle, torch's unpickler raises almost anything
        raise unreadable(path, error) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights file {path} holds no plain dictionary of tensors")
    return state


def freeze_batch_norm(backbone: Backbone) -> None:
    """Turns every batch norm into a fixed affine map, in place: small detection batches spoil its statistics."""
    backbone.body = freeze_batch_norm_2d(backbone.body)
