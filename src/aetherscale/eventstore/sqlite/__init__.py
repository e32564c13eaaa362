"""The real event log: one SQLite file in write-ahead mode, through aiosqlite.

`open_store` is the one writer, `open_access` reads beside it or without it. See docs/eventlog.md.
"""

from __future__ import annotations

from aetherscale.eventstore.sqlite.store import SqliteAccess, open_access, open_store

__all__ = ["SqliteAccess", "open_access", "open_store"]
