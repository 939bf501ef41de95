"""Scores of any direction, sign and noise become sensible sparsities."""

from __future__ import annotations

import numpy as np
import pytest

from channelwise.methods.loss_curves import Curve, larger_is_better, loss_curves, severity_profile
from channelwise.methods.sensitivity import Sensitivity
from channelwise.structure import Group, Structure

LEVELS = np.arange(1, 10) / 10
STRUCTURE = Structure({}, {}, (Group("robust", 100, ()), Group("fragile", 100, ())), (), ())


def measured(baseline: float, robust: np.ndarray, fragile: np.ndarray) -> Sensitivity:
    scores = {
        name: {round(100 * (1 - s)): float(v) for s, v in zip(LEVELS, values, strict=True)}
        for name, values in (("robust", robust), ("fragile", fragile))
    }
    return Sensitivity(baseline, scores)


def accuracies(noise: float = 0.0) -> tuple[float, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shake = lambda: noise * random.standard_normal(9)  # noqa: E731
    return 0.9, 0.9 - 0.1 * LEVELS**2 + shake(), 0.9 - 0.8 * LEVELS + shake()


@pytest.mark.parametrize(
    "as_seen",
    [
        lambda a: a,
        lambda a: 100 * a,
        lambda a: 1 - a,
        lambda a: a - 1,
        lambda a: -a,
        lambda a: a - 0.9,
        lambda a: 5 - 3 * a,
    ],
    ids=["accuracy", "percent", "error", "negative score", "negated", "baseline 0", "loss"],
)
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_fragile_group_is_spared_whatever_the_score_looks_like(as_seen: object, noise: float) -> None:
    assert callable(as_seen)
    baseline, robust, fragile = accuracies(noise)
    curves = loss_curves(STRUCTURE, measured(as_seen(baseline), as_seen(robust), as_seen(fragile)))
    sparsity = severity_profile(curves)(0.4)
    assert sparsity["robust"] > sparsity["fragile"] + 0.2


def test_losses_are_relative_to_the_baseline() -> None:
    curves = loss_curves(STRUCTURE, measured(*accuracies()))
    np.testing.assert_allclose(curves["fragile"].loss, np.concatenate([[0], 0.8 * LEVELS]) / 0.9)
    assert curves["fragile"].largest_sparsity(0.1) == pytest.approx(0.09 / 0.8)


def test_losses_are_relative_to_the_range_when_the_baseline_is_0() -> None:
    curves = loss_curves(STRUCTURE, measured(0.0, -LEVELS, -4 * LEVELS))
    assert curves["fragile"].loss[-1] == 1.0


def test_noise_is_smoothed_into_a_curve_that_never_falls() -> None:
    curves = loss_curves(STRUCTURE, measured(*accuracies(noise=0.1)))
    for curve in curves.values():
        assert (np.diff(curve.loss) >= 0).all()
        assert curve.loss[0] == 0


def test_scores_better_than_the_baseline_are_no_loss() -> None:
    _, _, fragile = accuracies()
    curves = loss_curves(STRUCTURE, measured(0.9, 0.9 + 0.01 * (LEVELS < 0.5) - (LEVELS > 0.7), fragile))
    assert curves["robust"].largest_sparsity(1e-9) == pytest.approx(0.7)


def test_one_overflowing_loss_does_not_hide_the_others() -> None:
    baseline, robust, fragile = accuracies()
    loss = 1 / fragile
    loss[-1] = 1e30
    profile = severity_profile(loss_curves(STRUCTURE, measured(1 / baseline, 1 / robust, loss)))
    assert 0.05 < profile(0.5)["fragile"] < profile(0.5)["robust"] < 0.9


def test_direction_is_that_of_the_groups_with_large_effects() -> None:
    noise = [[(s, 0.9 + 1e-4 * s) for s in LEVELS] for _ in range(9)]
    points = {str(n): curve for n, curve in enumerate([*noise, [(s, 0.9 - 0.5 * s) for s in LEVELS]])}
    assert larger_is_better(0.9, points)


def test_constant_scores_prune_all_groups_evenly() -> None:
    curves = loss_curves(STRUCTURE, measured(0.5, np.full(9, 0.5), np.full(9, 0.5)))
    sparsity = severity_profile(curves)(0.5)
    assert 0 < sparsity["robust"] == sparsity["fragile"] < 0.9


def test_profile_goes_from_nothing_to_the_most_measured_without_falling() -> None:
    profile = severity_profile(loss_curves(STRUCTURE, measured(*accuracies(noise=0.05))))
    steps = [profile(t) for t in np.linspace(0, 1, 200)]
    robust = np.array([step["robust"] for step in steps])
    assert robust[0] == 0
    assert robust[-1] == pytest.approx(0.9)
    assert (np.diff(robust) >= 0).all()
    assert np.diff(robust).max() < 0.1


def test_sparsity_is_interpolated_between_measurements() -> None:
    curve = Curve(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.2, 0.6]))
    assert [curve.largest_sparsity(t) for t in (0.0, 0.1, 0.2, 0.4, 9.0)] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_flat_stretches_are_free() -> None:
    curve = Curve(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.0, 0.6]))
    assert curve.largest_sparsity(0.0) == 0.5
