"""One evaluation of a candidate: cut, repair, score."""
