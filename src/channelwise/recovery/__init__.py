"""Cheap repair after pruning: batch norms re-estimated, weights re-fitted, losses for retraining with a teacher."""

from __future__ import annotations

from channelwise.recovery import distillation
from channelwise.recovery.batchnorm import recalibrate
from channelwise.recovery.compensate import compensate
from channelwise.recovery.compensate_from_grams import compensate_from_grams
from channelwise.recovery.repair import repair

__all__ = ["compensate", "compensate_from_grams", "distillation", "recalibrate", "repair"]
