"""The receipt: what each law's check found in this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tutelage.report.figures import MISSING
from tutelage.report.markup import Markup, Section, h, join, table
from tutelage.report.records import Check, Run

LAWS = {
    "mask": "Token ids are those of the model's own chat template; the tokens with loss are exactly those the assistant must produce.",
    "isolation": "No document in a pack depends on another document of the pack.",
    "layout": "Loss and gradient are the same however the documents are laid out.",
    "conservation": "Every input row is kept or dropped for a named reason, and tokens add up from source to loss.",
    "replay": "Order and randomness are functions of seed, step, document and position alone.",
    "evidence": "A figure carries its seeds, its interval and its command; what was not measured is null.",
    "safety": "No pickle, no remote code, templates sandboxed, files written whole or not at all, secrets never written.",
}


def checks_section(run: Run) -> Section:
    """Return the receipt, law by law, in the order of the laws."""
    if not run.checks:
        return Section("checks", "Checks", h("p", {"class": "missing"}, "This run directory has no receipt."))
    order = list(LAWS)
    ranked = sorted(run.checks, key=lambda c: order.index(c.law) if c.law in order else len(order))
    rows = [(h("b", None, c.law), c.name, verdict(c.passed), figures_text(c.figures), c.detail) for c in ranked]
    stated = h("details", None, h("summary", None, "What the laws say"), table(("law", "statement"), LAWS.items()))
    return Section(
        "checks", "Checks of the laws", join([table(("law", "check", "result", "figures", "detail"), rows), stated])
    )


def verdict(passed: bool | None) -> Markup:
    """Return a mark that reads without colour."""
    if passed is None:
        return h("span", {"class": "pill missing"}, MISSING)
    return h("span", {"class": "pill good"}, "✓ passed") if passed else h("span", {"class": "pill bad"}, "✗ failed")


def figures_text(figures: Mapping[str, Any]) -> str:
    """Return figures as `name value` pairs."""
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items())


def failed(checks: tuple[Check, ...]) -> list[Check]:
    """Return the checks that were made and did not pass."""
    return [c for c in checks if c.passed is False]


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e7):
        return f"{value:,.0f}"
    return MISSING if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
