"""The runs of claims on disk, a file each, named by the hash of its settings: what was run once is never run again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import RunDirError
from tutelage.files.atomic import write_json
from tutelage.lab.claims.settings import Settings


@dataclass(frozen=True)
class RunStore:
    """A folder of finished runs. Files appear whole, so any number of processes may write and read it."""

    folder: Path

    def find(self, settings: Settings) -> dict[str, Any] | None:
        """Return what the run with these settings found; None where it was not made.

        Raises: RunDirError when its file is not one.
        """
        path = self._path(settings)
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _damaged(path) from error
        if not isinstance(found, dict) or not isinstance(found.get("measures"), dict):
            raise _damaged(path)
        return found

    def keep(self, settings: Settings, found: dict[str, Any]) -> None:
        """Write what a run found."""
        write_json(self._path(settings), found)

    def _path(self, settings: Settings) -> Path:
        return self.folder / f"{settings.key}.json"


def _damaged(path: Path) -> RunDirError:
    return RunDirError(f"{path} is not the record of a run", mend="remove the file; the run is then made again")
