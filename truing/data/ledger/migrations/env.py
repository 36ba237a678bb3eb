"""What Alembic runs: the migrations, in the connection that the ledger gives."""

from alembic import context

from truing.data.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
