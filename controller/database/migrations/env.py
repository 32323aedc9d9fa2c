"""Alembic's entry point; `controller/database/schema.py` hands it the connection.

Invariant: runs inside the caller's transaction, so a migration that fails leaves nothing behind.
"""

from __future__ import annotations

from alembic import context

from controller.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
