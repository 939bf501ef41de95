"""One model of the sweep and the processes that run them: what goes wrong is a row."""

import dataclasses
import time

import pytest
import torch
from torch import nn

import channelwise as cw
from benchmarks.coverage import check, journal


class Made:
    """A model of the sweep that a test makes."""

    inputs = ("1,3,8,8",)
    is_detector = False

    def build(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()

    def arguments(self, pixels=None):
        return (torch.randn(1, 3, 8, 8),)


def test_a_trace_alone_finds_what_the_whole_check_finds():
    whole, traced = check.check(Made()), check.check(Made(), only_trace=True)
    assert (whole["error"], whole["trained"], traced["error"]) == ("", True, "")
    for row in (whole, traced):
        assert (row["groups"], row["conv_prunable"], row["conv_outputs"]) == (1, 4, 9)
        assert row["causes"] == {"output": 5}
        assert row["macs_half"] == row["macs"] / 2
        assert row["tripwires"] == []
    assert "relative_error" not in traced


def test_notes_of_the_tripwire_are_kept():
    graph = cw.trace(Made().build(), *Made().arguments())
    graph.structure = dataclasses.replace(graph.structure, notes=("Tripwire: conv differs.", "something else"))
    assert check._found(graph)["tripwires"] == ["Tripwire: conv differs."]


def test_a_model_that_cannot_be_built_is_a_row():
    class Broken(Made):
        def build(self):
            raise RuntimeError("no")

    row = check.check(Broken())
    assert (row["stage"], row["error"]) == ("build", "RuntimeError: no")


def fine():
    return {"error": "", "groups": 1}


def hangs():
    time.sleep(60)


def greedy():
    raise MemoryError


def test_a_model_that_hangs_or_takes_too_much_is_a_row_too(tmp_path):
    pytest.importorskip("pebble")
    from benchmarks.coverage.sweep import Job, Limits, sweep

    jobs = [Job("hangs", hangs, ()), Job("greedy", greedy, ()), Job("fine", fine, ()), Job("fine", fine, (), "tool")]
    sweep(jobs, tmp_path / "rows", Limits(1, 1.0, 10))
    rows = journal.read(tmp_path / "rows")
    assert rows["hangs"]["error"] == "TimeoutError: more than 1 s"
    assert rows["greedy"]["error"] == "MemoryError: more than 10 GiB"
    assert {row["commit"] for row in rows.values()} == {journal.commit()}
    assert rows["fine"]["groups"] == rows["fine"]["tools"]["tool"]["groups"] == 1
