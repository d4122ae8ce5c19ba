"""Rivals of the model on the same anchors, one page each; `rankers.py` says which there are."""
