"""Of all repairs the one that is worth most is kept, whoever says what it is worth."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError
from channelwise.tensors import named_tensors
from tests.methods.searched import IMAGES, INPUTS, LOADER, wide

repair = cw.recovery.repair
MODEL = wide().eval()
GRAPH = cw.trace(MODEL, INPUTS)
SELECTION = GRAPH.select(macs=0.5)


def far(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model.eval()(IMAGES) - MODEL(IMAGES)).square().mean())


def worth(caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    (line,) = [r.args for r in caplog.records if r.msg.startswith("Repairs and what they are worth")]
    assert isinstance(line, tuple)
    pairs = [text.rsplit(" ", 1) for text in str(line[0]).replace("layer, paired", "layer; paired").split(", ")]
    return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_by_a_score_is_kept(sign: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    slim = GRAPH.slim(SELECTION)
    assert repair(slim, GRAPH, SELECTION, LOADER, score=lambda model: -sign * far(model)) is slim
    values = worth(caplog)
    assert values.keys() == {"batch norms", "closed form", "layer by layer", "layer by layer; paired"}
    assert -sign * far(slim) == pytest.approx(max(values.values()), rel=1e-3)
    assert len({round(value, 6) for value in values.values()}) > 2


def test_without_a_score_it_is_the_nearest_to_the_dense_model_on_batches_held_out() -> None:
    before = {name: tensor.clone() for name, tensor in named_tensors(MODEL).items()}
    slim = repair(GRAPH.slim(SELECTION), GRAPH, SELECTION, LOADER)
    plain = cw.recovery.recalibrate(GRAPH.slim(SELECTION), LOADER)
    assert far(slim) < 0.7 * far(plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(MODEL).items())
    assert [m.training for m in MODEL.modules()] == [False] * len(list(MODEL.modules()))


def test_the_best_is_made_anew_from_all_batches() -> None:
    """So it is what one repair makes of them."""
    slim = repair(GRAPH.slim(SELECTION), GRAPH, SELECTION, LOADER)
    ways = [
        cw.recovery.compensate(GRAPH.slim(SELECTION), GRAPH, SELECTION, LOADER, paired_statistics=paired)
        for paired in (False, True)
    ]
    assert any(torch.equal(slim.eval()(IMAGES), way.eval()(IMAGES)) for way in ways)


def test_a_function_of_the_user_sets_the_statistics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    called: list[nn.Module] = []
    repair(GRAPH.slim(SELECTION), GRAPH, SELECTION, LOADER, score=lambda model: 1.0, statistics=called.append)
    assert worth(caplog).keys() == {"batch norms", "closed form", "layer by layer"}
    assert len(called) == 3


def test_a_score_that_changes_its_model_changes_nothing_else() -> None:
    def score(model: nn.Module) -> float:
        value = -far(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return value

    assert far(repair(GRAPH.slim(SELECTION), GRAPH, SELECTION, LOADER, score=score)) < far(GRAPH.slim(SELECTION))


def test_outputs_that_cannot_be_compared_ask_for_a_score() -> None:
    class Found(nn.Module):
        """Returns as many as are above zero."""

        def __init__(self) -> None:
            super().__init__()
            self.net = wide()

        def forward(self, x: torch.Tensor) -> Any:
            scores = self.net(x)
            return scores[scores > 0]

    graph = cw.trace(Found().eval(), INPUTS)
    selection = graph.select(macs=0.5)
    with pytest.raises(InvalidArgumentError, match="give a function that scores a model"):
        repair(graph.slim(selection), graph, selection, LOADER)
    repair(graph.slim(selection), graph, selection, LOADER, score=lambda model: 1.0)


def test_a_single_batch_is_enough() -> None:
    slim = repair(GRAPH.slim(SELECTION), GRAPH, SELECTION, [IMAGES])
    assert far(slim) < far(GRAPH.slim(SELECTION))
