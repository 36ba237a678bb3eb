"""Feedback: samples to be judged, and the judgements of them."""
