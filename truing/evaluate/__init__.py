"""Evaluation: what was measured, the figures with their intervals, and the page that shows them."""
