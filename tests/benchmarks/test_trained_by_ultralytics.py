"""A pruned YOLO model in ultralytics' own hands, as docs/yolo.md shows: its trainer keeps it, its exporter knows it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import channelwise as cw

PIXELS = 64
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """What ultralytics reads when it is imported: it downloads and installs nothing, and leaves settings alone."""
    pytest.importorskip("matplotlib")
    for name, value in {"OFFLINE": "true", "AUTOINSTALL": "false", "VERBOSE": "false"}.items():
        monkeypatch.setenv(f"YOLO_{name}", value)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("ultralytics")
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: None)


@pytest.fixture
def data(tmp_path):
    """Four images with a bright square each."""
    random = np.random.default_rng(0)
    for k in range(4):
        image = random.integers(0, 90, (PIXELS, PIXELS, 3), np.uint8)
        image[8 * k : 8 * k + 24, 20:44] = 255
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{k}.png")
        label = f"0 0.5 {(8 * k + 12) / PIXELS} 0.375 0.375\n"
        (tmp_path / "data" / "labels" / f"{k}.txt").write_text(label)
    text = f"path: {tmp_path / 'data'}\ntrain: images\nval: images\nnames: {json.dumps({0: 'square'})}\n"
    (tmp_path / "data.yaml").write_text(text)
    return str(tmp_path / "data.yaml")


@pytest.fixture
def slim():
    """Half of YOLOv8n, with statistics of images: what it predicts depends on them."""
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    graph = cw.trace(model, torch.rand(1, 3, PIXELS, PIXELS))
    return cw.recovery.recalibrate(graph.slim(graph.select(sparsity=0.5)), [torch.rand(8, 3, PIXELS, PIXELS)])


def trained(slim, data, trainer):
    from ultralytics import YOLO

    yolo = YOLO("yolov8n.yaml")
    yolo.model = slim
    yolo.save("slim.pt")
    yolo = YOLO("slim.pt")
    short = {"epochs": 1, "imgsz": PIXELS, "batch": 2, "device": "cpu", "workers": 0, "amp": False, "plots": False}
    yolo.train(trainer=trainer, data=data, project=str(Path("runs").resolve()), **short)
    return yolo


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_a_pruned_model_is_trained_as_it_is_and_exported(slim, data):
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    class SlimTrainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            return weights

    before = slim.model[0].conv.weight.detach().clone()
    yolo = trained(slim, data, SlimTrainer)
    assert shapes(yolo.model) == shapes(slim)
    assert not torch.allclose(yolo.model.model[0].conv.weight, before, atol=1e-4)
    images = torch.rand(1, 3, PIXELS, PIXELS)
    model = YOLO(yolo.trainer.last).model.eval()
    with torch.no_grad():
        expected, other = (model(x)[0] for x in (images, images.flip(-1)))
        found = torch.jit.load(yolo.export(format="torchscript", imgsz=PIXELS))(images)
    scale = expected.abs().amax((0, 2), keepdim=True)
    assert ((expected - other) / scale).abs().amax() > 0.01
    assert ((found - expected) / scale).abs().amax() < 1e-3


def test_without_such_a_trainer_it_would_be_built_anew(slim, data):
    from ultralytics.models.yolo.detect import DetectionTrainer

    yolo = trained(slim, data, DetectionTrainer)
    assert shapes(yolo.model) != shapes(slim)
