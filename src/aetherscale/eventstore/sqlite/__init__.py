"""The real event log: one SQLite file in write-ahead mode, through aiosqlite.

`open_store` is the one writer, `open_reader` reads beside it or without it. See docs/eventlog.md.
"""

from __future__ import annotations

from aetherscale.eventstore.sqlite.store import SqliteReader, open_reader, open_store

__all__ = ["SqliteReader", "open_reader", "open_store"]
