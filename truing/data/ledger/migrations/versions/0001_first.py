"""The tables of the first ledger."""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
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
DIGEST = LargeBinary(length=32)


def upgrade() -> None:
    _people()
    _campaigns()
    _tokens()
    _chains()
    _texts()
    _items()
    _work()
    _judgements()
    _exports()
    streams = table("streams", *map(column, ("id", "seq", "hash", *COUNTS)))
    op.bulk_insert(streams, [{"id": 0, "seq": 0, "hash": bytes(32), **dict.fromkeys(COUNTS, 0)}])


def _to(table: str, column: str, other: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [f"{other}.id"], name=f"fk_{table}_{column}")


def _people() -> None:
    op.create_table(
        "annotators",
        Column("id", ID, nullable=False),
        Column("pseudonym", String(length=32), nullable=False),
        Column("source", String(length=32), nullable=False),
        Column("role", String(length=32), nullable=False),
        Column("state", String(length=32), nullable=False),
        Column("simulated", Boolean(), nullable=False),
        Column("tags", Text(), nullable=False),
        Column("external_id", String(length=200), nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        PrimaryKeyConstraint("id", name="pk_annotators"),
        UniqueConstraint("pseudonym", name="uq_annotators_pseudonym"),
    )
    op.create_table(
        "identities",
        Column("annotator_id", ID, autoincrement=False, nullable=False),
        Column("name", String(length=200), nullable=False),
        Column("email", String(length=320), nullable=False),
        Column("password_hash", String(length=500), nullable=True),
        Column("about", Text(), nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        _to("identities", "annotator_id", "annotators"),
        PrimaryKeyConstraint("annotator_id", name="pk_identities"),
        UniqueConstraint("email", name="uq_identities_email"),
    )


def _campaigns() -> None:
    op.create_table(
        "campaigns",
        Column("id", ID, nullable=False),
        Column("name", String(length=100), nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("state", String(length=32), nullable=False),
        Column("seed", BigInteger(), nullable=False),
        Column("round", BigInteger(), nullable=False),
        Column("config", Text(), nullable=False),
        Column("external_id", String(length=200), nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        PrimaryKeyConstraint("id", name="pk_campaigns"),
        UniqueConstraint("name", name="uq_campaigns_name"),
    )
    op.create_table(
        "documents",
        Column("id", ID, nullable=False),
        Column("campaign_id", ID, nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("version", BigInteger(), nullable=False),
        Column("text", Text(), nullable=False),
        Column("digest", DIGEST, nullable=False),
        Column("at", BigInteger(), nullable=False),
        _to("documents", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_documents"),
        UniqueConstraint(
            "campaign_id", "kind", "version", name="uq_documents_campaign_id_kind_version"
        ),
    )
    op.create_table(
        "acceptances",
        Column("annotator_id", ID, autoincrement=False, nullable=False),
        Column("document_id", ID, autoincrement=False, nullable=False),
        Column("accepted", Boolean(), nullable=False),
        Column("at", BigInteger(), nullable=False),
        _to("acceptances", "annotator_id", "annotators"),
        _to("acceptances", "document_id", "documents"),
        PrimaryKeyConstraint("annotator_id", "document_id", name="pk_acceptances"),
    )
    op.create_table(
        "members",
        Column("campaign_id", ID, autoincrement=False, nullable=False),
        Column("annotator_id", ID, autoincrement=False, nullable=False),
        Column("state", String(length=32), nullable=False),
        Column("progress", Text(), nullable=False),
        Column("cursor", Text(), nullable=True),
        Column("joined_at", BigInteger(), nullable=False),
        _to("members", "annotator_id", "annotators"),
        _to("members", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("campaign_id", "annotator_id", name="pk_members"),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        Column("id", ID, nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("hash", DIGEST, nullable=False),
        Column("annotator_id", ID, nullable=True),
        Column("campaign_id", ID, nullable=True),
        Column("data", Text(), nullable=False),
        Column("created_at", BigInteger(), nullable=False),
        Column("seen_at", BigInteger(), nullable=False),
        Column("expires_at", BigInteger(), nullable=False),
        Column("ended_at", BigInteger(), nullable=True),
        _to("tokens", "annotator_id", "annotators"),
        _to("tokens", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_tokens"),
        UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    op.create_index("ix_tokens_annotator_id", "tokens", ["annotator_id"], unique=False)


def _chains() -> None:
    op.create_table(
        "streams",
        Column("id", ID, autoincrement=False, nullable=False),
        Column("seq", BigInteger(), nullable=False),
        Column("hash", DIGEST, nullable=False),
        Column("work_items", BigInteger(), nullable=False),
        Column("slots", BigInteger(), nullable=False),
        Column("filled", BigInteger(), nullable=False),
        PrimaryKeyConstraint("id", name="pk_streams"),
    )
    op.create_table(
        "events",
        Column("stream", ID, autoincrement=False, nullable=False),
        Column("seq", BigInteger(), autoincrement=False, nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("actor", ID, nullable=True),
        Column("subject", BigInteger(), nullable=True),
        Column("at", BigInteger(), nullable=False),
        Column("content", Text(), nullable=True),
        Column("digest", DIGEST, nullable=False),
        Column("hash", DIGEST, nullable=False),
        _to("events", "actor", "annotators"),
        _to("events", "stream", "streams"),
        PrimaryKeyConstraint("stream", "seq", name="pk_events"),
    )
    op.create_index(
        "ix_events_subject",
        "events",
        ["subject"],
        unique=False,
        sqlite_where=text("subject IS NOT NULL"),
        postgresql_where=text("subject IS NOT NULL"),
    )


def _texts() -> None:
    op.create_table(
        "prompts",
        Column("id", ID, nullable=False),
        Column("digest", DIGEST, nullable=False),
        Column("content", Text(), nullable=False),
        Column("domain", String(length=100), nullable=False),
        Column("tags", Text(), nullable=False),
        Column("author_id", ID, nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        _to("prompts", "author_id", "annotators"),
        PrimaryKeyConstraint("id", name="pk_prompts"),
        UniqueConstraint("digest", name="uq_prompts_digest"),
    )
    op.create_table(
        "responses",
        Column("id", ID, nullable=False),
        Column("prompt_id", ID, nullable=False),
        Column("digest", DIGEST, nullable=False),
        Column("content", Text(), nullable=False),
        Column("model", String(length=300), nullable=False),
        Column("run", String(length=500), nullable=False),
        Column("origin", Text(), nullable=False),
        Column("author_id", ID, nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        _to("responses", "author_id", "annotators"),
        _to("responses", "prompt_id", "prompts"),
        PrimaryKeyConstraint("id", name="pk_responses"),
    )
    op.create_index("ix_responses_prompt_id", "responses", ["prompt_id"], unique=False)


def _items() -> None:
    op.create_table(
        "items",
        Column("id", ID, nullable=False),
        Column("campaign_id", ID, nullable=False),
        Column("prompt_id", ID, nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("purpose", String(length=32), nullable=False),
        Column("domain", String(length=100), nullable=False),
        Column("tags", Text(), nullable=False),
        Column("score", Float(), nullable=True),
        Column("control", Boolean(), nullable=False),
        Column("expected", Text(), nullable=True),
        Column("explanation", Text(), nullable=True),
        Column("digest", DIGEST, nullable=False),
        Column("external_id", String(length=200), nullable=True),
        Column("created_at", BigInteger(), nullable=False),
        Column("wanted", BigInteger(), nullable=False),
        Column("load", BigInteger(), nullable=False),
        Column("done", BigInteger(), nullable=False),
        Column("open", Boolean(), nullable=False),
        Column("key", Float(), nullable=False),
        Column("freed_at", BigInteger(), nullable=False),
        _to("items", "campaign_id", "campaigns"),
        _to("items", "prompt_id", "prompts"),
        PrimaryKeyConstraint("id", name="pk_items"),
    )
    op.create_index(
        "ix_items_campaign_id_purpose_domain_open_load_key_id",
        "items",
        ["campaign_id", "purpose", "domain", "open", "load", "key", "id"],
        unique=False,
    )
    op.create_index(
        "ix_items_campaign_id_purpose_open_freed_at",
        "items",
        ["campaign_id", "purpose", "open", "freed_at"],
        unique=False,
    )
    op.create_index(
        "ix_items_campaign_id_purpose_open_load_key_id",
        "items",
        ["campaign_id", "purpose", "open", "load", "key", "id"],
        unique=False,
    )
    op.create_index("ix_items_prompt_id", "items", ["prompt_id"], unique=False)
    op.create_table(
        "item_responses",
        Column("item_id", ID, autoincrement=False, nullable=False),
        Column("position", Integer(), autoincrement=False, nullable=False),
        Column("response_id", ID, nullable=False),
        _to("item_responses", "item_id", "items"),
        _to("item_responses", "response_id", "responses"),
        PrimaryKeyConstraint("item_id", "position", name="pk_item_responses"),
    )


def _work() -> None:
    op.create_table(
        "assignments",
        Column("id", ID, nullable=False),
        Column("campaign_id", ID, nullable=False),
        Column("item_id", ID, nullable=False),
        Column("annotator_id", ID, nullable=False),
        Column("retest", BigInteger(), nullable=False),
        Column("state", String(length=32), nullable=False),
        Column("shown", Text(), nullable=False),
        Column("guideline_id", ID, nullable=True),
        Column("slot", Boolean(), nullable=False),
        Column("leased_at", BigInteger(), nullable=False),
        Column("expires_at", BigInteger(), nullable=False),
        Column("draft", Text(), nullable=True),
        _to("assignments", "annotator_id", "annotators"),
        _to("assignments", "campaign_id", "campaigns"),
        _to("assignments", "guideline_id", "documents"),
        _to("assignments", "item_id", "items"),
        PrimaryKeyConstraint("id", name="pk_assignments"),
        UniqueConstraint(
            "item_id", "annotator_id", "retest", name="uq_assignments_item_id_annotator_id_retest"
        ),
    )
    op.create_index(
        "ix_assignments_annotator_id_campaign_id_state",
        "assignments",
        ["annotator_id", "campaign_id", "state"],
        unique=False,
    )
    op.create_index(
        "ix_assignments_campaign_id_state_expires_at",
        "assignments",
        ["campaign_id", "state", "expires_at"],
        unique=False,
    )
    op.create_table(
        "tallies",
        Column("campaign_id", ID, autoincrement=False, nullable=False),
        Column("annotator_id", ID, autoincrement=False, nullable=False),
        Column("day", String(length=10), nullable=False),
        Column("done", BigInteger(), nullable=False),
        Column("skipped", BigInteger(), nullable=False),
        Column("active_ms", BigInteger(), nullable=False),
        _to("tallies", "annotator_id", "annotators"),
        _to("tallies", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("campaign_id", "annotator_id", "day", name="pk_tallies"),
    )


def _judgements() -> None:
    op.create_table(
        "judgements",
        Column("id", ID, nullable=False),
        Column("campaign_id", ID, nullable=False),
        Column("seq", BigInteger(), nullable=False),
        Column("item_id", ID, nullable=False),
        Column("annotator_id", ID, nullable=False),
        Column("assignment_id", ID, nullable=True),
        Column("token", String(length=64), nullable=False),
        Column("part", BigInteger(), nullable=False),
        Column("kind", String(length=32), nullable=False),
        Column("purpose", String(length=32), nullable=False),
        Column("value", Text(), nullable=False),
        Column("text", Text(), nullable=True),
        Column("salt", LargeBinary(length=16), nullable=True),
        Column("text_digest", DIGEST, nullable=True),
        Column("shown", Text(), nullable=False),
        Column("retest", BigInteger(), nullable=False),
        Column("guideline_id", ID, nullable=True),
        Column("active_ms", BigInteger(), nullable=False),
        Column("timing", Text(), nullable=False),
        Column("round", BigInteger(), nullable=False),
        Column("source", String(length=32), nullable=False),
        Column("simulated", Boolean(), nullable=False),
        Column("late", Boolean(), nullable=False),
        Column("supersedes", ID, nullable=True),
        Column("item_digest", DIGEST, nullable=False),
        Column("at", BigInteger(), nullable=False),
        Column("status", String(length=32), nullable=False),
        _to("judgements", "annotator_id", "annotators"),
        _to("judgements", "assignment_id", "assignments"),
        _to("judgements", "campaign_id", "campaigns"),
        _to("judgements", "guideline_id", "documents"),
        _to("judgements", "item_id", "items"),
        _to("judgements", "supersedes", "judgements"),
        PrimaryKeyConstraint("id", name="pk_judgements"),
        UniqueConstraint(
            "annotator_id", "token", "part", name="uq_judgements_annotator_id_token_part"
        ),
        UniqueConstraint("campaign_id", "seq", name="uq_judgements_campaign_id_seq"),
    )
    op.create_index(
        "ix_judgements_campaign_id_annotator_id_id",
        "judgements",
        ["campaign_id", "annotator_id", "id"],
        unique=False,
    )
    op.create_index(
        "ix_judgements_campaign_id_item_id_id",
        "judgements",
        ["campaign_id", "item_id", "id"],
        unique=False,
    )


def _exports() -> None:
    op.create_table(
        "exports",
        Column("id", ID, nullable=False),
        Column("campaign_id", ID, nullable=False),
        Column("path", Text(), nullable=False),
        Column("digest", DIGEST, nullable=False),
        Column("rows_sha256", String(length=64), nullable=False),
        Column("rows", BigInteger(), nullable=False),
        Column("settings", Text(), nullable=False),
        Column("seq", BigInteger(), nullable=False),
        Column("hash", DIGEST, nullable=False),
        Column("at", BigInteger(), nullable=False),
        Column("stale_at", BigInteger(), nullable=True),
        _to("exports", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_exports"),
    )
    op.create_table(
        "export_people",
        Column("export_id", ID, autoincrement=False, nullable=False),
        Column("annotator_id", ID, autoincrement=False, nullable=False),
        _to("export_people", "annotator_id", "annotators"),
        _to("export_people", "export_id", "exports"),
        PrimaryKeyConstraint("export_id", "annotator_id", name="pk_export_people"),
    )
    op.create_index(
        "ix_export_people_annotator_id", "export_people", ["annotator_id"], unique=False
    )
