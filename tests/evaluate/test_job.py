"""Candidates cannot harm the model they are cut from, and are scored under equal conditions."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelwise import trace
from channelwise.evaluate.candidate import pack
from channelwise.evaluate.job import CandidateJob
from tests.methods.small import INPUTS, closeness, net

GRAPH = trace(net(), INPUTS)
HALF = pack(GRAPH.select(sparsity={"first": 0.5}), GRAPH.structure)
CPU = torch.device("cpu")


def job(eval_fn: Callable[..., Any], *args: Any, model: nn.Module | None = None) -> CandidateJob:
    model = net() if model is None else model
    made = CandidateJob(model, trace(model, INPUTS).structure, eval_fn, args)
    made.prepare(CPU)
    return made


def test_payload_decides_the_candidates_widths() -> None:
    assert job(lambda model: model.first.out_channels)(HALF) == 4
    assert job(lambda model: model.first.out_channels)({}) == 8


def test_arguments_follow_the_model() -> None:
    assert job(lambda model, a, b: a - b, 5, 2)({}) == 3


def test_candidates_are_in_eval_mode_and_the_model_stays_in_train_mode() -> None:
    model = net().train()
    assert job(lambda candidate: float(any(m.training for m in candidate.modules())), model=model)({}) == 0
    assert all(m.training for m in model.modules())


@torch.no_grad()
def in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(2)


@torch.no_grad()
def through_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(2)


def swapped_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


def to_half_and_back(model: nn.Module) -> None:
    model.half().float()


def running_statistics(model: nn.Module) -> None:
    model.train()(10 * INPUTS)
    model.eval()


@pytest.mark.parametrize("harm", [in_place, through_data, swapped_data, to_half_and_back, running_statistics])
def test_harm_done_by_eval_fn_reaches_neither_the_model_nor_later_candidates(harm: Callable[..., None]) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    expected = job(closeness)(HALF)

    def harmful(candidate: nn.Module) -> float:
        score = closeness(candidate)
        harm(candidate)
        return score

    harmful_job = job(harmful, model=model)
    assert [harmful_job(HALF) for _ in range(3)] == [expected] * 3
    assert all(torch.equal(before[k], v) and before[k].dtype == v.dtype for k, v in model.state_dict().items())


@pytest.mark.parametrize("harm", [in_place, swapped_data, to_half_and_back])
def test_harm_that_begins_late_is_noticed_too(harm: Callable[..., None]) -> None:
    calls: list[float] = []

    def harmful(candidate: nn.Module) -> float:
        calls.append(closeness(candidate))
        if len(calls) == 2:
            harm(candidate)
        return calls[-1]

    harmful_job = job(harmful)
    for _ in range(3):
        harmful_job(HALF)
    assert calls[2] == calls[0]


def test_harm_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    made = job(lambda model: in_place(model) or 1.0)
    for _ in range(3):
        made({})
    assert caplog.text.count("eval_fn changes the weights") == 1


def test_harmless_evaluations_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    made = job(closeness)
    made({})
    made(HALF)
    assert "changes the weights" not in caplog.text


def test_gradients_do_not_pile_up() -> None:
    def backward(model: nn.Module) -> float:
        assert all(p.grad is None for p in model.parameters())
        model(INPUTS).sum().backward()
        return 1.0

    made = job(backward)
    assert [made({}), made(HALF)] == [1.0, 1.0]


def draw(_: nn.Module) -> float:
    return random.random() + float(np.random.rand()) + float(torch.rand(()))


def test_all_candidates_see_the_same_random_numbers() -> None:
    made = job(draw)
    assert made({}) == made(HALF)


def test_the_callers_random_state_is_untouched() -> None:
    made = job(draw)
    random.seed(123)
    np.random.seed(123)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    made({})
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_job_travels_to_another_process() -> None:
    model = net()
    model(INPUTS).sum().backward()
    model.cached = model.first.weight * 2  # a tensor that is no leaf, as caches of activations are
    made = job(closeness, model=model)
    expected = made(HALF)
    copied = pickle.loads(pickle.dumps(made))
    copied.prepare(CPU)
    assert copied(HALF) == expected
