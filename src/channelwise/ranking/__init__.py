"""Which channels matter: criteria that give every channel of a group a score, larger meaning more important."""

from channelwise.ranking.bn_scale import bn_scale
from channelwise.ranking.fpgm import fpgm
from channelwise.ranking.norms import l1, l2
from channelwise.ranking.random import Random
from channelwise.ranking.registry import Criterion, get, names, register, scores
from channelwise.ranking.weights import Weights

__all__ = ["Criterion", "Random", "Weights", "bn_scale", "fpgm", "get", "l1", "l2", "names", "register", "scores"]
