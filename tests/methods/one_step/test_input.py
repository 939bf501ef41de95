"""Whatever is wrong with what a search is given is told with the way out; nothing is lost, the model not touched."""

from __future__ import annotations

import copy
import logging
import sqlite3
from collections.abc import Callable, Iterator
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
    UnreachableTargetError,
)
from channelwise.execution import where
from channelwise.io.lock import locked
from channelwise.methods import IterativePruningRunner, OFAPruner, OneStepPruningRunner
from tests.methods.searched import INPUTS, LOADER, Logged, Wide, wide

Runner = Callable[..., OneStepPruningRunner]


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    model = wide()
    before = copy.deepcopy(model.state_dict())

    def make(other: nn.Module | None = None) -> OneStepPruningRunner:
        return OneStepPruningRunner(other or model, INPUTS, folder=tmp_path / ".vai", quiet=True)

    yield make
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path / "calls")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".vai" / "Wide.search"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_fn": None}, r"search needs eval_fn"),
        ({"eval_fn": 0.7}, r"eval_fn must be a function called as eval_fn\(model, \*args\), not 0\.7"),
        ({"calibration_fn": 3}, r"calibration_fn must be a function"),
        ({"eval_args": 3}, r"eval_args=\(loader,\)"),
        ({"calib_args": LOADER[0]}, r"calib_args must be a tuple"),
        ({"num_subnet": 0}, r"num_subnet must be an integer of at least 1, not 0"),
        ({"num_subnet": 2.5}, r"num_subnet must be an integer of at least 1, not 2\.5"),
        ({"removal_ratio": 1.0}, r"removal_ratio=1\.0: must be the fraction of MACs to remove, between 0 and 1"),
        ({"removal_ratio": 50}, r"For 50 % give 0\.5"),
        ({"removal_ratio": 10**400}, r"removal_ratio=10+: must be a number, the fraction of MACs to remove"),
        ({"removal_ratio": None}, r"Give removal_ratio .*params_ratio"),
        ({"params_ratio": "half"}, r"params_ratio='half': must be a number"),
        ({"channel_divisible": 0}, r"channel_divisible must be an integer of at least 1"),
        ({"strategy": "annealing"}, r"strategy must be one of cmaes, evolution, random, tpe"),
        ({"direction": "up"}, r"direction must be 'maximize' or 'minimize'"),
        ({"ranking": "l3"}, r"There is no ranking 'l3'"),
        ({"seed": -1}, r"seed must be an integer of at least 0"),
        ({"excludes": ["body.99"]}, r"excludes: 'body\.99' matches no group"),
        ({"gpus": ["first"]}, r"gpus=\['first'\]: must be device indices"),
        ({"workers": 0}, r"workers=0: must be a number of processes"),
        ({"executor": "slurm"}, r"executor='slurm': must be None, 'local', 'ray', or the address"),
        ({"compensate": True}, r"compensate=True needs calibration images: give loader="),
        ({"batches": 3}, r"batches=3 says how much of loader= to use"),
        ({"loader": LOADER[0]}, r"loader is a tensor"),
        ({"loader": []}, r"the loader yields nothing"),
        ({"loader": [], "compensate": False, "strategy": "random"}, r"the loader yields nothing"),
        ({"loader": [3]}, r"a batch of the loader has no tensor"),
    ],
)
def test_wrong_argument_is_told_before_anything_is_evaluated(
    runner: Runner, logged: Logged, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        runner().search(**{"eval_fn": logged, "num_subnet": 3, **arguments})
    assert not logged.calls()


def test_target_out_of_reach_comes_with_the_reachable_range(runner: Runner, logged: Logged, file: Path) -> None:
    with pytest.raises(UnreachableTargetError, match=r"removal_ratio=0\.999 cannot be reached.*remove 0\.0000 to 0\.9"):
        runner().search(eval_fn=logged, removal_ratio=0.999)
    assert not file.exists()


def test_everything_excluded_is_said(runner: Runner, logged: Logged) -> None:
    with pytest.raises(NothingToPruneError, match="all 6 are excluded"):
        runner().search(eval_fn=logged, excludes=["body"])


def test_meter_instead_of_its_value_is_said(runner: Runner) -> None:
    class Meter:
        avg = 0.7

    with pytest.raises(EvaluationError, match=r"candidate 0: .*return meter\.avg"):
        runner().search(eval_fn=lambda model: Meter(), num_subnet=2)


@pytest.mark.parametrize(("score", "message"), [(None, "returned None"), (float("nan"), "returned nan")])
def test_score_that_is_none_or_nan_ends_the_search(runner: Runner, score: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        runner().search(eval_fn=lambda model: score, num_subnet=2)


def test_file_of_another_network_is_refused_until_it_is_replaced(runner: Runner, logged: Logged, file: Path) -> None:
    runner(wide(32)).search(eval_fn=Logged(logged.log.with_name("other")), num_subnet=2)
    with pytest.raises(ResultsFileError, match=r"search of another network.*folder='\.\.\.'.*forced=True"):
        runner().search(eval_fn=logged, num_subnet=2)
    with pytest.raises(ResultsFileError, match="only of another one"):
        runner().prune()
    assert not logged.calls()
    runner().search(eval_fn=logged, num_subnet=2, forced=True)
    assert len(logged.calls()) == 2
    assert file.with_name("Wide.search.bak").exists()


def test_file_of_a_newer_version_is_refused(runner: Runner, logged: Logged, file: Path) -> None:
    runner().search(eval_fn=logged, num_subnet=2)
    with sqlite3.connect(file) as database:
        changed = database.execute(
            "UPDATE study_user_attributes SET value_json = replace(value_json, '\"version\": 1', '\"version\": 2')"
        )
        assert changed.rowcount == 1
    for call in (lambda: runner().search(eval_fn=logged, num_subnet=3), lambda: runner().prune()):
        with pytest.raises(ResultsFileError, match=r"format version 2.*Update channelwise"):
            call()
    assert len(logged.calls()) == 2


def test_corrupted_file_is_refused_and_kept_when_replaced(runner: Runner, logged: Logged, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("these are no searches, but a text of some length " * 100)
    with pytest.raises(ResultsFileError, match=r"Wide\.search is damaged.*forced=True"):
        runner().search(eval_fn=logged, num_subnet=2)
    runner().search(eval_fn=logged, num_subnet=2, forced=True)
    assert file.with_name("Wide.search.bak").read_text().startswith("these are no searches")


def test_file_in_use_by_another_process_is_refused(runner: Runner, logged: Logged, file: Path) -> None:
    runner().search(eval_fn=logged, num_subnet=2)
    with locked(file), pytest.raises(ResultsFileError, match=r"is working on the same results"):
        runner().search(eval_fn=logged, num_subnet=3)
    runner().search(eval_fn=logged, num_subnet=3)
    assert len(logged.calls()) == 3


def test_storage_that_cannot_be_written_is_named(logged: Logged, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a folder")
    for storage in (tmp_path / "text" / "searches.db", f"sqlite:///{tmp_path}/text/searches.db"):
        with pytest.raises(ResultsFileError, match=r"searches\.db"):
            OneStepPruningRunner(wide(), INPUTS, storage=storage, quiet=True).search(eval_fn=logged, num_subnet=2)
    assert not logged.calls()


def test_ray_that_is_not_installed_is_named(runner: Runner, logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentError, match=r"pip install 'channelwise\[ray\]'"):
        runner().search(eval_fn=logged, num_subnet=2, executor="ray")


def test_gpu_that_does_not_exist_is_named(runner: Runner, logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InvalidArgumentError, match=r"there is no device 5; this machine has 2: \[0, 1\]"):
        runner().search(eval_fn=logged, num_subnet=2, gpus=["5"])


def test_functions_that_cannot_be_sent_are_explained(runner: Runner, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as stream, pytest.raises(InvalidArgumentError, match="open files"):
        runner().search(eval_fn=_with_stream, eval_args=(stream,), num_subnet=2, workers=2)


def _with_stream(model: nn.Module, stream: Any) -> float:
    return 0.0


def test_analysis_is_sent_to_the_other_runner(runner: Runner) -> None:
    with pytest.raises(InvalidArgumentError, match=r"IterativePruningRunner\(model, inputs\)\.ana"):
        runner().ana(lambda model: 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "small"}, r"mode='small'"),
        ({"channel_divisible": -1}, r"channel_divisible must be"),
        ({"pruning_info_path": 3}, r"pruning_info_path=3"),
        ({"calibration_fn": 3}, r"calibration_fn must be"),
        ({"removal_ratio": 1.5}, r"removal_ratio=1\.5"),
        ({"index": "best"}, r"index='best'"),
        ({"index": True}, r"index=True"),
    ],
)
def test_wrong_argument_of_prune_is_told(
    runner: Runner, logged: Logged, arguments: dict[str, Any], message: str
) -> None:
    one = runner()
    one.search(eval_fn=logged, num_subnet=1, strategy="random")
    with pytest.raises(InvalidArgumentError, match=message):
        one.prune(**arguments)


def test_frozen_network_is_said() -> None:
    class Fixed(Wide):
        def forward(self, x: torch.Tensor) -> Any:
            return [x := layer(x) for layer in self.body]

    with pytest.raises(NothingToPruneError, match="all channels are frozen"):
        OneStepPruningRunner(Fixed().eval(), INPUTS, quiet=True).search(eval_fn=lambda model: 0.0)


@pytest.mark.parametrize("folder", [None, "", 3])
@pytest.mark.parametrize("kind", [OneStepPruningRunner, IterativePruningRunner, OFAPruner])
def test_a_folder_that_is_none_is_refused_where_it_is_given(kind: Any, folder: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"folder=.*must be a path"):
        kind(wide(), INPUTS, folder=folder, quiet=True)


@pytest.mark.parametrize("storage", ["", "a\0b", b"a", 5])
def test_a_storage_that_is_no_place_is_refused(tmp_path: Path, logged: Logged, storage: Any) -> None:
    runner = OneStepPruningRunner(wide(), INPUTS, folder=tmp_path, storage=storage, quiet=True)
    with pytest.raises(InvalidArgumentError, match=r"storage=.*must be the path of a file, a database URL"):
        runner.search(eval_fn=logged, num_subnet=2)


def test_a_database_url_makes_no_folders(tmp_path: Path, logged: Logged) -> None:
    runner = OneStepPruningRunner(wide(), INPUTS, folder=tmp_path, storage=f"sqlite:///{tmp_path}/a/b", quiet=True)
    with pytest.raises(ResultsFileError, match=r"storage='sqlite:///.*/a/b': there is no folder .*/a\. Make it"):
        runner.search(eval_fn=logged, num_subnet=2)
    assert not (tmp_path / "a").exists()


def test_a_smaller_number_of_candidates_than_there_are_is_no_news(
    runner: Runner, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    runner().search(eval_fn=logged, num_subnet=3)
    with caplog.at_level(logging.INFO):
        runner().search(eval_fn=logged, num_subnet=2)
    assert "has 3 candidates, nothing is evaluated again" in caplog.text
