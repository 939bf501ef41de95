"""Distillation losses have the values and gradients of their definitions and leave the teacher alone."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from channelwise.errors import InvalidArgumentError
from channelwise.recovery.distillation import Distillation, attention_transfer, first_output, kd

X, LABELS = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 0])


def network(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16 * width, 3)
    )


def test_kd_is_the_divergence_of_the_softened_probabilities() -> None:
    s, t = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    torch.testing.assert_close(kd(s, t, 2.0), 4 * (p * (p.log() - q.log())).sum(1).mean())
    assert kd(t, t).abs() < 1e-6


def test_kd_of_maps_is_the_mean_over_positions() -> None:
    s, t = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4)
    flat = [x.movedim(1, -1).reshape(-1, 7) for x in (s, t)]
    torch.testing.assert_close(kd(s, t), kd(*flat))


def test_the_gradient_reaches_the_student_only() -> None:
    s, t = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    kd(s, t).backward()
    assert s.grad is not None
    assert t.grad is None
    with torch.no_grad():
        assert kd(s - s.grad, t) < kd(s, t)


def test_half_precision_logits_are_compared_in_single() -> None:
    s, t = torch.randn(5, 7).half(), torch.randn(5, 7).half()
    assert torch.equal(kd(s, t), kd(s.float(), t.float()))


def test_logits_of_other_shapes_are_refused_with_both() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(5, 7\).*\(5, 6\)"):
        kd(torch.randn(5, 7), torch.randn(5, 6))


def test_attention_transfer_compares_places_whatever_the_width() -> None:
    x = torch.rand(2, 4, 3, 3)
    assert attention_transfer(x, torch.cat([x, x], 1)) < 1e-12
    assert attention_transfer(x, x.flip(3)) > 1e-4
    with pytest.raises(InvalidArgumentError, match=r"\(2, 4, 3, 3\).*\(2, 4, 5, 5\)"):
        attention_transfer(x, torch.rand(2, 4, 5, 5))


def test_the_loss_mixes_teacher_and_targets_by_weight() -> None:
    teacher, student = network().train(), network(4)
    reference = copy.deepcopy(teacher).eval()
    output = student(X)
    with torch.no_grad():
        expected = 0.7 * kd(output, reference(X), 3.0) + 0.3 * F.cross_entropy(output, LABELS)
    torch.testing.assert_close(Distillation(teacher, 3.0, 0.7)(output, X, LABELS), expected, check_stride=False)


def test_the_teacher_is_not_changed() -> None:
    teacher, student = network().train(), network(4)
    state = copy.deepcopy(teacher.state_dict())
    Distillation(teacher)(student(X), X, LABELS).backward()
    assert all(m.training for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


def test_targets_are_needed_unless_the_teacher_says_all() -> None:
    teacher, student = network(), network(4)
    assert Distillation(teacher, weight=1.0)(student(X), X).isfinite()
    with pytest.raises(InvalidArgumentError, match="weight=1"):
        Distillation(teacher)(student(X), X)


def test_a_loss_of_the_user_gets_all_that_the_student_returned() -> None:
    seen: list[Any] = []

    def loss(output: Any, targets: Any) -> Tensor:
        seen.append((output, targets))
        return F.cross_entropy(output["out"], targets) + F.cross_entropy(output["aux"], targets)

    output = {"aux": torch.randn(4, 3), "out": torch.randn(4, 3)}
    teacher = network()
    value = Distillation(teacher, weight=0.0, loss=loss)(output, X, LABELS)
    torch.testing.assert_close(value, loss(output, LABELS))
    assert seen[0][0] is output


def test_the_main_output_is_found_in_the_usual_containers() -> None:
    main, other = torch.zeros(1), torch.ones(1)
    Outputs = namedtuple("Outputs", ["logits", "aux_logits"])
    for output in (
        main,
        (main, other),
        Outputs(main, other),
        {"aux": other, "out": main},
        {"loss": other, "logits": main},
    ):
        assert first_output(output) is main
    with pytest.raises(InvalidArgumentError, match="str"):
        first_output("text")


def test_named_layers_are_matched_and_close_removes_the_hooks() -> None:
    teacher, student = network(), network(4)
    maps: dict[str, Tensor] = {}
    with Distillation(teacher, student=student, layers=["0"], layer_weight=2.0) as objective:
        output = student(X)
        value = objective(output, X, LABELS)
        maps = {"s": student[0](X), "t": teacher[0](X)}
    plain = Distillation(teacher)(output, X, LABELS)
    torch.testing.assert_close(value - plain, 2 * attention_transfer(maps["s"], maps["t"]), rtol=1e-3, atol=1e-6)
    assert not any(m._forward_hooks for model in (teacher, student) for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"weight": 1.5}, "weight=1.5"),
        ({"layers": "0"}, r"\['0'\]"),
        ({"layers": ["0"]}, "student="),
        ({"layers": ["conv9"], "student": network(4)}, "'conv9'"),
    ],
    ids=["temperature", "weight", "layers as text", "no student", "no such layer"],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Distillation(network(), **arguments)


def test_a_student_that_did_not_run_is_told() -> None:
    teacher, student = network(), network(4)
    output = student(X)
    objective = Distillation(teacher, student=student, layers=["0"])
    with pytest.raises(InvalidArgumentError, match="0 of the student did not run"):
        objective(output, X, LABELS)
