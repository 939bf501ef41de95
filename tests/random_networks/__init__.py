"""Random networks: everything that the engine has rules for, composed by Hypothesis."""

from tests.random_networks.check import check
from tests.random_networks.network import Plan, RandomNetwork, Step
from tests.random_networks.selections import Choice
from tests.random_networks.strategy import choices, plans

__all__ = ["Choice", "Plan", "RandomNetwork", "Step", "check", "choices", "plans"]
