"""The receipt: which of the laws this run checked, with the figures it saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.files.atomic import write_json


@dataclass(frozen=True)
class Check:
    """One check of a law: mask, isolation, layout, conservation, replay, evidence or safety."""

    law: str
    name: str
    passed: bool
    detail: str = ""
    figures: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)


@dataclass
class Receipt:
    """Checks in the order they were made; written anew after each, so that a run that dies leaves what it had found."""

    path: Path | None
    checks: list[Check] = field(default_factory=list)

    def add(self, check: Check) -> Check:
        """Record `check` (in place of an earlier one of the same law and name) and write the receipt."""
        self.checks = [c for c in self.checks if (c.law, c.name) != (check.law, check.name)] + [check]
        if self.path is not None:
            write_json(self.path, self.to_json())
        return check

    def to_json(self) -> dict[str, object]:
        """Return the receipt as it stands in `receipt.json`."""
        rows = [
            {"law": c.law, "name": c.name, "passed": c.passed, "figures": dict(c.figures), "detail": c.detail}
            for c in self.checks
        ]
        return {"checks": rows}

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed for check in self.checks)
