"""Settings of networks that have no names of their own: MONAI (signals, volumes) and transformers (audio, images)."""

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
OTHER = MONAI | TRANSFORMERS
"""Class, shape of the inputs and settings by name."""

# The engine was not developed on the following: its rules come from the other libraries.

# Narrow and of few layers, for images of 64 pixels.
NARROW: dict[str, Any] = {
    "image_size": 64, "num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768,
}  # fmt: skip
WINDOWS = {"image_size": 64, "patch_size": 2, "window_size": 4, "depths": [2, 2, 2, 2]}
TWO_AND_TWO = {"encoder_layers": 2, "decoder_layers": 2}
IMAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "ResNetForImageClassification": (64, {}),
    "RegNetForImageClassification": (64, {}),
    "MobileNetV1ForImageClassification": (64, {}),
    "MobileNetV2ForImageClassification": (64, {}),
    "MobileNetV2ForSemanticSegmentation": (64, {}),
    "EfficientNetForImageClassification": (
        64,
        {"image_size": 64, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    "ConvNextForImageClassification": (64, {}),
    "ConvNextV2ForImageClassification": (64, {}),
    "BitForImageClassification": (64, {}),
    "HGNetV2ForImageClassification": (64, {}),
    "TextNetForImageClassification": (64, {}),
    "PoolFormerForImageClassification": (64, {}),
    "FocalNetForImageClassification": (64, {"image_size": 64}),
    "SwiftFormerForImageClassification": (224, {}),
    "LevitForImageClassification": (224, {}),
    "MobileViTForImageClassification": (128, {}),
    "MobileViTForSemanticSegmentation": (128, {}),
    "MobileViTV2ForImageClassification": (128, {}),
    "PvtForImageClassification": (224, {}),
    "PvtV2ForImageClassification": (224, {}),
    "SegformerForSemanticSegmentation": (64, {}),
    "SwinForImageClassification": (64, WINDOWS),
    "Swinv2ForImageClassification": (64, WINDOWS),
    "DonutSwinForImageClassification": (64, WINDOWS),
    "Swin2SRForImageSuperResolution": (
        32,
        {"image_size": 32, "embed_dim": 60, "depths": [2, 2], "num_heads": [6, 6], "window_size": 8},
    ),
    "HieraForImageClassification": (224, {}),
    "ViTForImageClassification": (64, NARROW),
    "DeiTForImageClassification": (64, NARROW),
    "BeitForImageClassification": (64, NARROW),
    "IJepaForImageClassification": (64, NARROW),
    "Dinov2ForImageClassification": (
        56,
        {"image_size": 56, "num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3},
    ),
    "Data2VecVisionForSemanticSegmentation": (64, NARROW | {"num_hidden_layers": 12}),
    "UperNetForSemanticSegmentation": (64, {}),
    "GLPNForDepthEstimation": (64, {}),
    "DPTForDepthEstimation": (64, NARROW | {"num_hidden_layers": 12, "neck_hidden_sizes": [32, 48, 64, 96]}),
    "DepthAnythingForDepthEstimation": (56, {}),
    "YolosForObjectDetection": (64, NARROW | {"image_size": [64, 64]}),
    "DetrForObjectDetection": (128, TWO_AND_TWO),
    "ConditionalDetrForObjectDetection": (128, TWO_AND_TWO),
    "DeformableDetrForObjectDetection": (128, TWO_AND_TWO),
    "TableTransformerForObjectDetection": (128, TWO_AND_TWO),
    "RTDetrForObjectDetection": (128, {}),
    "RTDetrV2ForObjectDetection": (128, {}),
    "DFineForObjectDetection": (128, {}),
    "MaskFormerForInstanceSegmentation": (128, {}),
    "Mask2FormerForUniversalSegmentation": (128, {}),
}
"""Side of the images and settings by class."""


def build_with_settings(name: str) -> nn.Module:
    """One of `OTHER` or `IMAGES`, in eval mode, with random weights."""
    model: nn.Module
    if name in MONAI:
        import monai.networks.nets as nets

        kind, _, settings = MONAI[name]
        model = getattr(nets, kind)(**settings)
    else:
        import transformers

        kind, settings = (name, IMAGES[name][1]) if name in IMAGES else TRANSFORMERS[name][::2]
        made = getattr(transformers, kind)
        model = made(made.config_class(**settings))
    return model.eval()
