"""The ledger's tables, for SQLite and PostgreSQL alike.

What was judged stands in ``judgements`` and what happened in ``events``; rows of these two are
added and never changed, but for ``judgements.status``, which the events explain, and for text that
a person had erased. Everything a person can be known by stands in ``identities`` alone. The other
tables are what was shown, and working state (leases, counts) that could be made anew.

Times are whole milliseconds since 1970, UTC. Texts and lists are JSON in text columns, so that both
databases give back what they were given, NULs and lone surrogates included.
"""

import json
import re
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

SURROGATE = re.compile("[\ud800-\udfff]")
LEDGER = 0  # the chain of what belongs to no campaign


class Json(TypeDecorator[Any]):
    """Any JSON value as text. None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else written(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value in ("[]", "{}"):  # as most are
            return [] if value == "[]" else {}
        return None if value is None else json.loads(value)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def written(value: Any) -> str:
    """JSON that any database can hold as text."""
    line = _encode(value)
    return json.dumps(value, allow_nan=False) if SURROGATE.search(line) else line


Id = BigInteger().with_variant(Integer(), "sqlite")
Digest = LargeBinary(32)  # SHA-256

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def key() -> Column[int]:
    return Column("id", Id, primary_key=True)


def to(name: str, table: str, **how: Any) -> Column[int]:
    """A column that names a row of another table."""
    how.setdefault("nullable", False)
    return Column(name, Id, ForeignKey(f"{table}.id"), **how)


def number(name: str, start: int = 0) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=start)


def word(name: str, size: int = 32, **how: Any) -> Column[str]:
    how.setdefault("nullable", False)
    return Column(name, String(size), **how)


def flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, default=False)


# --- the chains: one of each campaign, and one (0) of people and of the campaigns themselves ------

streams = Table(
    "streams",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    number("seq"),
    Column("hash", Digest, nullable=False),
    # What has come so far: rows that every submission locks anyway, so counting costs nothing.
    number("work_items"),
    number("slots"),
    number("filled"),
)

events = Table(
    "events",
    metadata,
    to("stream", "streams", primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    word("kind"),
    to("actor", "annotators", nullable=True),
    Column("subject", BigInteger),
    number("at"),
    Column("content", Json),
    Column("digest", Digest, nullable=False),
    Column("hash", Digest, nullable=False),
)
_subject = text("subject IS NOT NULL")
Index("ix_events_subject", events.c.subject, sqlite_where=_subject, postgresql_where=_subject)

# --- people ------------------------------------------------------------------------------------

annotators = Table(
    "annotators",
    metadata,
    key(),
    word("pseudonym", unique=True),
    word("source"),  # human, ai, verifier
    word("role"),  # annotator, reviewer, admin
    word("state"),  # active, suspended, erased
    flag("simulated"),
    Column("tags", Json, nullable=False),
    Column("external_id", String(200)),  # a vendor's number
    number("created_at"),
)

identities = Table(
    "identities",
    metadata,
    to("annotator_id", "annotators", primary_key=True, autoincrement=False),
    word("name", 200),
    word("email", 320, unique=True),
    Column("password_hash", String(500)),
    Column("about", Json),  # what a person chose to tell of themselves
    number("created_at"),
)

tokens = Table(
    "tokens",
    metadata,
    key(),
    word("kind"),  # session, api, invitation
    Column("hash", Digest, nullable=False, unique=True),
    to("annotator_id", "annotators", nullable=True, index=True),
    to("campaign_id", "campaigns", nullable=True),
    Column("data", Json, nullable=False),
    number("created_at"),
    number("seen_at"),
    number("expires_at"),
    Column("ended_at", BigInteger),
)

# --- what is judged ----------------------------------------------------------------------------

campaigns = Table(
    "campaigns",
    metadata,
    key(),
    word("name", 100, unique=True),
    word("kind"),
    word("state"),  # draft, pilot, open, paused, closed
    number("seed"),
    number("round"),
    Column("config", Json, nullable=False),
    Column("external_id", String(200)),
    number("created_at"),
)

documents = Table(
    "documents",
    metadata,
    key(),
    to("campaign_id", "campaigns"),
    word("kind"),  # guideline, consent, warning
    number("version"),
    Column("text", Json, nullable=False),
    Column("digest", Digest, nullable=False),
    number("at"),
    UniqueConstraint("campaign_id", "kind", "version"),
)

acceptances = Table(
    "acceptances",
    metadata,
    to("annotator_id", "annotators", primary_key=True, autoincrement=False),
    to("document_id", "documents", primary_key=True, autoincrement=False),
    flag("accepted"),
    number("at"),
)

members = Table(
    "members",
    metadata,
    to("campaign_id", "campaigns", primary_key=True, autoincrement=False),
    to("annotator_id", "annotators", primary_key=True, autoincrement=False),
    word("state"),  # active, suspended, left
    Column("progress", Json, nullable=False),  # practice and screening, as the pages keep them
    Column("cursor", Json),  # how far this person has come in line, see `queue`
    number("joined_at"),
)

prompts = Table(
    "prompts",
    metadata,
    key(),
    Column("digest", Digest, nullable=False, unique=True),
    Column("content", Json, nullable=False),  # a text, or messages
    word("domain", 100),
    Column("tags", Json, nullable=False),
    to("author_id", "annotators", nullable=True),
    number("created_at"),
)

responses = Table(
    "responses",
    metadata,
    key(),
    to("prompt_id", "prompts", index=True),
    Column("digest", Digest, nullable=False),
    Column("content", Json, nullable=False),  # a text, messages, or {"steps": [...]}
    word("model", 300),  # never shown
    word("run", 500),
    Column("origin", Json, nullable=False),  # sampling, seed, finish_reason and the like
    to("author_id", "annotators", nullable=True),
    number("created_at"),
)

_LINE = ("campaign_id", "purpose", "control")
items = Table(
    "items",
    metadata,
    key(),
    to("campaign_id", "campaigns"),
    to("prompt_id", "prompts", index=True),
    word("kind"),
    word("purpose"),  # work, gold, practice, screening
    word("domain", 100),
    Column("tags", Json, nullable=False),
    Column("score", Float),  # for active selection
    flag("control"),  # of the random control arm, whose place in line is by chance
    Column("expected", Json),  # the answer of a gold, practice or screening item
    Column("explanation", Json),
    Column("digest", Digest, nullable=False),
    Column("external_id", String(200)),
    number("created_at"),
    # Working state: slots wanted, held (leases and judgements) and filled, and the place in line.
    number("wanted", 1),
    number("load"),
    number("done"),
    flag("open"),
    Column("key", Float, nullable=False),
    number("freed_at"),
    Index("ix_items_line", *_LINE, "open", "load", "key", "id"),
    Index("ix_items_domain_line", *_LINE, "domain", "open", "load", "key", "id"),
    Index("ix_items_active_line", *_LINE, "open", "key", "load", "id"),
    Index("ix_items_freed", *_LINE, "open", "freed_at"),
)

# What is held of each domain; there is a row only for domains with a name.
domains = Table(
    "domains",
    metadata,
    to("campaign_id", "campaigns", primary_key=True, autoincrement=False),
    word("domain", 100, primary_key=True),
    number("load"),
)

item_responses = Table(
    "item_responses",
    metadata,
    to("item_id", "items", primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    to("response_id", "responses"),
)

# --- who holds what, and what they said --------------------------------------------------------

assignments = Table(
    "assignments",
    metadata,
    key(),
    to("campaign_id", "campaigns"),
    to("item_id", "items"),
    to("annotator_id", "annotators"),
    number("retest"),
    word("state"),  # leased, done, skipped, expired, released
    word("arm"),  # by which the policy chose it
    Column("shown", Json, nullable=False),  # response ids, in the order shown
    to("guideline_id", "documents", nullable=True),
    flag("slot"),  # whether it takes one of the item's slots
    number("leased_at"),
    number("expires_at"),
    Column("draft", Json),
    UniqueConstraint("item_id", "annotator_id", "retest"),
    Index(None, "campaign_id", "state", "expires_at"),
    Index(None, "annotator_id", "campaign_id", "state"),
)

judgements = Table(
    "judgements",
    metadata,
    key(),
    to("campaign_id", "campaigns"),
    number("seq"),
    to("item_id", "items"),
    to("annotator_id", "annotators"),
    to("assignment_id", "assignments", nullable=True),
    word("token", 64),
    number("part"),
    word("kind"),
    word("purpose"),
    word("arm"),
    Column("value", Json, nullable=False),
    Column("text", Json),
    Column("salt", LargeBinary(16)),
    Column("text_digest", Digest),
    Column("shown", Json, nullable=False),
    number("retest"),
    to("guideline_id", "documents", nullable=True),
    number("active_ms"),
    Column("timing", Json, nullable=False),
    number("round"),
    word("source"),
    flag("simulated"),
    flag("late"),
    to("supersedes", "judgements", nullable=True),
    Column("item_digest", Digest, nullable=False),
    number("at"),
    word("status"),  # current, superseded, undone, quarantined
    UniqueConstraint("annotator_id", "token", "part"),
    UniqueConstraint("campaign_id", "seq"),
    Index(None, "campaign_id", "item_id", "id"),
    Index(None, "campaign_id", "annotator_id", "id"),
)
_asides = text("kind IN ('flag', 'question', 'answer')")
Index(
    "ix_judgements_asides",
    *(judgements.c[name] for name in ("campaign_id", "kind", "id")),
    sqlite_where=_asides,
    postgresql_where=_asides,
)

tallies = Table(
    "tallies",
    metadata,
    to("campaign_id", "campaigns", primary_key=True, autoincrement=False),
    to("annotator_id", "annotators", primary_key=True, autoincrement=False),
    word("day", 10, primary_key=True),
    number("done"),
    number("skipped"),
    number("active_ms"),
)

# --- what went out -----------------------------------------------------------------------------

exports = Table(
    "exports",
    metadata,
    key(),
    to("campaign_id", "campaigns"),
    Column("path", Json, nullable=False),
    Column("digest", Digest, nullable=False),  # of the file
    word("rows_sha256", 64),  # of its rows as records, as runs name their parents
    number("rows"),
    Column("settings", Json, nullable=False),
    number("seq"),  # how far the campaign's chain had come, and its head then
    Column("hash", Digest, nullable=False),
    number("at"),
    Column("stale_at", BigInteger),
)

export_people = Table(
    "export_people",
    metadata,
    to("export_id", "exports", primary_key=True, autoincrement=False),
    to("annotator_id", "annotators", primary_key=True, autoincrement=False, index=True),
)
