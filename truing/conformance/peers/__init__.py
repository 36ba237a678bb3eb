"""Other libraries' functions through the same table."""

from collections.abc import Callable, Iterator

from truing.conformance.peers import trl
from truing.conformance.rows import Check

# A library -> its checks, called with ``quick=...``. Raises ValueError where it is not installed.
PEERS: dict[str, Callable[..., Iterator[Check]]] = {"trl": trl.checks}
