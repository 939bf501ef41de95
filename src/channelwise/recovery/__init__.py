"""Cheap repair after pruning: batch norms re-estimated, weights re-fitted, losses for retraining with a teacher."""

from __future__ import annotations

from channelwise.recovery import distillation
from channelwise.recovery.batchnorm import recalibrate
from channelwise.recovery.closed_form import compensate_from_grams
from channelwise.recovery.compensate import compensate

__all__ = ["compensate", "compensate_from_grams", "distillation", "recalibrate"]
