"""A folder that several ranks write together, and that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.errors import RunDirError
from tutelage.files.atomic import new_folder
from tutelage.parallel import agree


@contextmanager
def folder_of_all_ranks(path: Path) -> Iterator[Path]:
    """Yield the same staging folder on every rank; it becomes `path` when the main rank's block ends well. Every rank enters.

    The main rank must not leave its block before all have written.

    Raises:
        RunDirError: a rank does not see the folder that the main one made, or `path` exists already.
    """
    if agree.is_main():
        with new_folder(path) as staging:
            _require_seen_by_all(Path(agree.text_of_main(str(staging.absolute()))))
            yield staging
        return
    staging = Path(agree.text_of_main(""))
    _require_seen_by_all(staging)
    yield staging


@contextmanager
def together_or_not_at_all(path: Path) -> Iterator[None]:
    """Leave the block when all ranks have come to its end; where one fails, all of them raise. Every rank enters.

    Raises:
        RunDirError: another rank could not write its part of `path`.
    """
    failure: OSError | None = None
    try:
        yield
    except OSError as error:
        failure = error
    failed = agree.any_rank(failure is not None, agree.device_of_sums())
    if failure is not None:
        raise failure
    if failed:
        raise RunDirError(f"another process could not write its part of {path}", mend="look at what that one said last")


def _require_seen_by_all(staging: Path) -> None:
    if agree.any_rank(not staging.is_dir(), agree.device_of_sums()):
        raise RunDirError(
            f"not every rank sees {staging.parent}, into which each is to write its part of the model",
            mend="put run.dir on a file system that all machines share, or set train.parallel=replicate",
        )
