"""One YOLO model: pruned, trained by ultralytics' own trainer, loaded, fused and exported by the package, and reloaded.

The dense model goes the same way first: what fails there as well is none of the pruning's fault.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

import channelwise as cw

from .check import prepare_worker
from .journal import Row
from .outputs import Predictions, apart, difference, predictions, run_exported
from .yolo_data import KEYPOINTS, NAMES, read_pictures

MODELS = (
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolov8n-seg",
    "yolov8n-pose", "yolov8n-cls", "yolov8n-obb", "yolo11n-seg", "yolo11n-pose", "yolo11n-cls", "yolo11n-obb", "yolov3",
)  # fmt: skip

STEPS = ("train", "load", "fuse", "torchscript", "onnx", "save")
TOLERANCES = {"fuse": 1e-9, "torchscript": 2e-3, "onnx": 2e-3}
"""Shares of what the predictions of two images differ by. Exported models are fused, in float32; see `Kit.fuse`."""
RESPONSE = 1e-3
"""How much the predictions of two images have to differ at least, relative to the largest of each value."""

reached_out: list[str] = []
"""What this process wanted from other machines, or to install."""


@dataclass(frozen=True)
class Setting:
    """Where the data are, and how long models are trained."""

    data: dict[str, str]
    folder: str
    pixels: int
    epochs: int


def prepare_yolo(folder: str, gigabytes: float) -> None:
    """A worker process of the sweep, in which ultralytics downloads nothing, installs nothing and reports nothing."""
    prepare_worker(gigabytes)
    settings = Path(folder) / "settings"
    os.environ |= {
        "YOLO_CONFIG_DIR": str(settings),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
    }
    # It wants to have this font even if it draws nothing.
    from matplotlib import get_data_path

    (settings / "Ultralytics").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", settings / "Ultralytics" / "Arial.ttf")
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" or (event == "subprocess.Popen" and "pip" in str(arguments[1])):
        reached_out.append(f"{event} {arguments[:2]}")
        raise PermissionError(f"no network and no installation here: {reached_out[-1]}")


def check_yolo(name: str, setting: Setting) -> Row:
    """A row of the table. ``error`` is empty if everything held for the pruned model."""
    import ultralytics

    row: Row = {"version": ultralytics.__version__, "error": ""}
    start = time.perf_counter()
    try:
        kit = Kit(name, setting)
        row["task"] = kit.task
        row["dense"] = kit.steps(kit.build(), "dense")
        dense = kit.build()
        trained = kit.weights("dense")
        if trained.exists():
            dense = kit.yolo(trained).model
        graph = cw.trace(Predictions(dense), kit.images)
        selection = graph.select(sparsity=0.5)
        slim = cw.recovery.recalibrate(graph.slim(selection).model, [kit.pictures])
        row["macs_left"] = graph.macs(selection) / graph.macs()
        row["params_left"] = sum(p.numel() for p in slim.parameters()) / sum(p.numel() for p in dense.parameters())
        row["slim"] = kit.steps(slim, "slim")
        failed = [step for step in STEPS if row["slim"].get(step, {}).get("error")]
        if failed:
            row["error"] = f"{failed[0]}: {row['slim'][failed[0]]['error']}"
        elif reached_out:
            row["error"] = f"PermissionError: {reached_out[0]}"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:2000]
        row["traceback"] = traceback.format_exc()[-3000:]
    row["seconds"] = time.perf_counter() - start
    return row


class Kit:
    """What one YOLO needs: its classes in ultralytics, its data, images to compare outputs on."""

    def __init__(self, name: str, setting: Setting) -> None:
        from ultralytics import YOLO

        self.yolo = YOLO
        self.name, self.setting = name, setting
        self.folder = Path(setting.folder) / name
        shutil.rmtree(self.folder, ignore_errors=True)
        start = YOLO(f"{name}.yaml")
        self.task: str = start.task
        self.classes: dict[str, Any] = start.task_map[self.task]
        self.data = setting.data[self.task]
        self.pictures = read_pictures(Path(setting.data["detect"]).parent, 8, setting.pixels)
        self.images = self.pictures[:1]

    def build(self) -> nn.Module:
        """The model from its definition, for the classes of the data, with the same random weights every time.

        Its batch norms have statistics of images: with those that they are made with, what a random network predicts
        hardly depends on the image, and there would be nothing to compare.
        """
        torch.manual_seed(0)
        more: dict[str, Any] = {"data_kpt_shape": (KEYPOINTS, 3)} if self.task == "pose" else {}
        model: nn.Module = self.classes["model"](f"{self.name}.yaml", nc=len(NAMES), verbose=False, **more)
        return cw.recovery.recalibrate(model, [self.pictures]).eval()

    def weights(self, kind: str, which: str = "last") -> Path:
        """Where ultralytics' trainer leaves a model."""
        return self.folder / kind / "weights" / f"{which}.pt"

    def steps(self, model: nn.Module, kind: str) -> dict[str, dict[str, Any]]:
        """What came of every step; those after training need it."""
        shapes = _shapes(model)
        todo: dict[str, Callable[[], dict[str, Any]]] = {
            "train": lambda: self.train(model, kind),
            "load": lambda: self.load(shapes, kind),
            "fuse": lambda: self.fuse(kind),
            "torchscript": lambda: self.export(kind, "torchscript"),
            "onnx": lambda: self.export(kind, "onnx"),
            "save": lambda: self.save(kind),
        }
        found: dict[str, dict[str, Any]] = {}
        for step, do in todo.items():
            try:
                found[step] = do()
            except Exception as error:
                found[step] = {
                    "error": f"{type(error).__name__}: {error}"[:500],
                    "traceback": traceback.format_exc()[-3000:],
                }
                if step == "train":
                    break
        return found

    def train(self, model: nn.Module, kind: str) -> dict[str, Any]:
        """By the trainer of the task, whose ``get_model`` would build the network anew from its definition."""

        class Trainer(self.classes["trainer"]):  # type: ignore[misc, name-defined]
            def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
                return model

        before = {key: value.clone() for key, value in model.state_dict().items()}
        yolo = self.yolo(f"{self.name}.yaml")
        yolo.train(
            trainer=Trainer,
            data=self.data,
            epochs=self.setting.epochs,
            imgsz=self.setting.pixels,
            batch=8,
            optimizer="AdamW",
            lr0=1e-4,  # of more, random weights are worth nothing after a few steps: scores of 0 and 1 everywhere
            device="cpu",
            workers=0,
            amp=False,
            plots=False,
            project=str(self.folder.resolve()),
            name=kind,
            exist_ok=True,
        )
        trainer = yolo.trainer
        if trainer.model is not model:
            raise AssertionError("the trainer trained another model than the one it was given")
        loss = {key: float(value) for key, value in trainer.tloss.items()}
        if not all(isfinite(value) for value in loss.values()):
            raise AssertionError(f"the loss is not finite: {loss}")
        now = model.state_dict()
        _must_be(_shapes(model), {key: tuple(value.shape) for key, value in before.items()}, "the trained model")
        _must_be(_shapes(trainer.ema.ema), _shapes(model), "the moving average")
        changed = [not torch.equal(now[key], before[key]) for key, _ in model.named_parameters()]
        if sum(changed) < 0.9 * len(changed):
            raise AssertionError(f"training changed {sum(changed)} of {len(changed)} parameters")
        kept = self.yolo(self.weights(kind)).model
        if not _equal(kept.state_dict(), deepcopy(trainer.ema.ema).half().float().state_dict()):
            raise AssertionError("last.pt does not hold the moving average")
        return {"error": "", "loss": loss, "changed": sum(changed) / len(changed)}

    def load(self, shapes: dict[str, tuple[int, ...]], kind: str) -> dict[str, Any]:
        """last.pt and best.pt by ``YOLO(…)``, which predicts and validates."""
        metrics: dict[str, float] = {}
        for which in ("last", "best"):
            yolo = self.yolo(self.weights(kind, which))
            _must_be(_shapes(yolo.model), shapes, f"{which}.pt")
            yolo.predict(self.images, imgsz=self.setting.pixels, verbose=False, save=False)
            result = yolo.val(
                data=self.data, imgsz=self.setting.pixels, plots=False, verbose=False, workers=0, device="cpu",
                project=str(self.folder.resolve()), name=f"{kind}-val", exist_ok=True,
            )  # fmt: skip
            metrics = {key: float(value) for key, value in result.results_dict.items()}
            if not all(isfinite(value) for value in metrics.values()):
                raise AssertionError(f"validation is not finite: {metrics}")
        return {"error": "", "metrics": metrics}

    def fuse(self, kind: str) -> dict[str, Any]:
        """``model.fuse()`` leaves the outputs as they are, in float64."""
        found = []
        for model in self.heads(kind):
            model = model.double()
            images = self.images.double()
            expected = predictions(model, images)
            response = difference(predictions(model, self.pictures[1:2].double()), expected)
            found.append((difference(predictions(model.fuse(verbose=False), images), expected), response))
        return _within("fuse", found)

    def export(self, kind: str, to: str) -> dict[str, Any]:
        """The exported file, run without ultralytics, gives what the PyTorch model gives."""
        compared = []
        for model in self.heads(kind):
            yolo = self.yolo(self.weights(kind))
            nms = False if getattr(model, "end2end", False) else None
            file = yolo.export(format=to, imgsz=self.setting.pixels, device="cpu", nms=nms)
            found = apart(run_exported(file, self.images), end2end=nms is False)
            expected = predictions(model, self.images)
            response = difference(predictions(model, self.pictures[1:2]), expected)
            compared.append((difference(found, expected), response))
        return _within(to, compared)

    def save(self, kind: str) -> dict[str, Any]:
        """``channelwise.save``, and ``load`` into a fresh model from the definition."""
        trained = self.yolo(self.weights(kind)).model.eval()
        file = self.folder / f"{kind}.safetensors"
        cw.save(trained, file)
        again = cw.load(self.build(), file).eval()
        if difference(predictions(again, self.images), predictions(trained, self.images)) > 0:
            raise AssertionError("the reloaded model predicts something else")
        return {"error": ""}

    def heads(self, kind: str) -> Iterator[nn.Module]:
        """The trained model with each of its heads: those of v10 and later have one that needs no suppression."""
        model = self.yolo(self.weights(kind)).model.eval()
        if not getattr(model, "end2end", False):
            yield model
            return
        for end2end in (True, False):
            one: Any = deepcopy(model)
            one.end2end = end2end
            yield one


def _within(step: str, found: list[tuple[float, float]]) -> dict[str, Any]:
    """Of every head: how far outputs are apart that should be equal, and those of two images."""
    error = ""
    for apart_by, response in found:
        if response < RESPONSE:
            error = f"AssertionError: two images differ by {response:.1e} in what is predicted: too little to tell by"
        elif not apart_by <= TOLERANCES[step] * min(response, 1.0):
            error = f"AssertionError: outputs differ by {apart_by:.1e}, those of two images by {response:.1e}"
    return {"error": error, "difference": max(d for d, _ in found), "response": min(r for _, r in found)}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _must_be(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], what: str) -> None:
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise AssertionError(f"{what} has {name} of shape {found.get(name)}, not {expected.get(name)}")


def _equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
