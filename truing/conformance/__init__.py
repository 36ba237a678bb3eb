"""Losses against optima that are known exactly: small spaces in which everything can be counted."""
