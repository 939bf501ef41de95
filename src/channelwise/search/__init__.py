"""Better selections: the space of candidates that meet a target, strategies that search it, and studies that last."""

from channelwise.search.cmaes import CmaEs
from channelwise.search.evolution import Evolution
from channelwise.search.opening import open_study
from channelwise.search.random import RandomSearch
from channelwise.search.results import Key, SearchResults, Trial
from channelwise.search.sampler import OptunaStrategy, Tpe
from channelwise.search.space import Space
from channelwise.search.stored import latest, read_searches
from channelwise.search.strategies import get, names, register
from channelwise.search.strategy import Known, Request, Strategy
from channelwise.search.study import Candidate, SearchStudy
from channelwise.search.target_space import TargetSpace

__all__ = [
    "Candidate", "CmaEs", "Evolution", "Key", "Known", "OptunaStrategy", "RandomSearch", "Request", "SearchResults",
    "SearchStudy", "Space", "Strategy", "TargetSpace", "Tpe", "Trial", "get", "latest", "names", "open_study",
    "read_searches", "register",
]  # fmt: skip
