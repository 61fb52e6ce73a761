"""What Alembic runs: the migrations, on the connection and in the transaction of `router.ledger.migrate`."""

from alembic import context

from router.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
