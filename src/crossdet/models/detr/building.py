"""Networks of HF transformers as `Detr` needs them: made anew, or with the weights of a checkpoint."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn

from crossdet.errors import UserError, show
from crossdet.models.backbones import Backbone, load_backbone_weights
from crossdet.models.detr.checkpoints import check_files, directory_of, write_processor
from crossdet.models.detr.graphs.graph import Graph
from crossdet.models.detr.graphs.rf_detr import RFDetrGraph
from crossdet.models.detr.graphs.rt_detr import DFineGraph, RTDetrGraph
from crossdet.models.detr.growth import begin_from
from crossdet.models.detr.network import Detr
from crossdet.models.detr.settings import DetrSettings, RFDetrSettings
from crossdet.models.hub import CONFIG

GRAPHS: dict[str, type[Graph]] = {
    "d_fine": DFineGraph,
    "rt_detr": RTDetrGraph,
    "rt_detr_v2": RTDetrGraph,
    "rf_detr": RFDetrGraph,
}
OLDEST = (5, 19)
"""Of transformers. RF-DETR is in some earlier ones, with other modules."""
OWN_HEADS = ("class_embed.", "bbox_embed.")
"""RF-DETR's, which are beside HF's `model`, and in our `core`. D-FINE's there are second names of its decoder's."""
GIVEN_INITS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)


REASON = 400
"""Characters that are shown of what HF says."""
_OF_A_LAYER = re.compile(r"\b(encoder|decoder)\.layers\.\d+\.")


def build(
    settings: DetrSettings,
    num_classes: int,
    overlap: Tensor | None,
    weights: str | Path = "none",
    rows: Mapping[int, int] = MappingProxyType({}),
) -> Detr:
    """weights: "imagenet" fetches timm's for the backbone, and where the settings have one a file is its; a
    directory or hub id is a checkpoint. rows: classes -> classes of the checkpoint that they begin as, in every
    tensor that has rows of classes; all others begin anew."""
    if weights == "imagenet" and settings.backbone is None:
        raise UserError(
            "model.weights: imagenet, but the sizes' own backbones have none; name a timm backbone, such as "
            "`model.backbone: hgnetv2_b0.ssld_stage2_ft_in1k` or `resnet18d`, or give a checkpoint"
        )
    theirs = settings.classes_of(weights)
    whole, mean, std = _made(settings, num_classes, "none" if theirs else weights)
    network = _network(whole, settings, num_classes, overlap, mean, std)
    if theirs:
        begin_from(network, trained(settings, len(theirs), weights).state_dict(), rows)
    return network


def _network(
    whole: Any,
    settings: DetrSettings,
    num_classes: int,
    overlap: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> Detr:
    body: Any = getattr(whole.model.backbone, "model", None)  # a vision transformer has none
    if settings.freeze_batch_norm and hasattr(body, "_backbone"):
        body._backbone = freeze_batch_norm_2d(body._backbone)  # timm's; of its own HF freezes those that it makes
    return Detr(GRAPHS[settings.family](whole), num_classes, settings, overlap, mean, std)


def hf_config(settings: DetrSettings, num_classes: int, place: object = "model") -> Any:
    """The config of HF transformers. Raises `UserError` without the package, or for a config that it refuses."""
    wanted = f"model.name: {settings.name} needs HF transformers"
    try:
        from transformers import CONFIG_MAPPING, __version__
    except ImportError:
        raise UserError(f"{wanted}: pip install 'crossdet[detr]'") from None
    if tuple(map(int, __version__.split(".")[:2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise UserError(f"{wanted} {needed} or newer, here is {__version__}: pip install -U 'crossdet[detr]'")
    values = {**settings.config, "num_labels": num_classes, "num_queries": settings.queries}
    if not isinstance(settings, RFDetrSettings):
        values |= _of_rt_detr(settings)
    last = values.get("decoder_layers", 6)  # HF's own number
    if isinstance(last, int) and values.get("eval_idx", -1) not in (-1, last - 1):
        raise UserError(
            f"{place}: `eval_idx` is {show(values['eval_idx'])}; here the last of the {last} decoder layers answers"
        )
    try:
        return CONFIG_MAPPING[settings.family].from_dict(values)
    except Exception as error:  # validation of HF's own
        reason = " ".join(str(error).split()) or type(error).__name__
        told = f"{place}: HF transformers refuses the config of {settings.name}: {reason[:REASON]}"
        raise UserError(told) from None


def _of_rt_detr(settings: DetrSettings) -> dict[str, Any]:
    """What configs of D-FINE and RT-DETR say besides."""
    # HF's frozen batch norm loses the activations that timm has in them
    of_timm = (settings.config.get("backbone_config") or {}).get("model_type") == "timm_backbone"
    return {
        "num_denoising": settings.denoising,
        "initializer_bias_prior_prob": settings.prior,
        "freeze_backbone_batch_norms": settings.freeze_batch_norm and not of_timm,
        # positions of whatever size the pictures have; with sizes of its own HF leaves the embedding out
        "eval_size": None,
        "anchor_image_size": None,
    }


def _made(
    settings: DetrSettings, num_classes: int, weights: str | Path
) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """HF's model with random weights, but for those of a timm backbone, and the normalisation of its pictures.

    weights: as of `build`, without checkpoints."""
    config = hf_config(settings, num_classes)
    from transformers import CONFIG_MAPPING, AutoModelForObjectDetection

    mean: tuple[float, ...] = settings.mean
    std: tuple[float, ...] = settings.std
    backbone = None
    if settings.backbone is not None:
        backbone = Backbone(settings.backbone, pretrained=weights == "imagenet")
        if isinstance(weights, Path):
            load_backbone_weights(backbone, weights)
        levels = len(config.decoder_in_channels)
        kind: Any = CONFIG_MAPPING["timm_backbone"]
        config.backbone_config = kind(
            backbone=backbone.name, out_indices=backbone.positions[-levels:], use_pretrained_backbone=False
        )
        config.encoder_in_channels = backbone.channels[-levels:]
        config.freeze_backbone_batch_norms = False  # as in `hf_config`
        mean, std = backbone.mean, backbone.std
    whole = AutoModelForObjectDetection.from_config(config)
    if isinstance(settings, RFDetrSettings):
        _initialise_rf_detr(whole, settings.prior)
    else:
        _initialise(whole)
    if backbone is not None:
        own = whole.model.backbone.model
        names = {name.removeprefix("_backbone."): name for name in own.state_dict()}
        state = {names[n]: t for n, t in backbone.body.state_dict().items() if n in names}
        own.load_state_dict(state, strict=True)
    return whole, mean, std


def _initialise(whole: Any) -> None:
    """Layers as torch makes them, as the authors do, and then what has a start of its own.

    HF draws the scales of RT-DETR's batch norm around 0 and all weights very small, meant to be loaded over. The
    embedding of denoising stays small (a tenth of HF's, a hundredth of the authors'), and heads of first guesses
    are torch's: the authors' start (normal, and zeros) found less in trainings of minutes (docs/log.md, 11-30).
    """
    modules = list(whole.modules())
    for module in modules:
        if isinstance(module, GIVEN_INITS):
            module.reset_parameters()
    for module in modules:
        if not isinstance(module, GIVEN_INITS):
            whole._init_weights(module)


def _initialise_rf_detr(whole: Any, prior: float) -> None:
    """As HF, but with this prior, and with queries that begin where the encoder says."""
    core = whole.model
    for head in (whole.class_embed, *core.enc_out_class_embed):
        nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    nn.init.zeros_(core.reference_point_embed.weight)


def trained(settings: DetrSettings, num_classes: int, source: str | Path) -> Detr:
    """The network of a checkpoint, with its classes. Raises `UserError` for tensors that do not fit its config.

    HF itself reads it: the names in the files are older than those of its modules.
    """
    directory = directory_of(source)
    check_files(directory)
    config = hf_config(settings, num_classes, directory / CONFIG)
    from transformers import AutoModelForObjectDetection

    try:
        with _quiet():
            whole, found = AutoModelForObjectDetection.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # of HF and of safetensors, for damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{directory} cannot be read by HF transformers: {reason}") from None
    if more := sorted(name for name in found["unexpected_keys"] if _OF_A_LAYER.search(name)):
        raise UserError(
            f"{directory / CONFIG} describes fewer layers than there are tensors of ({more[0]}, ...); they belong "
            f"together: fetch both again"
        )
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("num_batches_tracked"))
    wrong = sorted(found["mismatched_keys"])
    if wrong and not missing and all("class_embed" in name or "enc_score_head" in name for name, _, _ in wrong):
        rows = min(shape[0] for _, shape, _ in wrong)  # the embedding has one more
        raise UserError(
            f"{directory / CONFIG}: `id2label` names {num_classes} classes, but the tensors have rows for {rows}; "
            f"name every row"
        )
    if missing or wrong:
        what = f" ({missing[0]}, ...)" if missing else ""
        shapes = "".join(f" ({n} is {list(a)}, by the config {list(b)}, ...)" for n, a, b in wrong[:1])
        raise UserError(
            f"the tensors of {directory} do not fit its {CONFIG}: {len(missing)} are missing{what}, {len(wrong)} "
            f"have another shape{shapes}"
        )
    _check_activations(settings, whole, directory / CONFIG)
    return _network(whole, settings, num_classes, None, settings.mean, settings.std)


def _check_activations(settings: DetrSettings, whole: Any, file: Path) -> None:
    """Raises `UserError` for a timm backbone that HF would run without the activations in its batch norms, as it
    does where it freezes these: the weights were trained so, and here they would answer otherwise."""
    body: Any = getattr(whole.model.backbone, "model", None)
    if not hasattr(body, "_backbone") or not settings.config.get("freeze_backbone_batch_norms", True):
        return
    norms = (module for module in body.modules() if isinstance(module, BatchNormAct2d))
    if any(not isinstance(norm.act, nn.Identity) for norm in norms):
        raise UserError(
            f"{file}: `freeze_backbone_batch_norms` is true (or not there); HF transformers then runs this timm "
            f"backbone without the activations in its batch norms, and crossdet with them. If the weights were "
            f"trained with them, write `false`"
        )


def trained_as(wanted: DetrSettings, settings: DetrSettings, num_classes: int, source: str | Path) -> Detr:
    """`trained` with what HF's config does not say of `wanted`, the settings of the network that the checkpoint was
    written from: batch norm of timm's backbones, fixed or trained, and suppression. settings: by the checkpoint
    alone."""
    own = {"nms": wanted.nms}
    if not isinstance(wanted, RFDetrSettings):
        own["freeze_batch_norm"] = wanted.freeze_batch_norm
    return trained(settings.model_copy(update=own), num_classes, source)


@contextmanager
def _quiet() -> Iterator[None]:
    """HF's progress bars of tensors, which take no time, are off, and so is its list of tensors that do not fit:
    what matters of it is an error here."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def hf_name(name: str) -> str:
    """Of a tensor of `core`, in HF's whole model."""
    return name if name.startswith(OWN_HEADS) else f"model.{name}"


