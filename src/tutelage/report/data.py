"""What was learned from: rows kept and dropped, tokens from source to loss, shares, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.report.charts import Bar, bar_chart, histogram
from tutelage.report.figures import MISSING, compact, count, number, percent, size
from tutelage.report.markup import Child, Markup, Section, facts, h, join, table
from tutelage.report.records import Plan, Run, Share, SourceLedger

_HISTOGRAMS = {
    "document_tokens": ("Length of documents", "tokens of a document"),
    "supervised_tokens": ("Tokens with loss in a document", "tokens with loss"),
}


def data_section(run: Run) -> Section:
    """Return ledger, token flow, shares, length distributions and what the plan made of them."""
    charts = [*_share_chart(run.plan.shares), *_histograms(run.plan)]
    parts = [
        h("h3", None, "Rows"),
        _rows_table(run.ledger),
        h("h3", None, "Tokens, from source to loss") if any(s.tokens for s in run.ledger) else None,
        _token_table(run.ledger),
        h("div", {"class": "charts"}, charts) if charts else None,
        _share_table(run.plan.shares),
        h("h3", None, "Plan"),
        _plan_table(run.plan, run.environment.get("memory_measured_bytes")),
    ]
    return Section("data", "Data", join(parts))


def _rows_table(ledger: Sequence[SourceLedger]) -> Markup:
    if not ledger:
        return h("p", {"class": "missing"}, "The ledger of input rows is not in the run directory.")
    reasons = sorted({reason for s in ledger for reason in s.dropped})
    rows = [_row(s, reasons) for s in ledger]
    if len(ledger) > 1:
        rows.append(_row(_sum_of(ledger), reasons))
    header = ("source", "rows", "kept", *reasons, "adds up")
    unbalanced = [s.name for s in ledger if _balanced(s) is False]
    warning = h("p", {"class": "bad"}, f"Rows do not add up in {', '.join(unbalanced)}.") if unbalanced else None
    none = None if reasons else h("p", {"class": "why"}, "No row was dropped.")
    return join([warning, table(header, rows, numeric=range(1, len(reasons) + 3)), none, _files(ledger)])


def _files(ledger: Sequence[SourceLedger]) -> Markup | None:
    rows = [(s.name, s.taken_as, file, h("code", None, digest)) for s in ledger for file, digest in s.files.items()]
    if not rows:
        return None
    return h("details", None, h("summary", None, "Files read"), table(("source", "taken as", "file", "SHA-256"), rows))


def _row(source: SourceLedger, reasons: Sequence[str]) -> list[Child]:
    balanced = _balanced(source)
    verdict = MISSING if balanced is None else "yes" if balanced else h("span", {"class": "bad"}, "no")
    dropped = (count(source.dropped.get(reason, 0)) for reason in reasons)
    return [source.name, count(source.rows), count(source.kept), *dropped, verdict]


def _sum_of(ledger: Sequence[SourceLedger]) -> SourceLedger:
    dropped: dict[str, float] = {}
    for source in ledger:
        for reason, n in source.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
    return SourceLedger("all", "", _sum([s.rows for s in ledger]), _sum([s.kept for s in ledger]), dropped, {}, {})


def _balanced(source: SourceLedger) -> bool | None:
    if source.rows is None or source.kept is None:
        return None
    return source.rows == source.kept + sum(source.dropped.values())


def _sum(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _token_table(ledger: Sequence[SourceLedger]) -> Markup | None:
    stages = list(dict.fromkeys(stage for s in ledger for stage in s.tokens))
    if not stages:
        return None
    header = ("source", *(name for stage in stages for name in (stage.replace("_", " "), "with loss")))
    rows = [[s.name, *(count(n) for stage in stages for n in s.tokens.get(stage, (None, None)))] for s in ledger]
    return table(header, rows, numeric=range(1, len(header)))


def _share_chart(shares: Sequence[Share]) -> list[Markup]:
    if len(shares) < 2:
        return []
    rows = [(s.source, [_share_bar(s.asked, 6, "as it comes"), _share_bar(s.realised, 0, MISSING)]) for s in shares]
    names = [("asked", 6), ("realised", 0)]
    return [bar_chart("Share of the tokens with loss", rows, x_label="% of trained tokens", names=names)]


def _share_bar(share: float | None, colour: int, otherwise: str) -> Bar:
    return Bar(None, otherwise, colour) if share is None else Bar(100 * share, percent(share), colour)


def _share_table(shares: Sequence[Share]) -> Markup | None:
    if not shares:
        return None
    rows = [
        (s.source, percent(s.asked) if s.asked is not None else "as it comes", percent(s.realised), count(s.documents), count(s.tokens), count(s.supervised_tokens))
        for s in shares
    ]  # fmt: skip
    return table(("source", "asked", "realised", "documents", "tokens", "with loss"), rows, numeric=range(1, 6))


def _histograms(plan: Plan) -> list[Markup]:
    charts = []
    for name, bins in (plan.histograms or {}).items():
        title, label = _HISTOGRAMS.get(name, (name.replace("_", " ").capitalize(), name.replace("_", " ")))
        charts.append(histogram(title, bins.edges, bins.counts, x_label=label, y_label="documents"))
    return charts


def _plan_table(plan: Plan, measured_bytes: Any) -> Markup:
    rows: list[tuple[str, Child]] = [
        ("documents trained on", count(plan.documents)),
        ("documents held out", count(plan.held_out_documents)),
        ("tokens in a pass over the data", _tokens(plan)),
        ("packs", f"{count(plan.packs)}, {percent(plan.fill, 2)} full" if plan.packs is not None else MISSING),
        ("steps", f"{count(plan.steps)} for {number(plan.epochs, 3)} epochs" if plan.steps is not None else MISSING),
        ("parameters", _parameters(plan)),
    ]
    for name, choice in (("layout", plan.layout), ("attention", plan.attention)):
        reason = h("span", {"class": "soft"}, f" - {choice.reason}") if choice and choice.reason else None
        rows.append((name, join([choice.name, reason]) if choice else MISSING))
    rows.append(("shared prefixes", plan.shared_prefixes or MISSING))
    rows.append(("memory of a step", _memory(plan, measured_bytes)))
    return facts(rows)


def _memory(plan: Plan, measured_bytes: Any) -> str:
    parts = ", ".join(f"{name.replace('_', ' ')} {size(n)}" for name, n in (plan.memory_bytes or {}).items())
    if not parts:
        return MISSING
    if plan.memory_predicted_bytes is None:
        return f"not predicted; beside activations, {parts}"
    measured = f"; measured {size(measured_bytes)}" if isinstance(measured_bytes, int) else ""
    return f"predicted {size(plan.memory_predicted_bytes)} ({parts}){measured}"


def _tokens(plan: Plan) -> str:
    if plan.tokens is None:
        return MISSING
    return f"{count(plan.tokens)}, of which {count(plan.supervised_tokens)} with loss"


def _parameters(plan: Plan) -> str:
    if plan.parameters is None:
        return MISSING
    return f"{compact(plan.parameters)}, of which {compact(plan.trainable_parameters)} trained"
