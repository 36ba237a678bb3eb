"""The quickstart: the embedded world through every stage, from a raw model to a report."""
