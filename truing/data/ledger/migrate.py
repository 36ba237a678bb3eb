"""The ledger's tables brought to this version of truing, by Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

FOLDER = Path(__file__).parent / "migrations"


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings, for its own commands as well."""
    made = Config()
    made.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def revisions() -> list[str]:
    """All versions of the tables, the oldest first."""
    walk = ScriptDirectory.from_config(config()).walk_revisions()
    return [script.revision for script in walk][::-1]


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a version, whole or not at all."""
    command.upgrade(config(connection), revision)


def check(connection: Connection, place: str) -> bool:
    """Whether the tables are of this version; False for an empty database. Raises ValueError for
    tables of another version."""
    now, known = MigrationContext.configure(connection).get_current_revision(), revisions()
    if now is None:
        if found := inspect(connection).get_table_names():
            raise ValueError(
                f"{place} holds tables of something else ({', '.join(found[:3])}); needed: an "
                "empty database or a ledger. Give another place"
            )
        return False
    if now not in known:
        came = f"{place} is a ledger of version {now}, made by a newer truing"
        raise ValueError(f"{came}: update truing")
    if now != known[-1]:
        raise ValueError(
            f"{place} is a ledger of version {now}, and this truing needs {known[-1]}: make a "
            f"copy, then run `truing ledger upgrade {place}`"
        )
    return True


def prepare(connection: Connection, place: str) -> None:
    """Make the tables in an empty database; whoever else does so at the same moment waits."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(20261126)"))
    if not check(connection, place):
        upgrade(connection)


def bring_up(connection: Connection) -> tuple[str | None, str]:
    """Upgrade the tables of an older version; the versions before and after."""
    before = MigrationContext.configure(connection).get_current_revision()
    if before is not None and before not in revisions():
        raise ValueError(
            f"the ledger is of version {before}, made by a newer truing: update truing"
        )
    upgrade(connection)
    return before, revisions()[-1]
