"""The analysis evaluates each candidate once, keeps everything it finished, and says what went wrong."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from channelwise.errors import (
    EvaluationError,
    InvalidArgumentError,
    NothingToPruneError,
    ResultsFileError,
)
from channelwise.methods import IterativePruningRunner
from tests.methods.small import INPUTS, Counted, DiesOnce, closeness, evaluations, net

Runner = Callable[..., IterativePruningRunner]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return lambda model=None: IterativePruningRunner(model or net(), INPUTS, folder=tmp_path / ".vai", quiet=True)


@pytest.fixture
def sens(tmp_path: Path) -> Path:
    return tmp_path / ".vai" / "Net.sens"


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "calls")


def results(sens: Path) -> dict[tuple[str | None, int | None], float]:
    lines = map(json.loads, sens.read_text().splitlines())
    return {(r.get("group"), r.get("kept")): r["score"] for r in lines if r.get("kind") == "evaluation"}


def test_baseline_and_every_group_at_every_different_count_are_evaluated(
    runner: Runner, sens: Path, counted: Counted
) -> None:
    runner().ana(counted)
    assert len(results(sens)) == counted.calls() == evaluations()
    lines = counted.log.read_text().splitlines()
    assert lines[0] == "[8, 12, 2]"
    assert len(set(lines)) == len(lines)


def test_finished_analysis_is_not_repeated(runner: Runner, counted: Counted) -> None:
    runner().ana(counted)
    runner().ana(counted)
    assert counted.calls() == evaluations()


def test_forced_analysis_is_repeated(runner: Runner, counted: Counted, sens: Path) -> None:
    runner().ana(counted)
    runner().ana(counted, forced=True)
    assert counted.calls() == 2 * evaluations()
    assert [p.name for p in sens.parent.iterdir()] == ["Net.sens"]


def test_model_is_not_changed(runner: Runner) -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    runner(model).ana(closeness)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "excludes", [["second"], "sec*", lambda model: [model.second], lambda model: (nn.Linear, model.second)]
)
def test_excluded_groups_are_neither_analysed_nor_pruned(runner: Runner, excludes: Any, sens: Path) -> None:
    model = net()
    made = runner(model)
    made.ana(closeness, excludes=excludes(model) if callable(excludes) else excludes)
    assert {group for group, _ in results(sens)} == {None, "first", "third"}
    assert made.prune(0.2, mode="slim").second.out_channels == 12


def test_fewer_excludes_later_evaluate_just_what_is_missing(runner: Runner, counted: Counted, sens: Path) -> None:
    runner().ana(counted, excludes=["second"])
    runner().ana(counted)
    assert counted.calls() == evaluations()
    assert "second" in {group for group, _ in results(sens)}
    runner().prune(0.5)


def test_more_excludes_later_evaluate_nothing_and_are_heeded(runner: Runner, counted: Counted) -> None:
    runner().ana(lambda model: 1.0)
    assert runner().prune(0.5, mode="slim", channel_divisible=1).first.out_channels < 8
    made = runner()
    made.ana(counted, excludes=["first"])
    assert counted.calls() == 0
    assert made.prune(0.5, mode="slim", channel_divisible=1).first.out_channels == 8


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.second = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.depthwise(self.second(self.grouped(self.first(x)))))


@pytest.mark.parametrize("with_group_conv", [False, True])
def test_grouped_convolutions_are_left_alone_unless_asked_for(
    tmp_path: Path, with_group_conv: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = IterativePruningRunner(Grouped(), INPUTS, folder=tmp_path, quiet=True)
    with caplog.at_level(logging.INFO):
        made.ana(lambda model: 1.0, with_group_conv=with_group_conv)
    assert ("grouped convolutions (with_group_conv=True" in caplog.text) is not with_group_conv
    slim = made.prune(0.5 if with_group_conv else 0.2, mode="slim")
    assert (slim.grouped.in_channels < 8) is with_group_conv
    assert slim.second.out_channels < 8


def test_interrupted_analysis_keeps_what_it_finished(
    runner: Runner, counted: Counted, sens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(model: nn.Module) -> float:
        score = counted(model)
        if counted.calls() == 5:
            raise KeyboardInterrupt
        return score

    with pytest.raises(KeyboardInterrupt):
        runner().ana(interrupted)
    assert f"Interrupted. 4 of {evaluations()} evaluations" in caplog.text
    assert len(results(sens)) == 4
    runner().ana(counted)
    assert counted.calls() == evaluations() + 1
    assert not sens.with_name("Net.sens.lock").exists()


def test_deleted_folder_is_told(runner: Runner, sens: Path, counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    def deleting(model: nn.Module) -> float:
        if counted.calls() == 4:
            shutil.rmtree(sens.parent)
        return counted(model)

    with pytest.raises(ResultsFileError, match="Cannot write"):
        runner().ana(deleting)
    assert f"{sens} was deleted while the analysis was running" in caplog.text
    assert "are kept" not in caplog.text


@pytest.mark.parametrize("forced", [False, True])
def test_a_folder_in_its_place_is_told_before_anything_is_evaluated(
    runner: Runner, counted: Counted, sens: Path, forced: bool
) -> None:
    sens.mkdir(parents=True)
    with pytest.raises(ResultsFileError, match=r"Net\.sens is a folder.* move it away"):
        runner().ana(counted, forced=forced)
    assert counted.calls() == 0


def test_error_in_eval_fn_names_the_group_and_keeps_what_was_finished(runner: Runner, sens: Path) -> None:
    def fails(model: nn.Module) -> float:
        if model.first.out_channels == 5:
            raise ZeroDivisionError("no samples")
        return closeness(model)

    message = r"group 'first' at sparsity 0.4 \(5 of 8 channels kept\): eval_fn raised ZeroDivisionError: no samples"
    with pytest.raises(EvaluationError, match=message) as caught:
        runner().ana(fails)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(results(sens)) == 3


def test_bad_score_writes_nothing(runner: Runner, sens: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EvaluationError, match="the baseline: eval_fn returned None"):
        runner().ana(lambda model: None)
    assert list(sens.parent.iterdir()) == []
    assert caplog.messages == ["No evaluation of this run was finished."]


@pytest.mark.parametrize("constant", [True, False])
def test_scores_that_are_all_equal_are_mentioned(
    runner: Runner, caplog: pytest.LogCaptureFixture, constant: bool
) -> None:
    model = net()
    runner(model).ana(lambda candidate: closeness(model if constant else candidate))
    assert ("eval_fn returned 1 for the full model and for every pruned one" in caplog.text) is constant


def test_analysis_killed_again_and_again_repeats_only_what_was_in_flight(tmp_path: Path, sens: Path) -> None:
    log = tmp_path / "calls"
    for die_at in (4, 11, 0):
        process = subprocess.run(
            [sys.executable, "-m", "tests.methods.small", str(sens.parent), str(log), str(die_at)],
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == (-9 if die_at else 0), process.stderr
    assert len(results(sens)) == evaluations()
    calls = log.read_text().splitlines()
    assert len(set(calls)) == evaluations()
    assert len(calls) == evaluations() + 2


def environment() -> dict[str, str]:
    root = Path(__file__).parents[3]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}


def test_line_cut_short_is_evaluated_again(runner: Runner, counted: Counted, sens: Path) -> None:
    runner().ana(counted)
    whole = results(sens)
    sens.write_bytes(sens.read_bytes()[:-20])
    runner().ana(counted)
    assert counted.calls() == evaluations() + 1
    assert results(sens) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_do_not_depend_on_where_they_are_computed(runner: Runner, sens: Path, workers: int) -> None:
    runner().ana(closeness)
    expected = results(sens)
    runner().ana(closeness, forced=True, workers=workers)
    assert results(sens) == expected


def test_lambda_runs_in_worker_processes(runner: Runner, sens: Path) -> None:
    here = os.getpid()
    runner().ana(lambda model: float(os.getpid() != here), workers=2)
    assert set(results(sens).values()) == {1.0}


def test_killed_worker_is_replaced_and_its_evaluation_repeated(
    runner: Runner, sens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eval_fn = DiesOnce(tmp_path / "mark")
    runner().ana(eval_fn, workers=2)
    assert "SIGKILL" in caplog.text
    assert len(results(sens)) == evaluations()


def test_file_of_another_network_of_the_same_class_name_is_refused_and_kept(
    runner: Runner, sens: Path, counted: Counted
) -> None:
    runner().ana(closeness)
    before = sens.read_bytes()
    for call in (lambda r: r.ana(counted), lambda r: r.prune(0.5)):
        with pytest.raises(ResultsFileError, match="another network"):
            call(runner(net(6)))
    assert counted.calls() == 0
    assert sens.read_bytes() == before


def test_other_weights_on_resuming_are_mentioned(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    runner().ana(closeness, excludes=["second"])
    model = net()
    with torch.no_grad():
        model.first.weight.mul_(2)
    runner(model).ana(closeness)
    assert "other weights" in caplog.text


def test_forced_analysis_that_fails_at_once_keeps_the_old_one(runner: Runner, sens: Path) -> None:
    runner().ana(closeness)
    before = sens.read_bytes()
    with pytest.raises(EvaluationError):
        runner().ana(lambda model: float("nan"), forced=True)
    assert sens.read_bytes() == before


def test_full_disk_is_an_error_and_leaves_no_lock(runner: Runner, sens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = runner()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsFileError, match="No space left"):
        made.ana(closeness)
    assert list(sens.parent.iterdir()) == []


def test_finished_analysis_in_a_read_only_folder_is_read(
    runner: Runner, counted: Counted, sens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner().ana(counted)
    whole = sens.read_bytes()

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("channelwise.io.lock.hold", read_only)
    runner().ana(counted)
    assert counted.calls() == evaluations()
    with pytest.raises(ResultsFileError, match="Read-only file system"):
        runner().ana(counted, forced=True)
    assert sens.read_bytes() == whole


def test_folder_that_cannot_be_made_is_an_error_before_anything_is_evaluated(tmp_path: Path, counted: Counted) -> None:
    (tmp_path / "file").write_text("")
    made = IterativePruningRunner(net(), INPUTS, folder=tmp_path / "file" / ".vai")
    with pytest.raises(ResultsFileError, match="Cannot write"):
        made.ana(counted)
    assert counted.calls() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_fn": 0.5}, "eval_fn must be a function"),
        ({"args": INPUTS}, r"args must be a tuple .* args=\(loader,\)"),
        ({"gpus": ["first"]}, "gpus="),
        ({"workers": 0}, "workers=0"),
        ({"excludes": ["nothing like it"]}, "matches no group"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    runner: Runner, sens: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        runner().ana(**{"eval_fn": closeness, **arguments})
    assert not sens.parent.exists()


def test_everything_excluded_leaves_nothing_to_analyse(runner: Runner) -> None:
    with pytest.raises(NothingToPruneError, match="all 3 are excluded"):
        runner().ana(closeness, excludes=["*"])


def test_network_without_channel_groups_leaves_nothing_to_analyse(tmp_path: Path) -> None:
    made = IterativePruningRunner(nn.Conv2d(3, 4, 1), INPUTS, folder=tmp_path)
    with pytest.raises(NothingToPruneError, match="frozen"):
        made.ana(closeness)
    with pytest.raises(NothingToPruneError, match="frozen"):
        made.prune(0.5)