def write(network: Detr, classes: Sequence[str], directory: Path) -> None:
    """As a checkpoint that `transformers.pipeline("object-detection", directory)` opens, with the same answers.

    classes: names by row. Raises `UserError` where HF's processor cannot make the pictures, or its network not find
    the same.
    """
    side = network.settings.square
    if side is None:
        raise UserError(
            "model.square: null, but HF's processor stretches every picture to a square; train "
            "with `model.square: 640` to write a checkpoint for it"
        )
    if network.settings.begins:
        raise UserError(
            "these weights were extended with `mode: frozen`, whose new classes have queries of their own; HF's "
            "networks have one set, and would find other things"
        )
    from transformers import AutoModelForObjectDetection

    config = copy.deepcopy(network.core.config)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: row for row, name in enumerate(classes)}
    if strides := getattr(config, "feat_strides", None):  # HF chooses so many, also where there are fewer positions
        config.num_queries = min(config.num_queries, sum((side // stride) ** 2 for stride in strides))
    whole = AutoModelForObjectDetection.from_config(config)
    whole.load_state_dict({hf_name(name): t for name, t in network.core.state_dict().items()}, strict=False)
    with _quiet():
        whole.save_pretrained(directory)
    mean, std = ((buffer.flatten() / 255).tolist() for buffer in (network.mean, network.std))
    write_processor(directory, network.settings.family, side, mean, std)
