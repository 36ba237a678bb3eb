"""What nearly every page asks first, a statement for each: whose session it is, what part somebody
has in a campaign, and which papers they were shown. The statements are made once: to put one
together takes longer than to run it."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, select

from truing.data.ledger.entries import Annotator, Campaign, Document, Member
from truing.data.ledger.people import secret_hash
from truing.data.ledger.tables import (
    acceptances,
    annotators,
    campaigns,
    documents,
    items,
    members,
    tokens,
)


class Session(NamedTuple):
    """A session that lives, and who is signed in by it."""

    id: int
    created_at: int
    seen_at: int
    me: Annotator


class Standing(NamedTuple):
    """Somebody's part in a campaign, and the campaign. ``practice``: whether it has items for
    practice at all."""

    member: Member
    campaign: Campaign
    practice: bool


_ME, _MEMBER, _CAMPAIGN, _DOCUMENT = (
    [table.c[name] for name in kind.__dataclass_fields__]
    for table, kind in (
        (annotators, Annotator),
        (members, Member),
        (campaigns, Campaign),
        (documents, Document),
    )
)
_WHO, _WHICH = bindparam("annotator"), bindparam("campaign")
_SESSION = (
    select(tokens.c.id, tokens.c.created_at, tokens.c.seen_at, *_ME)
    .join(annotators, annotators.c.id == tokens.c.annotator_id)
    .where(tokens.c.hash == bindparam("hash"), tokens.c.kind == "session")
    .where(tokens.c.ended_at.is_(None), tokens.c.expires_at > bindparam("now"))
    .where(annotators.c.state == "active")
)
# By an index, as in `truing.data.ledger.queue`.
_PRACTICE = (
    select(items.c.id)
    .where(items.c.campaign_id == _WHICH, items.c.purpose == "practice")
    .where(items.c.control, items.c.open)
    .order_by(items.c.load, items.c.key, items.c.id)
    .limit(1)
    .scalar_subquery()
)
_STANDING = (
    select(*_MEMBER, *_CAMPAIGN, _PRACTICE.is_not(None))
    .join(campaigns, campaigns.c.id == members.c.campaign_id)
    .where(members.c.campaign_id == _WHICH, members.c.annotator_id == _WHO)
)
_mine = and_(acceptances.c.document_id == documents.c.id, acceptances.c.annotator_id == _WHO)
_PAPERS = (
    select(*_DOCUMENT, acceptances.c.accepted)
    .outerjoin(acceptances, _mine)
    .where(documents.c.campaign_id == _WHICH)
    .order_by(documents.c.id)
)


def session(c: Connection, secret: str, now: int) -> Session | None:
    """The living session of this secret; None for one unknown, over, ended, or of somebody not
    active."""
    row: Any = c.execute(_SESSION, {"hash": secret_hash(secret), "now": now}).one_or_none()
    return None if row is None else Session(row[0], row[1], row[2], Annotator(*row[3:]))


def standing(c: Connection, campaign_id: int, annotator_id: int) -> Standing:
    """Raises LookupError for somebody who is no member."""
    row = c.execute(_STANDING, {"campaign": campaign_id, "annotator": annotator_id}).one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator_id} is no member of campaign {campaign_id}")
    end = len(_MEMBER)
    return Standing(Member(*row[:end]), Campaign(*row[end:-1]), row[-1])


def papers(
    c: Connection, campaign_id: int, annotator_id: int
) -> tuple[dict[str, Document], dict[int, bool]]:
    """The latest document of each kind; and document -> whether this person accepted it, of those
    they answered."""
    latest, answered = dict[str, Document](), dict[int, bool]()
    rows = c.execute(_PAPERS, {"campaign": campaign_id, "annotator": annotator_id})
    for *row, accepted in rows:
        paper = Document(*row)
        latest[paper.kind] = paper
        if accepted is not None:
            answered[paper.id] = accepted
    return latest, answered
