"""For tests of models and of new rules: the oracle, which checks that removing channels equals zeroing them."""

from channelwise.testing.modules import check_modules, prunable_outputs, prunable_share, randomise
from channelwise.testing.oracle import OracleReport, check_oracle

__all__ = ["OracleReport", "check_modules", "check_oracle", "prunable_outputs", "prunable_share", "randomise"]
