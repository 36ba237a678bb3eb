"""Reinforcement learning from human feedback, from demonstrations to a report."""

import os

# A small model is thousands of small operations a second. Unless told otherwise, libgomp may put
# the second thread to sleep between any two of them, and then it is of no use; if it spins for
# long, two programs at once slow each other down many times. This is a fraction of a millisecond.
# It is read when torch is loaded, so it stands here, before any import of it.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
