"""Losses for retraining a pruned network with the dense one as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.batches import evaluating, forward
from channelwise.inputs.check import unwrap
from channelwise.tensors import at_least_single

Loss = Callable[[Any, Any], Tensor]


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, dim: int = 1) -> Tensor:
    """How far the student's class probabilities are from the teacher's (Hinton, Vinyals and Dean, 2015).

    The Kullback-Leibler divergence of the distributions softened by ``temperature``, times its square so that gradients
    keep their size, averaged over samples (and positions, for segmentation). In float32 at least.

    Args:
        student_logits: ``(N, classes)`` or ``(N, classes, ...)``.
        teacher_logits: The same shape.
        temperature: Above 1 the small probabilities count for more.
        dim: The axis of the classes.
    """
    _check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise InvalidArgumentError(
            f"the student's logits are {tuple(student_logits.shape)} and the teacher's {tuple(teacher_logits.shape)}; "
            "they must have one shape. For outputs with several parts give logits=lambda output: ..."
        )
    student = F.log_softmax(at_least_single(student_logits) / temperature, dim)
    teacher = F.log_softmax(at_least_single(teacher_logits.detach()) / temperature, dim)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim).mean() * temperature**2


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two activations look at the image (Zagoruyko and Komodakis, 2017).

    Compares where the energy over channels is, so the two may have different numbers of channels.

    Args:
        student: ``(N, C, ...)`` with at least one axis of positions.
        teacher: ``(N, C', ...)``, the same positions.
    """
    if student.dim() < 3 or student.shape[2:] != teacher.shape[2:]:
        raise InvalidArgumentError(
            f"attention_transfer compares activations (N, C, ...) position by position; got {tuple(student.shape)} "
            f"and {tuple(teacher.shape)}."
        )
    maps = [F.normalize(at_least_single(x).square().mean(1).flatten(1), dim=1) for x in (student, teacher.detach())]
    return (maps[0] - maps[1]).square().mean()


def first_output(output: Any) -> Tensor:
    """The main output of a model: the tensor itself, the first of several, or ``logits`` or ``out`` of a dict."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("logits", "out") if key in output), next(iter(output.values()), None))
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InvalidArgumentError(
            f"no logits found in a model output of type {type(output).__name__}: give logits=lambda output: ..."
        )
    return output


class Distillation:
    """The loss for retraining a pruned network from its dense original.

    ``(1 - weight) * loss(output, targets) + weight * kd(output, teacher(inputs))``. The teacher runs without gradients,
    in eval mode, under the caller's autocast; it is not changed.

    ```python
    objective = Distillation(dense, temperature=4, weight=0.9)
    for images, labels in loader:
        objective(slim(images), images, labels).backward()
    ```

    With ``layers``, the attention maps of these modules are matched as well; they are read by hooks on the student and
    the teacher, which `close` removes:

    ```python
    with Distillation(dense, student=slim, layers=["layer2", "layer3"]) as objective:
        ...
    ```

    Args:
        teacher: The dense model.
        temperature: Of `kd`.
        weight: Share of `kd`, from 0 to 1; with 1 no targets are needed.
        loss: Called as ``loss(student_output, targets)`` with all the student returned; None for the cross entropy of
            its logits.
        logits: Takes the logits out of a model's output; by default `first_output`.
        student: The model being trained; needed for ``layers`` only.
        layers: Names of modules whose outputs are compared by `attention_transfer`.
        layer_weight: Factor of their sum; the paper's is 1000.
    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 4.0,
        weight: float = 0.9,
        *,
        loss: Loss | None = None,
        logits: Callable[[Any], Tensor] = first_output,
        student: nn.Module | None = None,
        layers: Sequence[str] = (),
        layer_weight: float = 1000.0,
    ) -> None:
        _check_temperature(temperature)
        if not 0 <= weight <= 1:
            raise InvalidArgumentError(f"weight={weight!r}: the share of the teacher must be from 0 to 1.")
        if isinstance(layers, str):
            raise InvalidArgumentError(f"layers={layers!r}: give a list of names, [{layers!r}].")
        if layers and student is None:
            raise InvalidArgumentError("layers are compared between two models: give student= as well.")
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.layer_weight = layer_weight
        self._loss = loss
        self._logits = logits
        self._seen: dict[tuple[str, str], Tensor] = {}
        models = {"teacher": teacher, "student": student} if student is not None and layers else {}
        found = {
            (who, layer): _module(who, model, layer) for who, model in models.items() for layer in dict.fromkeys(layers)
        }
        self._layers = list(dict.fromkeys(layers))
        self._handles = [m.register_forward_hook(partial(self._see, key)) for key, m in found.items()]

    def __call__(self, student_output: Any, inputs: Any, targets: Any = None) -> Tensor:
        """The loss, a scalar.

        Args:
            student_output: What the student returned for ``inputs``.
            inputs: The batch for the teacher: a tensor, a tuple of positional or a dict of keyword arguments.
            targets: For ``loss``; None is allowed when ``weight`` is 1.
        """
        if targets is None and self.weight < 1:
            raise InvalidArgumentError(
                f"weight={self.weight:g} leaves a share to the targets, and none were given: pass them, or weight=1."
            )
        student_logits = self._logits(student_output)
        with torch.no_grad(), evaluating(self.teacher):
            teacher_output = forward(self.teacher, (inputs,))
        value = self.weight * kd(student_logits, self._logits(teacher_output), self.temperature)
        if self.weight < 1:
            own = (
                F.cross_entropy(student_logits, targets) if self._loss is None else self._loss(student_output, targets)
            )
            value = value + (1 - self.weight) * own
        return value + self.layer_weight * self._layer_loss() if self._handles else value

    def close(self) -> None:
        """Take the hooks off both models."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def __enter__(self) -> Distillation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _see(self, key: tuple[str, str], module: nn.Module, args: Any, output: Any) -> None:
        self._seen[key] = first_output(output)

    def _layer_loss(self) -> Tensor:
        seen, self._seen = self._seen, {}
        silent = [
            f"{layer} of the {who}"
            for who in ("student", "teacher")
            for layer in self._layers
            if (who, layer) not in seen
        ]
        if silent:
            raise InvalidArgumentError(f"{silent[0]} did not run: call the student once before each loss.")
        pairs = [(seen["student", layer], seen["teacher", layer]) for layer in self._layers]
        return torch.stack([attention_transfer(student, teacher) for student, teacher in pairs]).sum()


def _module(who: str, model: nn.Module, layer: str) -> nn.Module:
    try:
        return unwrap(model).get_submodule(layer)
    except AttributeError as error:
        raise InvalidArgumentError(f"the {who} ({type(model).__name__}) has no module {layer!r}.") from error


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InvalidArgumentError(f"temperature={temperature!r}: must be above 0.")
