"""SQLite databases that outlive a kill at any moment, with one writer at a time."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tutelage.errors import RunDirError


def open_database(path: str | Path, schema: str) -> sqlite3.Connection:
    """Open the database at `path` for this process alone and make the tables of `schema` where they are missing.

    Every commit is on the disk when it returns. Statements outside an explicit BEGIN commit by themselves.

    Raises: RunDirError when another process has it open, or the file is no database.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        # The lock is the operating system's: it goes with the process, however that ends.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _problem(path, error) from error
    return connection


def read_database(path: str | Path) -> sqlite3.Connection:
    """Open the database at `path` for reading; it stays as it is.

    Raises: RunDirError when a process is writing it, or there is no such database.
    """
    path = Path(path)
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise _problem(path, error) from error
    return connection


def _problem(path: Path, error: sqlite3.DatabaseError) -> RunDirError:
    if "locked" in str(error):
        return RunDirError(f"{path} is in use by another process", mend="wait for it to end, or give another folder")
    return RunDirError(f"{path} cannot be read as a database: {error}", mend="move it away, or give another folder")
