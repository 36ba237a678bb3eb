"""The ledger's people: who they are, apart from what they say; what they may do; their tokens."""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from truing.data.ledger.chain import Link, append
from truing.data.ledger.entries import Annotator, Member
from truing.data.ledger.store import Store, plain
from truing.data.ledger.tables import (
    LEDGER,
    acceptances,
    annotators,
    documents,
    identities,
    members,
    tokens,
)

ROLES = ("annotator", "reviewer", "admin")
STATES = ("active", "suspended")
SOURCES = ("human", "ai", "verifier")
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike


def upsert(where: Connection | bool, table: Any):
    """An INSERT that knows ON CONFLICT, for the database at hand (or SQLite: true or false)."""
    lite = where if isinstance(where, bool) else where.dialect.name == "sqlite"
    return (sqlite if lite else postgresql).insert(table)


def one_of(what: str, word: str, known: Iterable[str]) -> str:
    if word not in known:
        raise ValueError(f"{what} is {word!r}; needed: one of {', '.join(known)}. Choose one")
    return word


class People(Store):
    """Who judges. An ``identity`` is a plain mapping: annotator_id, name, email, password_hash,
    about, created_at; nothing else in the ledger holds any of it."""

    def add_annotator(
        self,
        *,
        name: str = "",
        email: str = "",
        password_hash: str | None = None,
        about: Mapping[str, Any] | None = None,
        role: str = "annotator",
        source: str = "human",
        simulated: bool = False,
        tags: Iterable[str] = (),
        external_id: str | None = None,
        actor: int | None = None,
    ) -> Annotator:
        """A new judge with a pseudonym of its own; with an identity, if an ``email`` is given (any
        unique sign-in name will do). ``actor`` is the annotator who did it, here and everywhere.
        Raises ValueError for an email that is taken."""
        one_of("role", role, ROLES)
        one_of("source", source, SOURCES)
        email, now = plain("email", email, 320).strip().lower(), self.now()
        row = {
            "pseudonym": "p-" + "".join(secrets.choice(LETTERS) for _ in range(8)),
            "source": source,
            "role": role,
            "state": "active",
            "simulated": simulated,
            "tags": sorted(set(tags)),
            "external_id": external_id,
            "created_at": now,
        }
        with self.writing() as c:
            if email and c.scalar(select(identities.c.email).where(identities.c.email == email)):
                raise ValueError(f"{email} is in the ledger already: sign in, or give another")
            made = c.execute(insert(annotators).returning(annotators), row).mappings().one()
            if email:
                identity = {"annotator_id": made["id"], "name": plain("name", name, 200)}
                identity |= {"email": email, "password_hash": password_hash, "created_at": now}
                c.execute(insert(identities), {**identity, "about": dict(about) if about else None})
            told = {k: row[k] for k in ("pseudonym", "source", "role", "simulated")}
            append(c, LEDGER, Link("annotator added", actor, made["id"], now, told))
            return Annotator(**made)

    def annotator(self, annotator_id: int) -> Annotator:
        """Raises LookupError for an unknown number."""
        with self.reading() as c:
            return Annotator(**_one(c, annotators, annotator_id, "annotator"))

    def annotators(self, campaign_id: int | None = None) -> list[Annotator]:
        """All, or the members of a campaign, by number."""
        query = select(annotators).order_by(annotators.c.id)
        if campaign_id is not None:
            query = query.join(members).where(members.c.campaign_id == campaign_id)
        with self.reading() as c:
            return [Annotator(**row) for row in c.execute(query).mappings()]

    def identity(self, *, annotator_id: int | None = None, email: str = "") -> RowMapping | None:
        """Who an annotator is, or who has this email; None where nobody is known (or is erased)."""
        by = identities.c.annotator_id == annotator_id
        if annotator_id is None:
            by = identities.c.email == email.strip().lower()
        with self.reading() as c:
            return c.execute(select(identities).where(by)).mappings().one_or_none()

    def set_password(self, annotator_id: int, password_hash: str) -> None:
        """Replace the hash, and end the person's sessions. It leaves no trace in the chain but its
        time."""
        with self.writing() as c:
            where = identities.c.annotator_id == annotator_id
            c.execute(update(identities).where(where).values(password_hash=password_hash))
            self._end(c, tokens.c.annotator_id == annotator_id, tokens.c.kind == "session")
            append(c, LEDGER, Link("password set", annotator_id, annotator_id, self.now()))

    def set_annotator(
        self,
        annotator_id: int,
        *,
        role: str | None = None,
        state: str | None = None,
        tags: Iterable[str] | None = None,
        actor: int | None = None,
    ) -> Annotator:
        """Change a role, a state (active, suspended: sessions end) or somebody's fields."""
        told: dict[str, Any] = {}
        if role is not None:
            told["role"] = one_of("role", role, ROLES)
        if state is not None:
            told["state"] = one_of("state", state, STATES)
        if tags is not None:
            told["tags"] = sorted(set(tags))
        with self.writing() as c:
            if _one(c, annotators, annotator_id, "annotator")["state"] == "erased":
                raise ValueError(f"annotator {annotator_id} was erased and cannot be changed")
            c.execute(update(annotators).where(annotators.c.id == annotator_id).values(told))
            if state == "suspended":
                self._end(c, tokens.c.annotator_id == annotator_id)
            # Expertise may tell who somebody is, and the chain forgets nothing: so not the tags.
            kept = {k: v for k, v in told.items() if k != "tags"}
            append(c, LEDGER, Link("annotator changed", actor, annotator_id, self.now(), kept))
            return Annotator(**_one(c, annotators, annotator_id, "annotator"))

    # --- membership, and what people agreed to ---------------------------------------------------

    def join(self, campaign_id: int, annotator_id: int, actor: int | None = None) -> Member:
        """Make somebody a member of a campaign; of one who is, nothing changes."""
        with self.writing() as c:
            row = {"campaign_id": campaign_id, "annotator_id": annotator_id, "state": "active"}
            row |= {"progress": {}, "joined_at": self.now()}
            new = upsert(c, members).values(row).on_conflict_do_nothing()
            if c.scalar(new.returning(members.c.annotator_id)) is not None:
                append(c, campaign_id, Link("joined", actor, annotator_id, self.now()))
            return _member(c, campaign_id, annotator_id)

    def member(self, campaign_id: int, annotator_id: int) -> Member:
        """Raises LookupError for somebody who is no member."""
        with self.reading() as c:
            return _member(c, campaign_id, annotator_id)

    def memberships(self, annotator_id: int) -> list[Member]:
        query = select(*_MEMBER).where(members.c.annotator_id == annotator_id)
        with self.reading() as c:
            return [Member(**row) for row in c.execute(query).mappings()]

    def set_member(
        self,
        campaign_id: int,
        annotator_id: int,
        *,
        state: str | None = None,
        progress: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        actor: int | None = None,
    ) -> Member:
        """Suspend a member or take them back, or note how far they are with practice and screening
        (``progress`` makes it of what was there, so of two at once neither is lost). What a
        suspended member said is not touched: see `Judging.quarantine`."""
        told: dict[str, Any] = {}
        if state is not None:
            told["state"] = one_of("state", state, STATES)
        with self.writing() as c:
            was = _member(c, campaign_id, annotator_id, lock=True)
            if progress is not None:
                told["progress"] = progress(was.progress)
            c.execute(update(members).where(_is(campaign_id, annotator_id)).values(told))
            append(c, campaign_id, Link("member changed", actor, annotator_id, self.now(), told))
            return _member(c, campaign_id, annotator_id)

    def accept(self, annotator_id: int, document_id: int, accepted: bool = True) -> None:
        """Record that a person gave consent, read a guideline, or took or declined a warning. The
        last word counts; the chain keeps all of them."""
        with self.writing() as c:
            document = _one(c, documents, document_id, "document")
            row = {"accepted": accepted, "at": self.now()}
            new = upsert(c, acceptances).values(
                annotator_id=annotator_id, document_id=document_id, **row
            )
            c.execute(new.on_conflict_do_update(index_elements=_ACCEPTED, set_=row))
            told = {"document": document_id, "accepted": accepted, "kind": document["kind"]}
            told |= {"version": document["version"], "sha256": bytes(document["digest"]).hex()}
            link = Link("accepted", annotator_id, document_id, row["at"], told)
            append(c, document["campaign_id"], link)

    def accepted(self, annotator_id: int, campaign_id: int) -> dict[int, bool]:
        """Document number -> whether the person accepted it, of those they answered."""
        query = (
            select(acceptances.c.document_id, acceptances.c.accepted)
            .join(documents)
            .where(acceptances.c.annotator_id == annotator_id)
            .where(documents.c.campaign_id == campaign_id)
        )
        with self.reading() as c:
            return {row[0]: row[1] for row in c.execute(query)}

    # --- tokens: sessions, keys of the API, invitations ------------------------------------------

    def issue_token(
        self,
        kind: str,
        seconds: float,
        *,
        annotator_id: int | None = None,
        campaign_id: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> str:
        """A new secret (43 characters for a URL or cookie); the ledger keeps its hash alone.
        ``data``: what the pages need with it, such as a CSRF secret or an invitation's role."""
        one_of("kind", kind, ("session", "api", "invitation"))
        secret, now = secrets.token_urlsafe(32), self.now()
        row = {"kind": kind, "hash": secret_hash(secret), "annotator_id": annotator_id}
        row |= {"campaign_id": campaign_id, "data": dict(data or {}), "created_at": now}
        row |= {"seen_at": now, "expires_at": now + int(1000 * seconds)}
        with self.writing() as c:
            c.execute(insert(tokens), row)
        return secret

    def token(self, kind: str, secret: str) -> RowMapping | None:
        """The living token of this secret: id, annotator_id, campaign_id, data, created_at,
        seen_at, expires_at. None for one unknown, over, ended, or of somebody not active."""
        query = (
            select(tokens, annotators.c.state)
            .outerjoin(annotators)
            .where(tokens.c.hash == secret_hash(secret), tokens.c.kind == kind)
        )
        with self.reading() as c:
            row = c.execute(query).mappings().one_or_none()
        if row is None or row["ended_at"] is not None or row["expires_at"] <= self.now():
            return None
        return row if row["state"] in (None, "active") else None

    def touch_token(self, token_id: int, seconds: float) -> None:
        """Note that a session is in use, and put its end off."""
        row = {"seen_at": self.now(), "expires_at": self.now() + int(1000 * seconds)}
        with self.writing() as c:
            c.execute(update(tokens).where(tokens.c.id == token_id).values(row))

    def end_token(self, token_id: int) -> bool:
        """Sign out, withdraw a key, or use an invitation up; False if it was over already, so that
        of two who use an invitation at once only one gets in."""
        with self.writing() as c:
            return self._end(c, tokens.c.id == token_id) > 0

    def _end(self, connection: Connection, *which: Any) -> int:
        open_ones = update(tokens).where(*which, tokens.c.ended_at.is_(None))
        return connection.execute(open_ones.values(ended_at=self.now())).rowcount


_MEMBER = [members.c[n] for n in Member.__dataclass_fields__]
_ACCEPTED = [acceptances.c.annotator_id, acceptances.c.document_id]


def _is(campaign_id: int, annotator_id: int):
    mine = members.c.annotator_id == annotator_id
    return (members.c.campaign_id == campaign_id) & mine


def _member(
    connection: Connection, campaign_id: int, annotator_id: int, lock: bool = False
) -> Member:
    query = select(*_MEMBER).where(_is(campaign_id, annotator_id))
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator_id} is no member of campaign {campaign_id}")
    return Member(**row)


def _one(connection: Connection, table: Any, number: int, what: str) -> RowMapping:
    row = connection.execute(select(table).where(table.c.id == number)).mappings().one_or_none()
    if row is None:
        raise LookupError(f"there is no {what} {number}")
    return row


def secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
