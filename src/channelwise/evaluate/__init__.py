"""One evaluation of a candidate: cut, repair, score."""

from channelwise.evaluate.evaluation import Evaluation
from channelwise.evaluate.images import Images
from channelwise.evaluate.repair import Repair
from channelwise.evaluate.where import Where

__all__ = ["Evaluation", "Images", "Repair", "Where"]
