"""The ledger: what people, judges and verifiers said, who they are, and what they were shown."""

from truing.data.ledger.entries import (
    Annotator,
    Answer,
    Campaign,
    Candidate,
    Document,
    Item,
    Judgement,
    Late,
    Lease,
    Member,
    NewItem,
    NewResponse,
    Progress,
    Question,
    Response,
    Taken,
    Told,
)
from truing.data.ledger.ledger import Ledger

__all__ = [
    "Annotator",
    "Answer",
    "Campaign",
    "Candidate",
    "Document",
    "Item",
    "Judgement",
    "Late",
    "Lease",
    "Ledger",
    "Member",
    "NewItem",
    "NewResponse",
    "Progress",
    "Question",
    "Response",
    "Taken",
    "Told",
]
