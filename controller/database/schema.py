"""The schema's version: Alembic's migrations, run from the installed package.

Invariant: a database that a newer program has migrated is never touched by an older one. Does not open connections.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from controller.errors import ConflictError

SCRIPTS: Final = Path(__file__).parent / "migrations"


def current(connection: Connection) -> str | None:
    """Return the revision of the database behind ``connection``; None before the first migration."""
    return MigrationContext.configure(connection).get_current_revision()


def refuse_newer(connection: Connection) -> None:
    """Raise ConflictError (code "newer_schema") when the database has a revision that this program does not know."""
    revision = current(connection)
    scripts = ScriptDirectory(str(SCRIPTS))
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise ConflictError(
            f"the database has schema {revision}, which a newer version of Muster made; this version knows schemas up "
            f"to {scripts.get_current_head()}: install the newer version, or restore a backup made before the upgrade",
            "newer_schema",
        )


def upgrade(connection: Connection) -> None:
    """Apply all missing migrations inside the transaction of ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
