"""People, campaigns, the chains of events, and texts."""

from typing import Any

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    column,
    table,
    text,
)

revision = "0001"
down_revision = None
ID = BigInteger().with_variant(Integer(), "sqlite")
COUNTS = ("work_items", "slots", "filled")  # of what belongs to a campaign
NO: Any = {"nullable": False}
DIGEST = LargeBinary(32)


def upgrade() -> None:
    _people()
    _campaigns()
    _tokens()
    _chains()
    _texts()
    streams = table("streams", *map(column, ("id", "seq", "hash", *COUNTS)))
    op.bulk_insert(streams, [{"id": 0, "seq": 0, "hash": bytes(32), **dict.fromkeys(COUNTS, 0)}])


def _to(table: str, column: str, other: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [f"{other}.id"], name=f"fk_{table}_{column}")


def _index(table: str, *columns: str, name: str = "") -> None:
    op.create_index(name or "_".join(("ix", table, *columns)), table, list(columns))


def _people() -> None:
    op.create_table(
        "annotators",
        Column("id", ID, **NO),
        Column("pseudonym", String(32), **NO),
        Column("source", String(32), **NO),
        Column("role", String(32), **NO),
        Column("state", String(32), **NO),
        Column("simulated", Boolean(), **NO),
        Column("tags", Text(), **NO),
        Column("external_id", String(200)),
        Column("created_at", BigInteger(), **NO),
        PrimaryKeyConstraint("id", name="pk_annotators"),
        UniqueConstraint("pseudonym", name="uq_annotators_pseudonym"),
    )
    op.create_table(
        "identities",
        Column("annotator_id", ID, autoincrement=False, **NO),
        Column("name", String(200), **NO),
        Column("email", String(320), **NO),
        Column("password_hash", String(500)),
        Column("about", Text()),
        Column("created_at", BigInteger(), **NO),
        _to("identities", "annotator_id", "annotators"),
        PrimaryKeyConstraint("annotator_id", name="pk_identities"),
        UniqueConstraint("email", name="uq_identities_email"),
    )


def _campaigns() -> None:
    op.create_table(
        "campaigns",
        Column("id", ID, **NO),
        Column("name", String(100), **NO),
        Column("kind", String(32), **NO),
        Column("state", String(32), **NO),
        Column("seed", BigInteger(), **NO),
        Column("round", BigInteger(), **NO),
        Column("config", Text(), **NO),
        Column("external_id", String(200)),
        Column("created_at", BigInteger(), **NO),
        PrimaryKeyConstraint("id", name="pk_campaigns"),
        UniqueConstraint("name", name="uq_campaigns_name"),
    )
    op.create_table(
        "documents",
        Column("id", ID, **NO),
        Column("campaign_id", ID, **NO),
        Column("kind", String(32), **NO),
        Column("version", BigInteger(), **NO),
        Column("text", Text(), **NO),
        Column("digest", DIGEST, **NO),
        Column("at", BigInteger(), **NO),
        _to("documents", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_documents"),
        UniqueConstraint(
            "campaign_id", "kind", "version", name="uq_documents_campaign_id_kind_version"
        ),
    )
    op.create_table(
        "acceptances",
        Column("annotator_id", ID, autoincrement=False, **NO),
        Column("document_id", ID, autoincrement=False, **NO),
        Column("accepted", Boolean(), **NO),
        Column("at", BigInteger(), **NO),
        _to("acceptances", "annotator_id", "annotators"),
        _to("acceptances", "document_id", "documents"),
        PrimaryKeyConstraint("annotator_id", "document_id", name="pk_acceptances"),
    )
    op.create_table(
        "members",
        Column("campaign_id", ID, autoincrement=False, **NO),
        Column("annotator_id", ID, autoincrement=False, **NO),
        Column("state", String(32), **NO),
        Column("progress", Text(), **NO),
        Column("cursor", Text()),
        Column("joined_at", BigInteger(), **NO),
        _to("members", "annotator_id", "annotators"),
        _to("members", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("campaign_id", "annotator_id", name="pk_members"),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        Column("id", ID, **NO),
        Column("kind", String(32), **NO),
        Column("hash", DIGEST, **NO),
        Column("annotator_id", ID),
        Column("campaign_id", ID),
        Column("data", Text(), **NO),
        Column("created_at", BigInteger(), **NO),
        Column("seen_at", BigInteger(), **NO),
        Column("expires_at", BigInteger(), **NO),
        Column("ended_at", BigInteger()),
        _to("tokens", "annotator_id", "annotators"),
        _to("tokens", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_tokens"),
        UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    _index("tokens", "annotator_id")


def _chains() -> None:
    op.create_table(
        "streams",
        Column("id", ID, autoincrement=False, **NO),
        Column("seq", BigInteger(), **NO),
        Column("hash", DIGEST, **NO),
        Column("work_items", BigInteger(), **NO),
        Column("slots", BigInteger(), **NO),
        Column("filled", BigInteger(), **NO),
        PrimaryKeyConstraint("id", name="pk_streams"),
    )
    op.create_table(
        "events",
        Column("stream", ID, autoincrement=False, **NO),
        Column("seq", BigInteger(), autoincrement=False, **NO),
        Column("kind", String(32), **NO),
        Column("actor", ID),
        Column("subject", BigInteger()),
        Column("at", BigInteger(), **NO),
        Column("content", Text()),
        Column("digest", DIGEST, **NO),
        Column("hash", DIGEST, **NO),
        _to("events", "actor", "annotators"),
        _to("events", "stream", "streams"),
        PrimaryKeyConstraint("stream", "seq", name="pk_events"),
    )
    op.create_index(
        "ix_events_subject",
        "events",
        ["subject"],
        sqlite_where=text("subject IS NOT NULL"),
        postgresql_where=text("subject IS NOT NULL"),
    )


def _texts() -> None:
    op.create_table(
        "prompts",
        Column("id", ID, **NO),
        Column("digest", DIGEST, **NO),
        Column("content", Text(), **NO),
        Column("domain", String(100), **NO),
        Column("tags", Text(), **NO),
        Column("author_id", ID),
        Column("created_at", BigInteger(), **NO),
        _to("prompts", "author_id", "annotators"),
        PrimaryKeyConstraint("id", name="pk_prompts"),
        UniqueConstraint("digest", name="uq_prompts_digest"),
    )
    op.create_table(
        "responses",
        Column("id", ID, **NO),
        Column("prompt_id", ID, **NO),
        Column("digest", DIGEST, **NO),
        Column("content", Text(), **NO),
        Column("model", String(300), **NO),
        Column("run", String(500), **NO),
        Column("origin", Text(), **NO),
        Column("author_id", ID),
        Column("created_at", BigInteger(), **NO),
        _to("responses", "author_id", "annotators"),
        _to("responses", "prompt_id", "prompts"),
        PrimaryKeyConstraint("id", name="pk_responses"),
    )
    _index("responses", "prompt_id")
