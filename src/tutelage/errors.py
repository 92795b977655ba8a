"""The one exception tree of tutelage.

    TutelageError
    ├── ConfigError      (ValueError)    a configuration that cannot be run
    ├── DataError        (ValueError)    input rows or files that cannot be used
    ├── TemplateError    (ValueError)    a chat template that fails or breaks the render contract
    ├── ModelError       (RuntimeError)  a model folder that cannot be loaded, tuned or saved
    ├── IsolationError   (RuntimeError)  documents of one pack influence each other
    ├── TrainingError    (RuntimeError)  a run that cannot go on
    ├── OutOfMemoryError (MemoryError)   a run that needs smaller passes
    ├── DiskFullError    (OSError)       a disk without room for what has to be kept
    ├── RunDirError      (OSError)       a run directory that is taken, missing or damaged
    └── UnsafeError      (ValueError)    an artefact that is refused because it could execute code

Each error is also the standard-library type that a caller would expect, and carries the mend: what to do about it. What others
wrote (a value typed by hand, an answer of a server) may hold a secret, so no error keeps its words unredacted.
"""

from __future__ import annotations

from tutelage.redact import redact


class TutelageError(Exception):
    """Base of every error that tutelage raises on purpose.

    `problem` says what is wrong and where (file, line, row, value); `mend` says what to type or change.
    """

    def __init__(self, problem: str, *, mend: str = "") -> None:
        self.problem = redact(problem)
        self.mend = redact(mend)
        super().__init__(self.problem, self.mend)

    def __str__(self) -> str:
        return f"{self.problem}\n  mend: {self.mend}" if self.mend else self.problem

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.problem, self.mend)


def _rebuild(kind: type[TutelageError], problem: str, mend: str) -> TutelageError:
    return kind(problem, mend=mend)


class ConfigError(TutelageError, ValueError):
    """A configuration that cannot be run."""


class DataError(TutelageError, ValueError):
    """Input rows or files that cannot be used."""


class TemplateError(TutelageError, ValueError):
    """A chat template that fails or breaks the render contract."""


class ModelError(TutelageError, RuntimeError):
    """A model folder that cannot be loaded, tuned or saved."""


class IsolationError(TutelageError, RuntimeError):
    """Documents of one pack influence each other."""


class TrainingError(TutelageError, RuntimeError):
    """A run that cannot go on."""


class OutOfMemoryError(TutelageError, MemoryError):
    """A run that needs smaller passes."""


class DiskFullError(TutelageError, OSError):
    """A disk without room for what has to be kept."""


class RunDirError(TutelageError, OSError):
    """A run directory that is taken, missing or damaged."""


class UnsafeError(TutelageError, ValueError):
    """An artefact that is refused because it could execute code."""
