"""Several runs on one page: how they differ in their settings, their curves overlaid, their figures side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tutelage.report.answers import answer_text, score_text, spoken
from tutelage.report.charts import NUM_COLOURS, Series, line_chart
from tutelage.report.checks import figures_text, verdict
from tutelage.report.curves import held_out_change, speed, training_loss
from tutelage.report.effect import change_text
from tutelage.report.figures import MISSING, compact, count, duration, number, percent
from tutelage.report.headline import best_evaluation, checks_summary, loss_at_ends, throughput
from tutelage.report.markup import Child, Markup, Section, h, join, missing, table
from tutelage.report.records import Check, Effect, Run, Sample, Step
from tutelage.report.settings import flatten, show_value

_SAME = ("run.",)  # settings that differ by nature


def comparison(runs: Sequence[Run]) -> tuple[Markup, list[Section]]:
    """Return the top of the page and its sections."""
    names = labels(runs)
    top = join(
        [
            h("p", {"class": "kicker"}, "supervised fine-tuning with tutelage · comparison"),
            h("h1", None, f"{len(runs)} runs compared"),
            h(
                "p",
                {"class": "why"},
                "Single runs: a difference smaller than that between seeds of one setting says nothing.",
            ),
        ]
    )
    scores, effects = _scores(runs, names), _effects(runs, names)
    return top, [
        Section("figures", "Figures", _figures(runs, names)),
        Section("differences", "Differences in the settings", _differences(runs, names), label="Differences"),
        Section("curves", "Curves", h("div", {"class": "charts"}, _curves(runs, names))),
        *([effects] if effects is not None else []),
        *([scores] if scores is not None else []),
        Section("answers", "Answers", _answers(runs, names)),
        Section("checks", "Checks of the laws", _checks(runs, names)),
    ]


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a distinct name for each run: its folder's name, with as much of the path as it takes."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({place})" for place, run in enumerate(runs, start=1)]


def _header(names: Sequence[str]) -> list[Child]:
    return ["", *(h("span", {"class": f"swatch c{i % NUM_COLOURS}"}, name) for i, name in enumerate(names))]


def _figures(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    def total(run: Run, field: Callable[[Step], float | None]) -> float | None:
        known = [value for value in map(field, run.steps) if value is not None]
        return sum(known) if known else None

    def last_loss(run: Run) -> float | None:
        return run.evaluations[-1].loss if run.evaluations else None

    def best(run: Run) -> str:
        found = best_evaluation(run)
        return f"{number(found.loss)} at step {found.step:,}" if found else MISSING

    def change(run: Run) -> str:
        found = held_out_change(run)
        return f"{100 * found:+.1f} %" if found is not None else MISSING

    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("status", lambda r: r.status or MISSING),
        ("model", lambda r: str(r.setting("model.path") or MISSING)),
        ("method", lambda r: str(r.setting("train.method") or MISSING)),
        ("steps", lambda r: count(len(r.steps)) if r.steps else MISSING),
        ("tokens with loss", lambda r: compact(total(r, lambda s: s.supervised_tokens))),
        ("training time", lambda r: duration(total(r, lambda s: s.seconds))),
        ("tokens per second", lambda r: compact(throughput(r)[0])),
        ("tokens with loss per second", lambda r: compact(throughput(r)[1])),
        ("packing fill", lambda r: percent(r.plan.fill)),
        ("training loss, last twentieth", lambda r: number(loss_at_ends(r)[1])),
        ("held-out loss at the end", lambda r: number(last_loss(r))),
        ("change of held-out loss", change),
        ("lowest held-out loss", best),
        ("checks of the laws", checks_summary),
    ]
    return table(_header(names), ([name, *map(show, runs)] for name, show in rows))


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """Table of the settings that differ; null and absent are the same."""
    settings = [{key: value for key, value in flatten(run.config) if value is not None} for run in runs]
    keys = list(dict.fromkeys(key for values in settings for key in values if not key.startswith(_SAME)))
    shown = {key: [show_value(values[key]) if key in values else None for values in settings] for key in keys}
    rows = [
        [key, *(missing("not set") if v is None else v for v in row)] for key, row in shown.items() if len(set(row)) > 1
    ]
    return table(_header(names), rows, css="settings") if rows else h("p", None, "The runs have the same settings.")


def _effects(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    """What fine-tuning did to each model; None where no run was evaluated."""
    if all(run.effect is None for run in runs):
        return None
    figures = [{one.key: one for one in run.effect.figures} if run.effect is not None else {} for run in runs]
    known = {key: one for of_run in figures for key, one in of_run.items()}
    rows: list[list[Child]] = [
        ["findings", *(missing("not evaluated") if run.effect is None else _titles(run.effect) for run in runs)]
    ]
    rows += [
        [f"{one.title}, {one.unit}", *(change_text(own[key]) if key in own else MISSING for own in figures)]
        for key, one in known.items()
    ]
    why = "Changes from each run's own base (`tutelage eval`), with 95 % intervals over documents or prompts."
    return Section(
        "effect",
        "What it did to the models",
        join([h("p", {"class": "why"}, why), table(_header(names), rows)]),
        label="Effect",
    )


def _titles(effect: Effect) -> Markup:
    if not effect.findings:
        return h("span", {"class": "good"}, "none")
    return h("ol", None, (h("li", None, finding.title) for finding in effect.findings))


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[Markup]:
    def overlay(title: str, unit: str, x: Callable[[Run], Sequence[float]], y: Callable[[Run], Sequence[float | None]], *, marks: bool = False, x_label: str = "step", from_zero: bool = False) -> Markup:  # fmt: skip
        series = [
            Series(name, x(run), y(run), colour=i, marks=marks)
            for i, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        return line_chart(title, series, x_label=x_label, y_label=unit, from_zero=from_zero)

    nats = "nats per token"
    steps = lambda run: [s.step for s in run.steps]  # noqa: E731
    return [
        overlay("Training loss", nats, steps, lambda r: training_loss(r.steps)),
        overlay("Training loss over tokens with loss seen", nats, _tokens_seen, lambda r: training_loss(r.steps), x_label="tokens with loss seen"),
        overlay("Held-out loss", nats, lambda r: [e.step for e in r.evaluations], lambda r: [e.loss for e in r.evaluations], marks=True),
        overlay("Learning rate", "learning rate", steps, lambda r: [s.learning_rate for s in r.steps], from_zero=True),
        overlay("Gradient norm", "L2 norm", steps, lambda r: [s.grad_norm for s in r.steps], from_zero=True),
        overlay("Throughput", "tokens with loss per second", steps, lambda r: speed(r.steps, "supervised_tokens"), from_zero=True),
    ]  # fmt: skip


def _tokens_seen(run: Run) -> list[float]:
    seen, total = [], 0.0
    for step in run.steps:
        total += step.supervised_tokens or 0
        seen.append(total)
    return seen


def _scores(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    kinds = [{k.name: k for k in run.scores.kinds} if run.scores is not None else {} for run in runs]
    order = list(dict.fromkeys(name for side in kinds for name in side))
    if not order:
        return None
    rows = (
        [spoken(name), *(score_text(side[name].tuned) if name in side else missing() for side in kinds)]
        for name in order
    )
    return Section(
        "scores", "Questions answered exactly right after training", table(_header(names), rows), label="Scores"
    )


def _answers(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    last = [_last_answers(run) for run in runs]
    prompts = [p for p in dict.fromkeys(p for side in last for p in side) if sum(p in side for side in last) > 1]
    if not prompts:
        return h("p", {"class": "missing"}, "No prompt was answered by two of these runs.")
    rows = (
        [h("div", {"class": "text"}, "\n".join(text for _, text in prompt)), *(answer_text(side[prompt].answer) if prompt in side else missing() for side in last)]
        for prompt in prompts
    )  # fmt: skip
    return table(_header(names), rows)


def _last_answers(run: Run) -> dict[tuple[tuple[str, str], ...], Sample]:
    return {sample.prompt: sample for sample in sorted(run.samples, key=lambda s: s.step)}


def _checks(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    sides: list[dict[tuple[str, str], Check]] = [{(c.law, c.name): c for c in run.checks} for run in runs]
    keys = list(dict.fromkeys(key for side in sides for key in side))
    if not keys:
        return h("p", {"class": "missing"}, "No run has a receipt.")
    rows = ([f"{law}: {name}", *(_check(side.get((law, name))) for side in sides)] for law, name in keys)
    return table(_header(names), rows)


def _check(check: Check | None) -> Markup:
    if check is None:
        return missing("not in this receipt")
    return join([verdict(check.passed), h("div", {"class": "soft"}, figures_text(check.figures))])
