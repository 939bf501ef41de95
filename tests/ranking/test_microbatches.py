"""Batches are parted sample by sample, or left whole where that is not certain to be right."""

from __future__ import annotations

import torch

from channelwise.ranking.microbatches import micro_batches

X, Y = torch.arange(10).reshape(5, 2), torch.arange(5)


def test_all_tensors_of_a_batch_are_cut_at_the_same_samples():
    parts = list(micro_batches([{"x": X, "mask": None}, (Y,)], 2))
    assert [len(p[1][0]) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p[0]["x"] for p in parts]), X)
    assert all(torch.equal(p[0]["x"][:, 0], 2 * p[1][0]) for p in parts)
    assert all(p[0]["mask"] is None and type(p) is list and type(p[1]) is tuple for p in parts)


def test_without_a_size_and_below_it_a_batch_stays_whole():
    for size in (None, 5, 9):
        (part,) = micro_batches((X, Y), size)
        assert part[0] is X


def test_a_batch_that_may_hold_something_else_than_samples_stays_whole():
    for batch in ((X, Y[:3]), (X, ["a", "b", "c", "d", "e"]), (X, torch.tensor(1.0))):
        (part,) = micro_batches(batch, 2)
        assert part is batch
