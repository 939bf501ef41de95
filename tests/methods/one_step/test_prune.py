"""The pruned model is the candidate that was asked for, repaired as it was when it was scored, or better."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.methods import OneStepPruningRunner
from tests.methods.searched import IMAGES, INPUTS, LOADER, nearness, wide, widths

Runner = Callable[..., OneStepPruningRunner]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    def make(model: nn.Module | None = None, **options: Any) -> OneStepPruningRunner:
        return OneStepPruningRunner(model or wide(), INPUTS, folder=tmp_path / ".vai", **{"quiet": True, **options})

    return make


def search(runner: OneStepPruningRunner, candidates: int = 6, eval_fn: Any = nearness, **options: Any) -> None:
    runner.search(eval_fn=eval_fn, num_subnet=candidates, **{"loader": LOADER, **options})


def test_best_candidate_is_returned(runner: Runner) -> None:
    one = runner()
    search(one)
    best = one.results().best
    slim = one.prune()
    assert widths(slim) == [best.counts[f"body.{3 * i}"] for i in range(6)]
    assert best.score == max(trial.score for trial in one.results().complete)  # type: ignore[type-var]


def test_index_picks_another_candidate(runner: Runner) -> None:
    one = runner()
    search(one)
    for index in (0, 4):
        counts = one.results().candidate(index).counts
        assert widths(one.prune(index=index)) == [counts[f"body.{3 * i}"] for i in range(6)]


def test_model_after_re_estimation_has_the_score_of_its_candidate(runner: Runner) -> None:
    one = runner()
    search(one, compensate=False)
    assert nearness(one.prune()) == pytest.approx(one.results().best.score, rel=1e-4)


def test_model_re_fitted_layer_by_layer_is_better_than_re_estimated_alone(runner: Runner) -> None:
    one = runner()
    search(one)
    assert nearness(one.prune()) > nearness(one.prune(compensate=False))


def test_calibration_function_is_applied_to_the_model(runner: Runner) -> None:
    def calibrate(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(7.0)  # type: ignore[union-attr]

    one = runner()
    search(one, loader=None, calibration_fn=calibrate)
    for slim in (one.prune(), runner().prune(calibration_fn=calibrate)):
        assert (slim.get_submodule("body.1").running_mean == 7).all()  # type: ignore[union-attr]


def test_sparse_model_computes_what_the_slim_one_does(runner: Runner) -> None:
    one = runner()
    search(one)
    slim, sparse = one.prune(), one.prune(mode="sparse")
    assert widths(sparse) == widths(wide())
    torch.testing.assert_close(sparse(IMAGES), slim(IMAGES))
    loaded = cw.load(wide(), sparse.slim_state_dict())
    torch.testing.assert_close(loaded(IMAGES), slim(IMAGES))


def test_flags_and_random_state_stay_as_they_were(runner: Runner) -> None:
    one = runner(wide().train())
    search(one)
    state = torch.random.get_rng_state()
    slim = one.prune()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in slim.modules())
    assert all(p.requires_grad and p.grad is None for p in slim.parameters())


def test_another_process_needs_the_images_again_and_says_so(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    one = runner()
    search(one)
    bare = runner().prune()
    assert "without re-fitted weights and re-estimated batch norms" in caplog.text
    assert "prune(..., loader=...)" in caplog.text
    again = runner().prune(loader=LOADER)
    torch.testing.assert_close(again(IMAGES), one.prune(loader=LOADER)(IMAGES))
    assert nearness(again) > nearness(bare)


def test_channels_of_the_candidate_stay_when_the_ranking_is_another_later(runner: Runner) -> None:
    one = runner(ranking="l1")
    search(one, compensate=False)
    expected = one.prune(compensate=False)
    found = runner(ranking="fpgm").prune(loader=LOADER)
    torch.testing.assert_close(found(IMAGES), expected(IMAGES))


def test_ratio_picks_the_search(runner: Runner) -> None:
    one = runner()
    search(one, 2, removal_ratio=0.3)
    search(one, 2, removal_ratio=0.6)
    graph = cw.trace(wide(), INPUTS)
    for ratio in (0.3, 0.6):
        slim = one.prune(removal_ratio=ratio)
        assert cw.trace(slim, INPUTS).macs() == pytest.approx((1 - ratio) * graph.macs(), rel=0.01)
    latest = one.prune()
    assert widths(latest) == widths(one.prune(removal_ratio=0.6))


def test_other_divisor_gives_the_nearest_candidate_that_has_it(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    one = runner()
    search(one)
    before = widths(one.prune())
    slim = one.prune(channel_divisible=4)
    assert all(n % 4 == 0 for n in widths(slim))
    assert max(abs(a - b) for a, b in zip(widths(slim), before, strict=True)) <= 6
    assert "whose score is not known" in caplog.text
    share = cw.trace(slim, INPUTS).macs() / cw.trace(wide(), INPUTS).macs()
    assert share == pytest.approx(0.5, rel=0.03)


def test_divisor_of_the_search_is_not_spoilt_by_the_default(runner: Runner) -> None:
    one = runner()
    search(one, channel_divisible=1, compensate=False)
    best = one.results().best
    assert widths(one.prune()) == [best.counts[f"body.{3 * i}"] for i in range(6)]


def test_search_of_other_weights_is_used_with_a_warning(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    search(runner())
    other = wide()
    with torch.no_grad():
        other.head.weight.mul_(2)
    runner(other).prune(loader=LOADER)
    assert "scores are those of other weights" in caplog.text
    caplog.clear()
    runner().prune(loader=LOADER)
    assert "other weights" not in caplog.text


def test_images_are_read_once_for_several_ratios(runner: Runner) -> None:
    class Once:
        read = 0

        def __iter__(self) -> Any:
            self.read += 1
            return iter(LOADER)

    loader, one = Once(), runner()
    for ratio in (0.3, 0.5):
        search(one, 2, loader=loader, removal_ratio=ratio)
        one.prune()
    assert loader.read == 1


def test_search_that_was_refused_is_not_what_the_model_is_repaired_with(runner: Runner) -> None:
    one = runner()
    search(one)
    expected = one.prune()(IMAGES)
    with pytest.raises(InvalidArgumentError, match="yields nothing"):
        search(one, 7, loader=[])
    torch.testing.assert_close(one.prune()(IMAGES), expected)


def test_model_is_repaired_with_what_the_latest_search_was_given(runner: Runner) -> None:
    one = runner()
    search(one, compensate=False)
    search(one, compensate=False, loader=LOADER[:1])
    torch.testing.assert_close(one.prune()(IMAGES), runner().prune(loader=LOADER[:1])(IMAGES))


def test_only_so_many_batches_are_read(runner: Runner) -> None:
    taken = []

    def loader() -> Any:
        for batch in LOADER:
            taken.append(len(batch))
            yield batch

    search(runner(), 2, loader=loader(), batches=2)
    assert taken == [32, 32]


def test_summary_and_info_file_tell_sizes_and_score(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(runner(), 3)
    runner(quiet=False).prune(index=1, pruning_info_path=tmp_path / "info.json", loader=LOADER)
    printed = capsys.readouterr().out
    assert "MACs" in printed
    assert "candidate 1" in printed
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["layers"]["body.0"]["sizes"]["out_channels"]["before"] == 16


def test_index_without_a_score_is_refused_with_those_there_are(runner: Runner) -> None:
    one = runner()
    search(one, 3)
    with pytest.raises(InvalidArgumentError, match=r"index=7.*numbered from 0 to 2"):
        one.prune(index=7)
    for wrong in ("2", 2.0, True):
        with pytest.raises(InvalidArgumentError, match=rf"index={wrong!r}: must be a whole number"):
            one.prune(index=wrong)


def test_pruning_before_any_search_says_what_to_do(runner: Runner) -> None:
    with pytest.raises(ResultsFileError, match=r"Call search\(\) first"):
        runner().prune()


def test_ratio_never_searched_names_those_there_are(runner: Runner) -> None:
    one = runner()
    search(one, 2)
    with pytest.raises(ResultsFileError, match=r"for removal_ratio=0\.7, only for removal_ratio=0\.5"):
        one.prune(removal_ratio=0.7)


def test_compensation_asked_for_without_images_is_refused(runner: Runner) -> None:
    search(runner(), 2, compensate=False)
    with pytest.raises(InvalidArgumentError, match="give loader="):
        runner().prune(compensate=True)


def test_damaged_candidate_is_refused(runner: Runner, tmp_path: Path) -> None:
    search(runner(), 2)
    notes = json.dumps({"kept": {"body.0": "AAAAAAAA"}})
    with sqlite3.connect(tmp_path / ".vai" / "Wide.search") as file:
        changed = file.execute(
            "UPDATE trial_user_attributes SET value_json = json_set(value_json, '$.notes', json(?)) "
            "WHERE key = 'candidate'",
            (notes,),
        )
        assert changed.rowcount == 2
    with pytest.raises(ResultsFileError, match=r"Wide\.search is damaged: what is stored of candidate 0"):
        runner().prune()


def test_best_repair_is_kept_by_the_score_of_the_search(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = runner()
    search(one, 3)
    best = one.results().best.score
    assert nearness(one.prune()) >= best
    assert "Repairs and what they are worth: batch norms" in caplog.text
    # With nothing of the search, outputs on images held out say it.
    assert nearness(one.prune(loader=LOADER)) > best - 0.1


def test_outputs_that_cannot_be_compared_are_no_reason_not_to_prune(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Found(nn.Module):
        """Returns as many as are above zero."""

        def __init__(self) -> None:
            super().__init__()
            self.net = wide()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.net(x)
            return scores[scores > 0]

    one = OneStepPruningRunner(Found().eval(), INPUTS, folder=tmp_path, quiet=True)
    one.search(num_subnet=2, eval_fn=lambda model: -float(model(IMAGES).mean()), loader=LOADER)
    one.prune(loader=LOADER)
    assert "Repaired as the candidates of the search were" in caplog.text


def test_eval_fn_says_which_repair_is_kept(runner: Runner) -> None:
    one = runner()
    search(one, 2)
    liked = one.prune(eval_fn=nearness)
    disliked = one.prune(eval_fn=lambda model: -nearness(model))
    assert nearness(liked) > nearness(disliked)
