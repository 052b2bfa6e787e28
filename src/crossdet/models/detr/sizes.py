"""The published sizes, as what differs from the default configs of HF transformers."""

from __future__ import annotations

from typing import Any


def _hgnet(stem: list[int], inner: list[list[int]], blocks: list[int], layers: int, **more: Any) -> dict[str, Any]:
    """A config of the backbone HGNetV2. inner: channels into, in the middle of, and out of the four stages."""
    into, middle, out = inner
    return {
        "model_type": "hgnet_v2",
        "stem_channels": stem,
        "embedding_size": 32,
        "hidden_sizes": out,
        "stage_in_channels": into,
        "stage_mid_channels": middle,
        "stage_out_channels": out,
        "stage_num_blocks": blocks,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "stage_numb_of_layers": [layers] * 4,
        "out_indices": [2, 3, 4],
        **more,
    }


_B0 = [[16, 64, 256, 512], [16, 32, 64, 128], [64, 256, 512, 1024]]
_B2 = [[32, 96, 384, 768], [32, 64, 128, 256], [96, 384, 768, 1536]]
_B4 = [[48, 128, 512, 1024], [48, 96, 192, 384], [128, 512, 1024, 2048]]
_B5 = [[64, 128, 512, 1024], [64, 128, 256, 512], [128, 512, 1024, 2048]]

D_FINE: dict[str, dict[str, Any]] = {
    "nano": {
        "backbone_config": _hgnet(
            [3, 16, 16], _B0, [1, 1, 2, 1], 3, out_indices=[3, 4], use_learnable_affine_block=True
        ),
        "num_feature_levels": 2,
        "feat_strides": [16, 32],
        "encode_proj_layers": [1],
        "d_model": 128,
        "encoder_hidden_dim": 128,
        "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512,
        "encoder_in_channels": [512, 1024],
        "decoder_in_channels": [128, 128],
        "decoder_n_points": [6, 6],
        "decoder_layers": 3,
        "depth_mult": 0.5,
        "hidden_expansion": 0.34,
    },
    "small": {
        "backbone_config": _hgnet([3, 16, 16], _B0, [1, 1, 2, 1], 3, use_learnable_affine_block=True),
        "encoder_in_channels": [256, 512, 1024],
        "decoder_n_points": [3, 6, 3],
        "decoder_layers": 3,
        "depth_mult": 0.34,
        "hidden_expansion": 0.5,
    },
    "medium": {
        "backbone_config": _hgnet([3, 24, 32], _B2, [1, 1, 3, 1], 4, use_learnable_affine_block=True),
        "encoder_in_channels": [384, 768, 1536],
        "decoder_n_points": [3, 6, 3],
        "decoder_layers": 4,
        "depth_mult": 0.67,
    },
    "large": {"backbone_config": _hgnet([3, 32, 48], _B4, [1, 1, 3, 1], 6), "decoder_n_points": [3, 6, 3]},
    "xlarge": {
        "backbone_config": _hgnet([3, 32, 64], _B5, [1, 2, 5, 2], 6),
        "encoder_hidden_dim": 384,
        "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384, 384, 384],
        "decoder_n_points": [3, 6, 3],
    },
}
"""As in HF's conversion script of the authors' checkpoints."""


def _resnet(depths: list[int], basic: bool = False) -> dict[str, Any]:
    sizes = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    kind = "basic" if basic else "bottleneck"
    return {
        "model_type": "rt_detr_resnet",
        "depths": depths,
        "hidden_sizes": sizes,
        "layer_type": kind,
        "out_indices": [2, 3, 4],
    }


_SMALL = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}

RT_DETR: dict[str, dict[str, Any]] = {
    "r18": {"backbone_config": _resnet([2, 2, 2, 2], basic=True), **_SMALL, "decoder_layers": 3},
    "r34": {"backbone_config": _resnet([3, 4, 6, 3], basic=True), **_SMALL, "decoder_layers": 4},
    "r50m": {"backbone_config": _resnet([3, 4, 6, 3]), "hidden_expansion": 0.5},
    "r50": {"backbone_config": _resnet([3, 4, 6, 3])},
    "r101": {
        "backbone_config": _resnet([3, 4, 23, 3]),
        "encoder_ffn_dim": 2048,
        "encoder_hidden_dim": 384,
        "decoder_in_channels": [384, 384, 384],
    },
}
"""Of both versions."""


def _dinov2(side: int, **more: Any) -> dict[str, Any]:
    """A config of the backbone, DINOv2 small with attention in windows."""
    return {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": side,
        "patch_size": 16,
        "num_windows": 2,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
        **more,
    }


def _rf_detr(layers: int, backbone: dict[str, Any]) -> dict[str, Any]:
    return {"backbone_config": backbone, "decoder_layers": layers, "decoder_n_points": 2, "dropout": 0.0}


_OLD = {"patch_size": 14, "num_windows": 4, "out_features": ["stage2", "stage5", "stage8", "stage11"]}

RF_DETR_SQUARES = {"nano": 384, "small": 512, "medium": 576, "large": 704, "base": 560}
RF_DETR: dict[str, dict[str, Any]] = {
    "nano": _rf_detr(2, _dinov2(384)),
    "small": _rf_detr(3, _dinov2(512)),
    "medium": _rf_detr(4, _dinov2(576)),
    "large": _rf_detr(4, _dinov2(704)),
    "base": _rf_detr(3, _dinov2(518, **_OLD)),
}
"""As in HF's conversion script; no dropout, as in the authors' code."""
