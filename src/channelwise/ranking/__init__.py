"""Which channels matter: criteria that give every channel of a group a score, larger meaning more important."""

from channelwise.ranking.bn_scale import bn_scale
from channelwise.ranking.consumer_l2 import consumer_l2
from channelwise.ranking.fpgm import fpgm
from channelwise.ranking.gradients import Fisher, Taylor
from channelwise.ranking.random import Random
from channelwise.ranking.random_projection import RandomProjection
from channelwise.ranking.reconstruction import Reconstruction
from channelwise.ranking.registry import Criterion, bind, comparable, get, names, register, scores
from channelwise.ranking.weight_norms import l1, l2
from channelwise.ranking.weights import Weights, fingerprint

__all__ = [
    "Criterion", "Fisher", "Random", "RandomProjection", "Reconstruction", "Taylor", "Weights", "bind", "bn_scale",
    "comparable", "consumer_l2", "fingerprint", "fpgm", "get", "l1", "l2", "names", "register", "scores",
]  # fmt: skip
