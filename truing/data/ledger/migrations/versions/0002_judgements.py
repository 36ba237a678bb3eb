"""Items, who holds them, what was said of them, and what was exported."""

from typing import Any

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
    text,
)

revision = "0002"
down_revision = "0001"
ID = BigInteger().with_variant(Integer(), "sqlite")
NO: Any = {"nullable": False}
DIGEST = LargeBinary(32)


def upgrade() -> None:
    _items()
    _lines()
    _links()
    _work()
    _judgements()
    _exports()


def _to(table: str, column: str, other: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([column], [f"{other}.id"], name=f"fk_{table}_{column}")


def _index(table: str, *columns: str, name: str = "") -> None:
    op.create_index(name or "_".join(("ix", table, *columns)), table, list(columns))


def _items() -> None:
    op.create_table(
        "items",
        Column("id", ID, **NO),
        Column("campaign_id", ID, **NO),
        Column("prompt_id", ID, **NO),
        Column("kind", String(32), **NO),
        Column("purpose", String(32), **NO),
        Column("domain", String(100), **NO),
        Column("tags", Text(), **NO),
        Column("score", Float()),
        Column("control", Boolean(), **NO),
        Column("expected", Text()),
        Column("explanation", Text()),
        Column("digest", DIGEST, **NO),
        Column("external_id", String(200)),
        Column("created_at", BigInteger(), **NO),
        Column("wanted", BigInteger(), **NO),
        Column("load", BigInteger(), **NO),
        Column("done", BigInteger(), **NO),
        Column("open", Boolean(), **NO),
        Column("key", Float(), **NO),
        Column("freed_at", BigInteger(), **NO),
        _to("items", "campaign_id", "campaigns"),
        _to("items", "prompt_id", "prompts"),
        PrimaryKeyConstraint("id", name="pk_items"),
    )


def _lines() -> None:
    _index(
        "items",
        "campaign_id",
        "purpose",
        "control",
        "open",
        "key",
        "load",
        "id",
        name="ix_items_active_line",
    )
    _index(
        "items",
        "campaign_id",
        "purpose",
        "control",
        "domain",
        "open",
        "load",
        "key",
        "id",
        name="ix_items_domain_line",
    )
    _index("items", "campaign_id", "purpose", "control", "open", "freed_at", name="ix_items_freed")
    _index(
        "items",
        "campaign_id",
        "purpose",
        "control",
        "open",
        "load",
        "key",
        "id",
        name="ix_items_line",
    )
    _index("items", "prompt_id")


def _links() -> None:
    op.create_table(
        "item_responses",
        Column("item_id", ID, autoincrement=False, **NO),
        Column("position", Integer(), autoincrement=False, **NO),
        Column("response_id", ID, **NO),
        _to("item_responses", "item_id", "items"),
        _to("item_responses", "response_id", "responses"),
        PrimaryKeyConstraint("item_id", "position", name="pk_item_responses"),
    )
    op.create_table(
        "domains",
        Column("campaign_id", ID, autoincrement=False, **NO),
        Column("domain", String(100), **NO),
        Column("load", BigInteger(), **NO),
        _to("domains", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("campaign_id", "domain", name="pk_domains"),
    )


def _work() -> None:
    op.create_table(
        "assignments",
        Column("id", ID, **NO),
        Column("campaign_id", ID, **NO),
        Column("item_id", ID, **NO),
        Column("annotator_id", ID, **NO),
        Column("retest", BigInteger(), **NO),
        Column("state", String(32), **NO),
        Column("arm", String(32), **NO),
        Column("shown", Text(), **NO),
        Column("guideline_id", ID),
        Column("slot", Boolean(), **NO),
        Column("leased_at", BigInteger(), **NO),
        Column("expires_at", BigInteger(), **NO),
        Column("draft", Text()),
        _to("assignments", "annotator_id", "annotators"),
        _to("assignments", "campaign_id", "campaigns"),
        _to("assignments", "guideline_id", "documents"),
        _to("assignments", "item_id", "items"),
        PrimaryKeyConstraint("id", name="pk_assignments"),
        UniqueConstraint(
            "item_id", "annotator_id", "retest", name="uq_assignments_item_id_annotator_id_retest"
        ),
    )
    _index("assignments", "annotator_id", "campaign_id", "state")
    _index("assignments", "campaign_id", "state", "expires_at")
    op.create_table(
        "tallies",
        Column("campaign_id", ID, autoincrement=False, **NO),
        Column("annotator_id", ID, autoincrement=False, **NO),
        Column("day", String(10), **NO),
        Column("done", BigInteger(), **NO),
        Column("skipped", BigInteger(), **NO),
        Column("active_ms", BigInteger(), **NO),
        _to("tallies", "annotator_id", "annotators"),
        _to("tallies", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("campaign_id", "annotator_id", "day", name="pk_tallies"),
    )


def _judgements() -> None:
    op.create_table(
        "judgements",
        Column("id", ID, **NO),
        Column("campaign_id", ID, **NO),
        Column("seq", BigInteger(), **NO),
        Column("item_id", ID, **NO),
        Column("annotator_id", ID, **NO),
        Column("assignment_id", ID),
        Column("token", String(64), **NO),
        Column("part", BigInteger(), **NO),
        Column("kind", String(32), **NO),
        Column("purpose", String(32), **NO),
        Column("arm", String(32), **NO),
        Column("value", Text(), **NO),
        Column("text", Text()),
        Column("salt", LargeBinary(16)),
        Column("text_digest", DIGEST),
        Column("shown", Text(), **NO),
        Column("retest", BigInteger(), **NO),
        Column("guideline_id", ID),
        Column("active_ms", BigInteger(), **NO),
        Column("timing", Text(), **NO),
        Column("round", BigInteger(), **NO),
        Column("source", String(32), **NO),
        Column("simulated", Boolean(), **NO),
        Column("late", Boolean(), **NO),
        Column("supersedes", ID),
        Column("item_digest", DIGEST, **NO),
        Column("at", BigInteger(), **NO),
        Column("status", String(32), **NO),
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
        "ix_judgements_asides",
        "judgements",
        ["campaign_id", "kind", "id"],
        sqlite_where=text("kind IN ('flag', 'question', 'answer')"),
        postgresql_where=text("kind IN ('flag', 'question', 'answer')"),
    )
    _index("judgements", "campaign_id", "annotator_id", "id")
    _index("judgements", "campaign_id", "item_id", "id")


def _exports() -> None:
    op.create_table(
        "exports",
        Column("id", ID, **NO),
        Column("campaign_id", ID, **NO),
        Column("path", Text(), **NO),
        Column("digest", DIGEST, **NO),
        Column("rows_sha256", String(64), **NO),
        Column("rows", BigInteger(), **NO),
        Column("settings", Text(), **NO),
        Column("seq", BigInteger(), **NO),
        Column("hash", DIGEST, **NO),
        Column("at", BigInteger(), **NO),
        Column("stale_at", BigInteger()),
        _to("exports", "campaign_id", "campaigns"),
        PrimaryKeyConstraint("id", name="pk_exports"),
    )
    op.create_table(
        "export_people",
        Column("export_id", ID, autoincrement=False, **NO),
        Column("annotator_id", ID, autoincrement=False, **NO),
        _to("export_people", "annotator_id", "annotators"),
        _to("export_people", "export_id", "exports"),
        PrimaryKeyConstraint("export_id", "annotator_id", name="pk_export_people"),
    )
    _index("export_people", "annotator_id")
