"""One evaluation of a candidate: cut, repair, score."""

from channelwise.evaluate.evaluation import Evaluation
from channelwise.evaluate.images import Images
from channelwise.evaluate.repair import Repair

__all__ = ["Evaluation", "Images", "Repair"]
