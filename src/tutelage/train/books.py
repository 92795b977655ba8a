"""Whether everything that was planned was trained on, and nothing else: both sides of the conservation law, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.chat.rendered import Rendered
from tutelage.data.ledger import Ledger
from tutelage.pack.plan import Step
from tutelage.train.objective import SourceTotals
from tutelage.train.plan import RunPlan
from tutelage.train.prepare import Prepared
from tutelage.train.receipt import Check


class Books:
    """Counts planned and trained tokens of each source, for the conservation check."""

    def __init__(self, documents: Sequence[Rendered]) -> None:
        self._documents = documents
        self._steps = 0
        self._planned: dict[str, list[int]] = {}
        self._trained: dict[str, list[int]] = {}

    def add(self, planned: Step, by_source: Mapping[str, SourceTotals]) -> None:
        """Count one step: what the plan says of it, and what the loss saw."""
        self._steps += 1
        for index in planned.documents:
            document = self._documents[index]
            _count(self._planned, document.source, 1, len(document), document.supervised_tokens)
        for name, totals in by_source.items():
            _count(self._trained, name, totals.read_documents, totals.read_tokens, totals.sums.tokens)

    def book(self, ledger: Ledger) -> None:
        """Enter both sides into the ledger."""
        for stage, counts in (("planned", self._planned), ("loss", self._trained)):
            for name, (documents, tokens, supervised) in counts.items():
                ledger.book_tokens(name, stage, tokens, supervised, documents=documents)

    def conservation(self) -> Check:
        """Return whether each source's tokens in the loss are those of its documents in the plan."""
        sides = {"planned": self._planned, "loss": self._trained}
        units = ("documents", "tokens", "supervised_tokens")
        return Check(
            "conservation",
            "tokens from plan to loss",
            self._planned == self._trained,
            "documents, tokens and supervised tokens of each source in the steps, and those that the loss saw",
            {
                "steps": self._steps,  # of this process: a resumed run counts from where it went on
                **{
                    f"{side}_{unit}": sum(counts[i] for counts in by_source.values())
                    for side, by_source in sides.items()
                    for i, unit in enumerate(units)
                },
            },
        )


def _count(counts: dict[str, list[int]], name: str, *amounts: int) -> None:
    entry = counts.setdefault(name, [0] * len(amounts))
    for i, amount in enumerate(amounts):
        entry[i] += amount


def data_checks(prepared: Prepared, plan: RunPlan, fingerprint: str) -> list[Check]:
    """Return the checks that need no model: render contract, ledger, and the plan against the documents."""
    ledger = prepared.ledger.totals
    checks = []
    if prepared.contract is not None:
        contract = prepared.contract
        failed = [check for check in contract.checks if not check.passed]
        detail = "; ".join(f"{check.name}: {check.detail}" for check in failed) or "every check of the contract holds"
        checks.append(Check("mask", "render contract", not failed, detail, {"checks": len(contract.checks)}))
    checks.append(
        Check(
            "conservation",
            "rows",
            ledger.rows == ledger.kept + sum(ledger.dropped.values()),
            "every row that was read is kept, or dropped for a named reason",
            {"rows": ledger.rows, "kept": ledger.kept, "dropped": sum(ledger.dropped.values())},
        )
    )
    checks.append(
        Check(
            "replay",
            "order",
            True,
            "fingerprint of documents, weights and order; the same on every rank, and compared on resume",
            {"fingerprint": fingerprint, "steps": plan.num_steps},
        )
    )
    return checks
