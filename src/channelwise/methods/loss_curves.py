"""From measured sensitivities to sparsities: how far every group can go at a tolerated loss of score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from channelwise.methods.sensitivity import Sensitivity
from channelwise.structure import Structure

# Prefers even sparsities where the measured losses make no difference, as a share of the median loss.
EVENNESS = 1e-3


@dataclass(frozen=True)
class Curve:
    """Relative loss of score over the sparsity of one group. Both arrays start at 0; ``loss`` never falls."""

    sparsity: np.ndarray
    loss: np.ndarray

    def largest_sparsity(self, tolerance: float) -> float:
        """The largest measured-or-interpolated sparsity whose loss is at most ``tolerance``."""
        last = int(np.searchsorted(self.loss, tolerance, side="right")) - 1
        if last < 0:
            return 0.0
        if last == len(self.loss) - 1:
            return float(self.sparsity[-1])
        low, high = self.loss[last], self.loss[last + 1]
        share = (tolerance - low) / (high - low)
        return float(self.sparsity[last] + share * (self.sparsity[last + 1] - self.sparsity[last]))


def loss_curves(structure: Structure, sensitivity: Sensitivity) -> dict[str, Curve]:
    """A curve for every group that has been measured.

    Whether a larger score is better is seen from the scores themselves: pruning more makes them worse. Noise is
    smoothed by isotonic regression, which is the nearest curve that never falls. Losses are relative to the size of
    the baseline's score, or to the range of all scores where the baseline is about 0.
    """
    assert sensitivity.baseline is not None
    baseline = sensitivity.baseline
    points = {
        group.name: sorted((1 - kept / group.size, score) for kept, score in sensitivity.scores[group.name].items())
        for group in structure.groups
        if sensitivity.scores.get(group.name)
    }
    if not points:
        return {}
    sign = 1.0 if larger_is_better(baseline, points) else -1.0
    scores = np.array([baseline, *(score for curve in points.values() for _, score in curve)])
    spread = float(np.ptp(scores))
    scale = abs(baseline) if abs(baseline) > 1e-6 * spread else spread
    curves = {}
    for name, curve in points.items():
        sparsity, score = np.array(curve).T
        loss = sign * (baseline - score) / (scale or 1.0)
        smooth = np.maximum(isotonic_regression(loss).x, 0.0)
        curves[name] = Curve(np.concatenate([[0.0], sparsity]), np.concatenate([[0.0], smooth]))
    return curves


def larger_is_better(baseline: float, points: Mapping[str, list[tuple[float, float]]]) -> bool:
    """Whether scores fall as groups are pruned more, groups with larger effects counting more."""
    curves = [np.array([(0.0, baseline), *curve]) for curve in points.values()]
    largest = max(float(np.abs(curve[:, 1]).max()) for curve in curves) or 1.0
    rise = sum(float(np.sum((s - s.mean()) * (score / largest))) for s, score in (curve.T for curve in curves))
    return rise <= 0


def severity_profile(curves: Mapping[str, Curve]) -> Callable[[float], dict[str, float]]:
    """Sparsities by group as severity goes from 0 (nothing removed) to 1 (the most that was measured).

    At every severity the groups lose equally much score, as far as they can.
    """
    losses = np.concatenate([[0.0], *(curve.loss for curve in curves.values())])
    tilt = EVENNESS * (float(np.median(losses[losses > 0])) if losses.any() else 1.0)
    tilted = {name: Curve(curve.sparsity, curve.loss + tilt * curve.sparsity) for name, curve in curves.items()}
    # Severity is spread evenly over the measured losses, whatever their scale: losses may span orders of magnitude.
    knots = np.unique(np.concatenate([[0.0], *(curve.loss for curve in tilted.values())]))
    positions = np.linspace(0.0, 1.0, len(knots))

    def sparsities(severity: float) -> dict[str, float]:
        tolerance = float(np.interp(severity, positions, knots))
        return {name: curve.largest_sparsity(tolerance) for name, curve in tilted.items()}

    return sparsities
