"""The top of the page: what was trained on what, and what came of it."""

from __future__ import annotations

from statistics import median

from tutelage.report.answers import before_and_after
from tutelage.report.charts import smooth
from tutelage.report.figures import MISSING, compact, count, duration, number, percent
from tutelage.report.markup import Markup, h, join
from tutelage.report.records import Count, Evaluation, Run, divide

_STATUS = {
    "running": "still running: the figures below are those so far",
    "failed": "failed: the figures below end where it stopped",
    "stopped": "stopped before its end",
    "interrupted": "interrupted before its end",
}


def headline(run: Run) -> Markup:
    """Return title, summary sentence, tiles with the main figures, and one answer before and after."""
    model = str(run.setting("model.path") or "an unnamed model")
    kicker = ["supervised fine-tuning with tutelage", run.name, (run.started or "")[:16].replace("T", " ")]
    state = _STATUS.get(run.status or "", "" if run.status == "finished" else f"status: {run.status}")
    return join(
        [
            h("p", {"class": "kicker"}, " · ".join(part for part in kicker if part)),
            h("h1", None, f"{_short_model(model)}, {_method(run)}"),
            h("p", {"class": "lead"}, _sentence(run)),
            h("p", {"class": "bad"}, f"This run {state}.") if state else None,
            h("div", {"class": "tiles"}, (_tile(*tile) for tile in _tiles(run))),
            h("p", {"class": "why"}, _caveat(run)),
            before_and_after(run.samples, limit=1),
        ]
    )


def loss_at_ends(run: Run) -> tuple[float | None, float | None]:
    """Return the training loss over the first and last twentieth of the steps, as means over tokens."""
    half = max(1, len(run.steps) // 40)
    losses = smooth([s.loss_sum for s in run.steps], [s.weight_sum for s in run.steps], half)
    return (losses[min(half, len(losses) - 1)], losses[-1 - min(half, len(losses) - 1)]) if losses else (None, None)


def best_evaluation(run: Run) -> Evaluation | None:
    """Return the evaluation with the lowest held-out loss."""
    known = [e for e in run.evaluations if e.loss is not None]
    return min(known, key=lambda e: e.loss if e.loss is not None else 0.0) if known else None


def throughput(run: Run) -> tuple[float | None, float | None]:
    """Return the medians over steps of tokens per second and supervised tokens per second."""
    timed = [s for s in run.steps if s.seconds]
    rates = [divide(s.tokens, s.seconds) for s in timed], [divide(s.supervised_tokens, s.seconds) for s in timed]
    known = [[rate for rate in side if rate is not None] for side in rates]
    return median(known[0]) if known[0] else None, median(known[1]) if known[1] else None


def checks_summary(run: Run) -> str:
    """Return how many of the laws' checks passed."""
    made = [c for c in run.checks if c.passed is not None]
    return f"{sum(c.passed is True for c in made)} of {len(made)} passed" if made else MISSING


def _short_model(path: str) -> str:
    parts = path.rstrip("/").split("/")
    return "/".join(parts) if len(parts) <= 2 and parts[0] not in ("", ".", "..") else parts[-1]


def _method(run: Run) -> str:
    if run.setting("train.method") == "lora":
        return f"tuned with LoRA of rank {run.setting('train.lora.rank')}"
    return "fully fine-tuned" if run.setting("train.method") == "full" else "tuned"


def _sentence(run: Run) -> str:
    names = [s.source for s in run.plan.shares] or [s.name for s in run.ledger]
    sources = f" of {_listed(names)}" if names else ""
    documents = f"{count(run.plan.documents)} documents" if run.plan.documents is not None else "Documents"
    done = len(run.steps)
    planned = run.plan.steps
    steps = f"{done:,} steps" if planned is None or planned == done else f"{done:,} of {planned:,.0f} steps"
    epochs = f" ({number(run.plan.epochs, 3)} epochs)" if done == planned and run.plan.epochs is not None else ""
    tokens = _total([s.tokens for s in run.steps])
    supervised = _total([s.supervised_tokens for s in run.steps])
    seconds = _total([s.seconds for s in run.steps])
    where = run.environment.get("device")
    place = f" on {where}" if isinstance(where, str) else ""
    return (
        f"{documents}{sources}; {steps}{epochs}, {compact(tokens)} tokens of which {compact(supervised)} carried loss; "
        f"{duration(seconds)} of training{place}."
    )


def _listed(names: list[str], most: int = 4) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} other sources"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _total(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _tiles(run: Run) -> list[tuple[str, str]]:
    first, last = loss_at_ends(run)
    tokens, supervised = throughput(run)
    return [
        _quality_tile(run),
        (_held_out(run), "held-out loss, nats per token"),
        (_change(first, last), "training loss, first and last twentieth"),
        (checks_summary(run), "checks of the seven laws"),
        (_dropped(run), "rows dropped"),
        (percent(run.plan.fill), "of the packs filled" if _is_packed(run) else "of the token slots filled"),
        (
            MISSING if supervised is None else f"{compact(supervised)}/s",
            f"tokens with loss; in all {compact(tokens)}/s",
        ),
        (duration(_total([s.seconds for s in run.steps])), "of training steps"),
    ]


def _is_packed(run: Run) -> bool:
    return run.plan.layout is None or run.plan.layout.name == "packed"


def _quality_tile(run: Run) -> tuple[str, str]:
    """Right answers where they were scored, else the share of held-out tokens that greedy decoding would get right."""
    if run.scores is None or not run.scores.kinds:
        accuracy = [e.accuracy for e in run.evaluations if e.accuracy is not None]
        value = f"{percent(accuracy[0], 0)} → {percent(accuracy[-1], 0)}" if len(accuracy) > 1 else MISSING
        return value, "of held-out tokens predicted right"
    base, tuned = (_share_right([getattr(k, side) for k in run.scores.kinds]) for side in ("base", "tuned"))
    return f"{percent(base, 0)} → {percent(tuned, 0)}", "held-out questions answered exactly right"


def _share_right(counts: list[Count | None]) -> float | None:
    known = [c for c in counts if c is not None]
    return divide(sum(c.correct for c in known), sum(c.total for c in known)) if known else None


def _held_out(run: Run) -> str:
    known = [e.loss for e in run.evaluations if e.loss is not None]
    return _change(known[0], known[-1]) if len(known) > 1 else number(known[0]) if known else MISSING


def _change(before: float | None, after: float | None) -> str:
    return MISSING if before is None or after is None else f"{number(before, 3)} → {number(after, 3)}"


def _dropped(run: Run) -> str:
    rows = [s.rows for s in run.ledger if s.rows is not None]
    return f"{sum(sum(s.dropped.values()) for s in run.ledger):,.0f} of {sum(rows):,.0f}" if rows else MISSING


def _tile(value: str, label: str) -> Markup:
    css = "missing" if value == MISSING else None
    return h("div", {"class": "tile"}, h("b", {"class": css}, value), h("span", None, label))


def _caveat(run: Run) -> str:
    seed = run.setting("train.seed")
    words = (
        f"One run with seed {seed}; nothing here says how far another seed would differ." if seed is not None else ""
    )
    best = best_evaluation(run)
    if best is not None and best is not run.evaluations[-1]:
        words += f" The lowest held-out loss, {number(best.loss)}, was at step {best.step:,}."
    return words
