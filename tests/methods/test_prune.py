"""`cw.prune`: a slim model within the budget, repaired, from one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import EvaluationError, InvalidArgumentError, NothingToPruneError
from channelwise.testing import check_oracle
from tests.methods.searched import IMAGES, INPUTS, LOADER, nearness, wide


def test_one_call_gives_a_repaired_model_within_the_budget() -> None:
    model = wide()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = cw.prune(model, INPUTS, macs=0.5, loader=LOADER)
    assert pruned.summary.macs_after == pytest.approx(0.5 * pruned.summary.macs_before, rel=0.02)
    assert cw.trace(pruned.model, INPUTS).macs() == pruned.summary.macs_after
    plain = pruned.graph.slim(pruned.graph.select(macs=0.5))
    assert nearness(pruned.model) > nearness(cw.recovery.recalibrate(plain, LOADER).eval())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        n % 2 == 0 for name, n in pruned.selection.counts().items() if n < pruned.graph.structure.group(name).size
    )
    check_oracle(wide(), INPUTS, select=lambda graph: pruned.selection)


def test_parameters_layers_left_alone_and_a_score_of_the_user() -> None:
    seen: list[nn.Module] = []

    def score(model: nn.Module, factor: float) -> float:
        seen.append(model)
        return factor * nearness(model)

    pruned = cw.prune(
        wide(), INPUTS, params=0.5, loader=iter(LOADER), batches=2, excludes=["body.0"], channel_divisible=4,
        eval_fn=score, eval_args=(2.0,),
    )  # fmt: skip
    assert pruned.summary.params_after == pytest.approx(0.5 * pruned.summary.params_before, rel=0.05)
    assert pruned.model.body[0].out_channels == 16
    assert len(seen) > 2


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="prune needs loader="):
        cw.prune(wide(), INPUTS, macs=0.5)
    with pytest.raises(InvalidArgumentError, match="Give a target"):
        cw.prune(wide(), INPUTS, loader=LOADER)
    with pytest.raises(InvalidArgumentError, match="loader is a tensor"):
        cw.prune(wide(), INPUTS, macs=0.5, loader=IMAGES)
    with pytest.raises(NothingToPruneError):
        cw.prune(wide(), INPUTS, macs=0.5, loader=LOADER, excludes=[nn.Conv2d])
    with pytest.raises(EvaluationError, match="eval_fn returned None"):
        cw.prune(wide(), INPUTS, macs=0.5, loader=LOADER, eval_fn=lambda model: None)
    with pytest.raises(InvalidArgumentError, match="eval_fn"):
        cw.prune(wide(), INPUTS, macs=0.5, loader=LOADER, eval_fn=0.5)
