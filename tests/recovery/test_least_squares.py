"""A fit goes as far as samples that it did not see are served by it."""

from __future__ import annotations

import torch

from channelwise.recovery.least_squares import improved, validated
from channelwise.statistics.moments import Equation, Moments

torch.manual_seed(0)


def equation(x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> Equation:
    moments = Moments.zeros(1, x.shape[1], y.shape[1], x.device)
    moments.add(x[None], y[None])
    return moments.equation(start[None].double(), free_offset=False)


def error(matrix: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() @ matrix - y).square().mean())


def test_more_unknowns_than_rows_are_not_fitted_to_noise() -> None:
    truth = torch.randn(200, 5)
    x, unseen = torch.randn(100, 200), torch.randn(1000, 200)
    y, wanted = x @ truth + 20 * torch.randn(100, 5), unseen @ truth
    start = truth + 0.1 * torch.randn(200, 5)
    fit, held, whole = (equation(x[part], y[part], start) for part in (slice(75), slice(75, None), slice(None)))
    naive, found = improved(start[None], *whole)[0], validated(start[None].double(), fit, held, whole)[0]
    assert error(naive, unseen, wanted) > 10 * error(start.double(), unseen, wanted)
    assert error(found, unseen, wanted) < 1.2 * error(start.double(), unseen, wanted)


def test_what_serves_samples_held_out_is_fitted_to_all() -> None:
    truth, start = torch.randn(10, 5), torch.randn(10, 5)
    x = torch.randn(1000, 10)
    y = x @ truth
    fit, held, whole = (equation(x[part], y[part], start) for part in (slice(750), slice(750, None), slice(None)))
    found = validated(start[None].double(), fit, held, whole)[0]
    torch.testing.assert_close(found, truth.double(), rtol=0.01, atol=0.01)


def test_a_fit_that_serves_none_of_them_leaves_the_weights_as_they_are() -> None:
    x, start = torch.randn(100, 10), torch.randn(10, 5).double()
    change = torch.randn(10, 5)
    right, wrong = x @ (start.float() + change), x @ (start.float() - change)
    fit, held, whole = equation(x, right, start), equation(x, wrong, start), equation(x, right, start)
    assert torch.equal(validated(start[None], fit, held, whole)[0], start)


def test_every_group_is_solved_by_itself() -> None:
    """One that no fit serves, and one that a fit serves, at once."""
    x, start, change = torch.randn(100, 10), torch.randn(10, 5).double(), torch.randn(10, 5)
    right, wrong = x @ (start.float() + change), x @ (start.float() - change)
    equations = [[equation(x, y, start) for y in ys] for ys in ((right, wrong, right), (right, right, right))]
    joined = [Equation(*map(torch.cat, zip(*pair, strict=True))) for pair in zip(*equations, strict=True)]
    kept, moved = validated(torch.stack([start, start]), *joined)
    assert torch.equal(kept, start)
    torch.testing.assert_close(moved, start + change.double(), rtol=0.05, atol=0.05)
