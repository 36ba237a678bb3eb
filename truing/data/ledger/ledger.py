"""The ledger as one thing: `Ledger.open`, and everything that can be asked of it."""

from truing.data.ledger.revising import Revising


class Ledger(Revising):
    """People, campaigns, the queue and judgements over one database (see docs/ledger.md).

    Every method is a transaction of its own, whole or not at all, and may be called from any number
    of threads and processes at once. Wrong input raises ValueError; a number that is not there, or
    is another's, LookupError; a database that is gone, ConnectionError; a full disk, OSError.
    """
