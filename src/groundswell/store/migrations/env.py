"""Run by Alembic: it gets the store's open transaction, so that a migration happens whole or not at all."""

from alembic import context

from groundswell.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
