"""A search keeps to its target, evaluates nothing twice, keeps what it finished, and is the same on every executor."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.storages import RDBStorage
from torch import nn

from channelwise.errors import EvaluationError
from channelwise.execution import devices
from channelwise.io.process import Process
from channelwise.methods import IterativePruningRunner, OneStepPruningRunner
from channelwise.methods.search_loop import FAILURES
from channelwise.search import Trial, get, signs, study
from tests.methods.searched import IMAGES, INPUTS, LOADER, Logged, nearness, score_of, wide, widths

Runner = Callable[..., OneStepPruningRunner]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    def make(model: nn.Module | None = None, **options: Any) -> OneStepPruningRunner:
        return OneStepPruningRunner(model or wide(), INPUTS, folder=tmp_path / ".vai", quiet=True, **options)

    return make


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "calls")


def searched(runner: OneStepPruningRunner, eval_fn: Any, candidates: int = 6, **options: Any) -> list[Trial]:
    runner.search(eval_fn=eval_fn, num_subnet=candidates, **{"loader": LOADER, "compensate": False, **options})
    ratios = {"removal_ratio": options.get("removal_ratio", 0.5), "params_ratio": options.get("params_ratio")}
    return runner.results(**ratios).complete


def outcome(trials: list[Trial]) -> list[tuple[dict[str, int], float | None]]:
    return [(dict(trial.counts), trial.score) for trial in trials]


def test_every_candidate_meets_the_target_and_is_another(runner: Runner, logged: Logged) -> None:
    trials = searched(runner(), logged, 20, removal_ratio=0.4)
    assert [trial.number for trial in trials] == list(range(20))
    assert all(trial.shares["macs"] == pytest.approx(0.6, rel=0.01) for trial in trials)
    assert all(n % 2 == 0 for trial in trials for n in trial.counts.values())
    assert len(set(logged.calls())) == len(logged.calls()) == 20


def test_score_on_file_is_that_of_the_candidates_own_widths(runner: Runner, logged: Logged) -> None:
    for trial, line in zip(searched(runner(), logged), logged.calls(), strict=True):
        assert [trial.counts[f"body.{3 * i}"] for i in range(6)] == eval(line)
        assert trial.score == score_of(eval(line))


def test_two_targets_are_met_at_once(runner: Runner, logged: Logged) -> None:
    for trial in searched(runner(), logged, params_ratio=0.45, channel_divisible=1):
        assert trial.shares == {"macs": pytest.approx(0.5, rel=0.01), "params": pytest.approx(0.55, rel=0.01)}


def test_parameters_alone_can_be_the_target(runner: Runner, logged: Logged) -> None:
    for trial in searched(runner(), logged, params_ratio=0.3, removal_ratio=None):
        assert trial.shares == {"params": pytest.approx(0.7, rel=0.01)}


def test_finished_search_is_not_repeated_and_more_candidates_add_to_it(runner: Runner, logged: Logged) -> None:
    first = searched(runner(), logged, 5)
    assert outcome(searched(runner(), logged, 5)) == outcome(first)
    assert len(logged.calls()) == 5
    more = searched(runner(), logged, 8)
    assert outcome(more)[:5] == outcome(first)
    assert len(logged.calls()) == 8


def test_forced_search_begins_anew_and_keeps_the_old_file(runner: Runner, logged: Logged, tmp_path: Path) -> None:
    searched(runner(), logged, 3)
    searched(runner(), logged, 2, forced=True)
    assert len(logged.calls()) == 5
    assert len(runner().results().complete) == 2
    assert (tmp_path / ".vai" / "Wide.search.bak").exists()


def test_searches_for_several_ratios_lie_side_by_side(runner: Runner, logged: Logged) -> None:
    searched(runner(), logged, 3, removal_ratio=0.3)
    searched(runner(), logged, 4, removal_ratio=0.6)
    assert len(runner().results(removal_ratio=0.3).complete) == 3
    assert len(runner().results(removal_ratio=0.6).complete) == 4
    assert len(runner().results().complete) == 4


def test_same_seed_gives_the_same_candidates_and_another_seed_others(runner: Runner, logged: Logged) -> None:
    first = outcome(searched(runner(storage=logged.log.with_name("1")), logged, 8, seed=1))
    assert outcome(searched(runner(storage=logged.log.with_name("2")), logged, 8, seed=1)) == first
    assert outcome(searched(runner(storage=logged.log.with_name("3")), logged, 8, seed=2)) != first


@pytest.mark.parametrize("compensate", [False, True])
def test_scores_are_the_same_in_worker_processes(runner: Runner, logged: Logged, compensate: bool) -> None:
    options = {"strategy": "random", "compensate": compensate}
    here = searched(runner(), nearness, 4, **options)
    there = searched(runner(storage=logged.log.with_name("other")), nearness, 4, workers=2, **options)
    # Of random candidates the next does not depend on when the last one ends.
    assert outcome(there) == outcome(here)


@pytest.mark.parametrize("strategy", ["random", "cmaes", "tpe", get("evolution")])
def test_every_strategy_searches(runner: Runner, logged: Logged, strategy: Any) -> None:
    assert len(searched(runner(), logged, 5, strategy=strategy)) == 5


def test_model_is_not_changed(runner: Runner) -> None:
    model = wide().train()
    before = copy.deepcopy(model.state_dict())
    searched(runner(model), nearness, compensate=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_calibration_function_is_what_candidates_are_scored_after(runner: Runner) -> None:
    def calibrate(model: nn.Module, value: float) -> None:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(value)  # type: ignore[union-attr]

    def look(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        return float(model.get_submodule("body.1").running_mean.mean())  # type: ignore[union-attr,arg-type]

    trials = searched(runner(), look, 2, calibration_fn=calibrate, calib_args=(7.0,), loader=None)
    assert [trial.score for trial in trials] == [7.0, 7.0]


def test_loader_re_estimates_batch_norms(runner: Runner) -> None:
    @torch.no_grad()
    def off(model: nn.Module) -> float:
        """How far the statistics of the first batch norm are from those of the images."""
        x = model.get_submodule("body.0")(IMAGES)
        return float((model.get_submodule("body.1").running_var - x.var((0, 2, 3))).abs().max())  # type: ignore

    assert all(trial.score == pytest.approx(0, abs=1e-4) for trial in searched(runner(), off, 3))


def test_re_fitted_candidates_are_better_than_those_re_estimated_alone(runner: Runner, tmp_path: Path) -> None:
    plain = searched(runner(storage=tmp_path / "1"), nearness, 6, ranking="l1")
    refit = searched(runner(storage=tmp_path / "2"), nearness, 6, ranking="l1", compensate=True)
    assert max(t.score for t in refit) > max(t.score for t in plain)  # type: ignore[type-var]


def test_a_loss_is_minimized(runner: Runner) -> None:
    one = runner()
    searched(one, lambda model: -score_of(widths(model)), 8, direction="minimize")
    results = one.results()
    assert results.best.score == min(trial.score for trial in results.complete)  # type: ignore[type-var]


def test_excluded_groups_stay_full(runner: Runner, logged: Logged) -> None:
    for trial in searched(runner(), logged, excludes=["body.0", "body.9"]):
        assert (trial.counts["body.0"], trial.counts["body.9"]) == (16, 28)


def test_sensitivity_analysis_gives_a_first_candidate(runner: Runner, logged: Logged, tmp_path: Path) -> None:
    without = outcome(searched(runner(storage=tmp_path / "1"), logged, 4))
    IterativePruningRunner(wide(), INPUTS, folder=tmp_path / ".vai", quiet=True).ana(nearness)
    with_it = outcome(searched(runner(storage=tmp_path / "2"), logged, 4))
    # Fisher information, then the analysis, then what came second before.
    assert with_it[0] == without[0]
    assert with_it[1] not in without[:3]
    assert with_it[2:4] == without[1:3]


def test_failed_candidate_is_left_out_and_not_repeated(
    runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_third(model: nn.Module) -> float:
        score = logged(model)
        if len(logged.calls()) == 3:
            raise ZeroDivisionError("unlucky")
        return score

    trials = searched(runner(), fails_third, 6)
    assert [trial.number for trial in trials] == [0, 1, 3, 4, 5]
    failed = runner().results().failed
    assert [trial.number for trial in failed] == [2]
    assert "candidate 2" in caplog.text
    assert "unlucky" in str(failed[0].error)
    searched(runner(), fails_third, 6)
    assert len(logged.calls()) == 6


def test_first_candidate_that_fails_ends_the_search_and_is_repeated_once_that_is_corrected(
    runner: Runner, logged: Logged
) -> None:
    def wrong(model: nn.Module) -> float:
        logged(model)
        return None  # type: ignore[return-value]

    with pytest.raises(EvaluationError, match=r"candidate 0: eval_fn returned None"):
        searched(runner(), wrong)
    assert len(logged.calls()) == 1
    assert [trial.number for trial in searched(runner(), logged)] == list(range(6))
    assert logged.calls()[0] == logged.calls()[1]


def test_many_failures_in_a_row_end_the_search_and_are_repeated(runner: Runner, logged: Logged) -> None:
    def breaks(model: nn.Module) -> float:
        if len(logged.calls()) >= 2:
            raise OSError("the disk is gone")
        return logged(model)

    with pytest.raises(EvaluationError, match=f"{FAILURES} candidates failed one after the other.*disk is gone"):
        searched(runner(), breaks, 40)
    trials = searched(runner(), logged, 20)
    assert [trial.number for trial in trials] == list(range(20))


def test_failing_calibration_function_is_named(runner: Runner, logged: Logged) -> None:
    with pytest.raises(EvaluationError, match=r"candidate 0: calibration_fn raised KeyError"):
        searched(runner(), logged, calibration_fn=lambda model: {}["images"])


def test_interrupted_search_says_what_is_kept_and_goes_on(
    runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(model: nn.Module) -> float:
        if len(logged.calls()) == 3:
            raise KeyboardInterrupt
        return logged(model)

    with pytest.raises(KeyboardInterrupt):
        searched(runner(), interrupted, 6)
    assert "Interrupted. 3 candidates of 6 are kept" in caplog.text
    together = outcome(searched(runner(), logged, 6))
    assert len(logged.calls()) == 6
    assert together == outcome(searched(runner(storage=logged.log.with_name("other")), logged, 6))


def test_harm_done_by_a_candidate_that_fails_does_not_reach_the_next(runner: Runner, tmp_path: Path) -> None:
    calls: list[None] = []

    @torch.no_grad()
    def harmful(model: nn.Module) -> float:
        calls.append(None)
        if len(calls) == 2:
            for parameter in model.parameters():
                parameter.mul_(3)
            raise RuntimeError("after the harm")
        return nearness(model)

    harmed = outcome(searched(runner(), harmful, 4, strategy="random"))
    clean = outcome(searched(runner(storage=tmp_path / "clean"), nearness, 4, strategy="random"))
    assert harmed == [clean[0], *clean[2:]]


def test_same_score_for_all_is_said_to_be_suspicious(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    searched(runner(), lambda model: 0.1)
    assert "Does it evaluate the model" in caplog.text


def test_stale_batch_norms_are_warned_of(runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    searched(runner(), logged, 2, loader=None)
    assert "Give calibration_fn, or calibration images with loader=" in caplog.text


def test_model_without_batch_norm_is_searched_and_told_of_once(
    runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = wide()
    for i in range(6):
        model.body[3 * i + 1] = nn.Identity()
    assert len(searched(runner(model), logged, 3)) == 3
    told = [r.message for r in caplog.records if "no batch norm" in r.message]
    assert len(told) == 1


def test_gpus_without_a_gpu_mean_the_cpu_and_that_is_said_once(
    runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    devices._say_once.cache_clear()
    searched(runner(), logged, 2, gpus=["0"])
    searched(runner(), logged, 3, gpus=["0"])
    assert len(logged.calls()) == 3
    assert sum("no CUDA device" in record.message for record in caplog.records) == 1


def test_what_a_vanished_machine_has_begun_is_evaluated_in_the_same_call(
    runner: Runner, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path}/all.db")

    def vanishes(model: nn.Module) -> float:
        raise SystemExit

    with monkeypatch.context() as patch:
        elsewhere = Process(pid=1, host="another-machine", started="another-boot/pid:[1]/1")
        patch.setattr(study, "this_process", lambda: elsewhere)
        patch.setattr(study.SearchStudy, "release", lambda self: self._signs.end())
        with pytest.raises(SystemExit):
            searched(runner(storage=storage), vanishes, 4, strategy="random")
    monkeypatch.setattr(signs, "SILENT_SECONDS", 1.0)
    trials = searched(runner(storage=storage), logged, 4, strategy="random")
    assert len(trials) == len(set(logged.calls())) == 4
