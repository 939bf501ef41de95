"""The oracle on torchvision's models: a small model of every kind in the normal run, every other one marked slow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from channelwise.testing import check_oracle

models = pytest.importorskip("torchvision.models")

# name: (side of the image, the least share of convolution and linear output channels that must be prunable)
QUICK = {
    "convnext_tiny": (32, 0.6),
    "densenet121": (32, 0.85),
    "efficientnet_b0": (32, 0.85),
    "googlenet": (64, 0.75),
    "mnasnet0_5": (32, 0.6),
    "mobilenet_v2": (32, 0.85),
    "mobilenet_v3_small": (32, 0.8),
    "regnet_x_400mf": (32, 0.85),
    "regnet_y_400mf": (32, 0.85),
    "resnet18": (64, 0.8),
    "resnext50_32x4d": (32, 0.9),
    "shufflenet_v2_x0_5": (32, 0.6),
    "squeezenet1_1": (64, 0.6),
}
QUICK_SEGMENTATION = {
    "deeplabv3_mobilenet_v3_large": (64, 0.9),
    "lraspp_mobilenet_v3_large": (64, 0.9),
}
QUICK_VIDEO = {"r2plus1d_18": (16, 0.8), "r3d_18": (16, 0.8)}
SIDES = {"inception_v3": 299}
FIXED_SIZE = {"vit": 224, "maxvit": 224, "mvit": 224}


def build(name: str, **options: Any) -> nn.Module:
    """The model without weights, without slow initialisations."""
    if name in ("googlenet", "inception_v3") or name.startswith("vgg"):
        options["init_weights"] = False
    model = models.get_model(name, weights=None, **options)
    for module in model.modules():
        # The oracle compares training steps where they do not depend on random numbers.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


@pytest.mark.parametrize(("name", "side", "share"), [(n, *v) for n, v in QUICK.items()], ids=list(QUICK))
def test_classification(name: str, side: int, share: float) -> None:
    report = check_oracle(build(name), torch.randn(1, 3, side, side), min_pruned=share)
    assert report.macs[1] < 0.75 * report.macs[0]
    assert report.trained


def test_inception_without_its_auxiliary_head() -> None:
    check_oracle(build("inception_v3", aux_logits=False), torch.randn(1, 3, 75, 75), min_pruned=0.85)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_flattened_features_before_a_narrow_classifier(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    wide = next(m for m in model.classifier if isinstance(m, nn.Linear)).in_features
    model.classifier = nn.Sequential(nn.Linear(wide, 64), nn.ReLU(inplace=True), nn.Linear(64, 10))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * 0.1 if tensor.dim() > 1 else torch.ones(tensor.shape))
    check_oracle(model, torch.randn(1, 3, 64, 64), min_pruned=0.95)


@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.8), ("mobilenet_v2", 0.85), ("shufflenet_v2_x0_5", 0.6)])
def test_float_models_made_to_be_quantised_later(name: str, share: float) -> None:
    # They add and concatenate by modules of their own.
    model = getattr(models.quantization, name)(weights=None, quantize=False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    report = check_oracle(model.eval(), torch.randn(1, 3, 64, 64), min_pruned=share)
    assert report.macs[1] < 0.75 * report.macs[0]


def test_small_vision_transformer() -> None:
    model = models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    check_oracle(model.eval(), torch.randn(1, 3, 32, 32), min_pruned=0.3)


def test_small_swin_transformer() -> None:
    model = models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10, stochastic_depth_prob=0.0)
    check_oracle(model.eval(), torch.randn(1, 3, 32, 32), min_pruned=0.25)


@pytest.mark.parametrize(
    ("name", "side", "share"), [(n, *v) for n, v in QUICK_SEGMENTATION.items()], ids=list(QUICK_SEGMENTATION)
)
def test_segmentation(name: str, side: int, share: float) -> None:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = build(f"{name}", weights_backbone=None, **options)
    check_oracle(model, torch.randn(1, 3, side, side), min_pruned=share)


@pytest.mark.parametrize(("name", "side", "share"), [(n, *v) for n, v in QUICK_VIDEO.items()], ids=list(QUICK_VIDEO))
def test_video(name: str, side: int, share: float) -> None:
    check_oracle(build(name), torch.randn(1, 3, 4, side, side), min_pruned=share, dtype=torch.float32)


def _rest(module: Any, done: dict[str, Any]) -> list[str]:
    return [name for name in models.list_models(module=module) if name not in done]


@pytest.mark.slow
@pytest.mark.parametrize("name", _rest(models, QUICK))
def test_every_classification_model(name: str) -> None:
    family = name.split("_")[0]
    side = SIDES.get(name, FIXED_SIZE.get(family, 64))
    share = 0.3 if family in ("vit", "swin", "maxvit") else 0.6
    if family == "maxvit":
        share = 0.2
    check_oracle(build(name), torch.randn(1, 3, side, side), min_pruned=share, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", _rest(models.segmentation, QUICK_SEGMENTATION))
def test_every_segmentation_model(name: str) -> None:
    model = build(name, weights_backbone=None, aux_loss=True)
    check_oracle(model, torch.randn(1, 3, 64, 64), min_pruned=0.85, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", _rest(models.video, QUICK_VIDEO))
def test_every_video_model(name: str) -> None:
    side = 224 if name.startswith(("mvit", "swin", "s3d")) else 32
    share = 0.2 if name.startswith(("mvit", "swin")) else 0.8
    check_oracle(build(name), torch.randn(1, 3, 16, side, side), min_pruned=share, dtype=torch.float32)
