"""Networks for images of transformers (Hugging Face) in the coverage sweep: sizes of images, and changed settings.

The engine was not developed on these: its rules come from the other libraries.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# Narrow and of few layers, for images of 64 pixels.
SMALL: dict[str, Any] = {
    "image_size": 64, "num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768,
}  # fmt: skip
WINDOWS = {"image_size": 64, "patch_size": 2, "window_size": 4, "depths": [2, 2, 2, 2]}
TWO_AND_TWO = {"encoder_layers": 2, "decoder_layers": 2}
CLASSES: dict[str, tuple[int, dict[str, Any]]] = {
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
    "ViTForImageClassification": (64, SMALL),
    "DeiTForImageClassification": (64, SMALL),
    "BeitForImageClassification": (64, SMALL),
    "IJepaForImageClassification": (64, SMALL),
    "Dinov2ForImageClassification": (
        56,
        {"image_size": 56, "num_hidden_layers": 3, "hidden_size": 192, "num_attention_heads": 3},
    ),
    "Data2VecVisionForSemanticSegmentation": (64, SMALL | {"num_hidden_layers": 12}),
    "UperNetForSemanticSegmentation": (64, {}),
    "GLPNForDepthEstimation": (64, {}),
    "DPTForDepthEstimation": (64, SMALL | {"num_hidden_layers": 12, "neck_hidden_sizes": [32, 48, 64, 96]}),
    "DepthAnythingForDepthEstimation": (56, {}),
    "YolosForObjectDetection": (64, SMALL | {"image_size": [64, 64]}),
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


def build_transformers(name: str) -> nn.Module:
    """One of `CLASSES`, in eval mode, with random weights."""
    import transformers

    made = getattr(transformers, name)
    model: nn.Module = made(made.config_class(**CLASSES[name][1]))
    return model.eval()
