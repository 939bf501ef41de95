"""Networks for audio, signals and volumes in the coverage sweep: of MONAI (1-d and 3-d) and transformers (audio)."""

from __future__ import annotations

from typing import Any

from torch import nn

VOLUME = "1,1,32,32,32"
UNET: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "channels": (16, 32, 64, 128), "strides": (2, 2, 2)}
RESNET18: dict[str, Any] = {"block": "basic", "layers": [2, 2, 2, 2], "block_inplanes": [64, 128, 256, 512]}
RESNET50: dict[str, Any] = {"block": "bottleneck", "layers": [3, 4, 6, 3], "block_inplanes": [64, 128, 256, 512]}
# Two layers show what twelve would.
SPEECH = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}

MONAI: dict[str, tuple[str, str, dict[str, Any]]] = {
    "unet_1d": ("UNet", "1,1,256", {"spatial_dims": 1, "num_res_units": 2, "norm": "batch", **UNET}),
    "unet_3d": ("UNet", VOLUME, {"spatial_dims": 3, "num_res_units": 2, **UNET}),
    "basic_unet_1d": ("BasicUNet", "1,1,256", {"spatial_dims": 1, "out_channels": 3}),
    "basic_unet_plus_plus_3d": ("BasicUNetPlusPlus", VOLUME, {"out_channels": 3, "norm": "batch"}),
    "attention_unet_3d": ("AttentionUnet", VOLUME, {"spatial_dims": 3, **UNET}),
    "vnet_3d": ("VNet", VOLUME, {"out_channels": 3}),
    "segresnet_3d": ("SegResNet", VOLUME, {"init_filters": 16}),
    "segresnet_ds_3d": ("SegResNetDS", VOLUME, {"init_filters": 16}),
    "dynunet_3d": (
        "DynUNet",
        VOLUME,
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2]}
        | {"upsample_kernel_size": [2] * 3, "res_block": True, "norm_name": "batch"},
    ),
    "highresnet_3d": ("HighResNet", VOLUME, {"out_channels": 3}),
    "densenet121_1d": ("DenseNet121", "1,1,512", {"spatial_dims": 1, "in_channels": 1, "out_channels": 10}),
    "densenet121_3d": ("DenseNet121", VOLUME, {"spatial_dims": 3, "in_channels": 1, "out_channels": 10}),
    "resnet50_1d": ("ResNet", "1,1,512", {"spatial_dims": 1, "n_input_channels": 1, "num_classes": 10, **RESNET50}),
    "resnet18_3d": ("ResNet", VOLUME, {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 10, **RESNET18}),
    # Larger, so that batch norm in train mode sees more than a voxel of the deepest features.
    "seresnet50_3d": ("SEResNet50", "1,1,96,96,96", {"spatial_dims": 3, "in_channels": 1, "num_classes": 10}),
    "efficientnet_b0_1d": (
        "EfficientNetBN",
        "1,1,512",
        {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 1, "in_channels": 1, "num_classes": 10},
    ),
    "autoencoder_3d": (
        "AutoEncoder",
        VOLUME,
        {"spatial_dims": 3, "norm": "batch", **UNET} | {"strides": (2, 2, 2, 2)},
    ),
    "unetr_3d": (
        "UNETR",
        VOLUME,
        {"in_channels": 1, "out_channels": 3, "img_size": 32, "hidden_size": 192} | {"mlp_dim": 768},
    ),
    "swin_unetr_3d": (
        "SwinUNETR",
        "1,1,64,64,64",
        {"in_channels": 1, "out_channels": 3, "feature_size": 12, "window_size": 4},
    ),
    "mednext_s_3d": ("MedNeXtS", VOLUME, {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}),
}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2Model", "1,4000", SPEECH),
    "wav2vec2_conformer": ("Wav2Vec2ConformerModel", "1,4000", SPEECH),
    "hubert": ("HubertModel", "1,4000", SPEECH),
    "audio_spectrogram_transformer": ("ASTModel", "1,1024,128", {"num_hidden_layers": 2}),
    "hifigan": ("SpeechT5HifiGan", "1,20,80", {}),
    "univnet": ("UnivNetModel", "1,20,100", {}),
    "encodec": ("EncodecModel", "1,1,4800", {}),
    "dac": ("DacModel", "1,1,4096", {}),
}
INPUTS = {name: shape for name, (_, shape, _) in (MONAI | TRANSFORMERS).items()}


def build_other(name: str) -> nn.Module:
    """One of `INPUTS`, in eval mode, with random weights."""
    model: nn.Module
    if name in MONAI:
        import monai.networks.nets as nets

        kind, _, arguments = MONAI[name]
        model = getattr(nets, kind)(**arguments)
    else:
        import transformers

        kind, _, arguments = TRANSFORMERS[name]
        made = getattr(transformers, kind)
        model = made(made.config_class(**arguments))
    return model.eval()
