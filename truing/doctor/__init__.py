"""The doctor: what happened in a run, why, and what to do about it. Loads without torch."""
