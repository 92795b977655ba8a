"""How training went: loss, learning rate, gradient norm and speed over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.report.charts import Series, line_chart, smooth
from tutelage.report.figures import compact, duration, number, percent
from tutelage.report.gate import gate_charts
from tutelage.report.markup import Markup, Section, h, join, table
from tutelage.report.records import Evaluation, HeldOutSums, Run, Step, divide


def training_section(run: Run) -> Section:
    """Return every curve over training steps, and the table of evaluations."""
    charts = [
        _loss_chart(run),
        *_source_charts(run),
        *_slice_charts(run),
        _accuracy_chart(run.evaluations),
        _rate_chart(run.steps),
        _norm_chart(run),
        *gate_charts(run),
        _replay_chart(run.steps),
        _speed_chart(run.steps),
        _tokens_chart(run.steps),
        _fill_chart(run.steps),
    ]
    lost = sum(s.loss is None for s in run.steps)
    warning = f"{lost} of {len(run.steps)} steps have no finite loss; they are gaps in the curves." if lost else None
    return Section(
        "training",
        "Training",
        join(
            [
                h("p", {"class": "bad"}, warning) if warning else None,
                h("div", {"class": "charts"}, charts),
                _evaluation_table(run.evaluations),
            ]
        ),
    )


def window(num_steps: int) -> int:
    """Return half the width of the smoothing window: a fortieth of the run on each side."""
    return max(1, num_steps // 40) if num_steps > 12 else 0


def training_loss(steps: Sequence[Step]) -> list[float | None]:
    """Return the smoothed training loss: loss over weight of a centred window of steps."""
    return smooth([s.loss_sum for s in steps], [s.weight_sum for s in steps], window(len(steps)))


def speed(steps: Sequence[Step], field: str) -> list[float | None]:
    """Return `field` per second over a centred window of steps."""
    return smooth([getattr(s, field) for s in steps], [s.seconds for s in steps], window(len(steps)))


def _loss_chart(run: Run) -> Markup:
    x = [s.step for s in run.steps]
    half = window(len(x))
    series = [Series("training, smoothed" if half else "training", x, training_loss(run.steps))]
    if half:
        series.append(Series("training, each step", x, [s.loss for s in run.steps], faint=True))
    if run.evaluations:
        held_out = [e.loss for e in run.evaluations]
        series.append(Series("held-out", [e.step for e in run.evaluations], held_out, colour=1, marks=True))
    note = f"smoothed over {2 * half + 1} steps, weighted by tokens" if half else ""
    return line_chart("Loss", series, x_label="step", y_label="nats per token", note=note)


def _source_charts(run: Run) -> list[Markup]:
    """Curves per source, where there is more than one; a source keeps its colour in both charts."""
    trained = dict.fromkeys(name for step in run.steps for name in step.per_source)
    evaluated = dict.fromkeys(name for e in run.evaluations for name in e.per_source)
    colours = {name: place for place, name in enumerate([*trained, *(n for n in evaluated if n not in trained)])}
    charts = []
    if len(trained) > 1:
        series = [_trained(run.steps, [s.per_source for s in run.steps], name, colours[name]) for name in trained]
        charts.append(line_chart("Training loss per source", series, x_label="step", y_label="nats per token"))
    if len(evaluated) > 1:
        series = [
            _evaluated(run.evaluations, [e.per_source for e in run.evaluations], name, colours[name])
            for name in evaluated
        ]
        charts.append(line_chart("Held-out loss per source", series, x_label="step", y_label="nats per token"))
    return charts


def _slice_charts(run: Run) -> list[Markup]:
    """Curves per turn, where there is more than one, and per part of an answer; a slice keeps its colour in all charts."""
    trained_on = (name for step in run.steps for name in step.per_slice)
    evaluated_on = (name for evaluation in run.evaluations for name in evaluation.per_slice)
    names = dict.fromkeys([*trained_on, *evaluated_on])
    turns = sorted(name for name in names if name.startswith("turn "))
    parts = [name for name in names if not name.startswith("turn ")]
    charts = []
    for what, group in (("turn", turns), ("part of an answer", parts)):
        if len(group) < 2:
            continue
        trained = [
            _trained(run.steps, [s.per_slice for s in run.steps], name, colour) for colour, name in enumerate(group)
        ]
        held_out = [
            _evaluated(run.evaluations, [e.per_slice for e in run.evaluations], name, colour)
            for colour, name in enumerate(group)
        ]
        charts.append(line_chart(f"Training loss per {what}", trained, x_label="step", y_label="nats per token"))
        if run.evaluations:
            charts.append(line_chart(f"Held-out loss per {what}", held_out, x_label="step", y_label="nats per token"))
    return charts


def _trained(
    steps: Sequence[Step], sums: Sequence[Mapping[str, tuple[float | None, float | None]]], name: str, colour: int
) -> Series:
    """Return the smoothed curve of what is called `name` in the sums of each step."""
    own = [of_step.get(name, (None, None)) for of_step in sums]
    losses = smooth([loss for loss, _ in own], [weight for _, weight in own], window(len(steps)))
    return Series(name, [step.step for step in steps], losses, colour=colour)


def _evaluated(
    evaluations: Sequence[Evaluation], sums: Sequence[Mapping[str, HeldOutSums]], name: str, colour: int
) -> Series:
    losses = [of_evaluation[name].loss if name in of_evaluation else None for of_evaluation in sums]
    return Series(name, [e.step for e in evaluations], losses, colour=colour, marks=True)


def _accuracy_chart(evaluations: Sequence[Evaluation]) -> Markup:
    share = [100 * e.accuracy if e.accuracy is not None else None for e in evaluations]
    series = [Series("held-out", [e.step for e in evaluations], share, colour=1, marks=True)]
    note = "supervised tokens that greedy decoding would get right, given the true text before them"
    return line_chart("Held-out token accuracy", series, x_label="step", y_label="%", note=note)


def _rate_chart(steps: Sequence[Step]) -> Markup:
    series = [Series("learning rate", [s.step for s in steps], [s.learning_rate for s in steps])]
    return line_chart("Learning rate", series, x_label="step", y_label="per step", from_zero=True)


def _norm_chart(run: Run) -> Markup:
    x = [s.step for s in run.steps]
    series = [Series("before clipping", x, [s.grad_norm for s in run.steps])]
    clip = run.setting("train.clip_grad_norm")
    if isinstance(clip, int | float) and clip > 0 and x:
        series.append(Series(f"clipped above {clip:g}", [x[0], x[-1]], [float(clip)] * 2, colour=6))
    return line_chart("Gradient norm", series, x_label="step", y_label="L2 norm", from_zero=True)


def _replay_chart(steps: Sequence[Step]) -> Markup | None:
    """Return what the gate made tokens of replay weigh; None where it left that alone."""
    weights = [s.replay_weight for s in steps]
    if all(weight in (None, 1) for weight in weights):
        return None
    series = [Series("replay", [s.step for s in steps], weights)]
    note = "by how much the gate multiplied the weight of plain text"
    return line_chart("Weight of replay", series, x_label="step", y_label="times", from_zero=True, note=note)


def _speed_chart(steps: Sequence[Step]) -> Markup:
    x = [s.step for s in steps]
    series = [
        Series("all tokens", x, speed(steps, "tokens")),
        Series("tokens with loss", x, speed(steps, "supervised_tokens"), colour=1),
    ]
    return line_chart("Throughput", series, x_label="step", y_label="tokens per second", from_zero=True)


def _tokens_chart(steps: Sequence[Step]) -> Markup:
    x = [s.step for s in steps]
    series = [
        Series("all tokens", x, [s.tokens for s in steps]),
        Series("tokens with loss", x, [s.supervised_tokens for s in steps], colour=1),
    ]
    return line_chart("Tokens in each step", series, x_label="step", y_label="tokens", from_zero=True)


def _fill_chart(steps: Sequence[Step]) -> Markup:
    x = [s.step for s in steps]
    series = [Series("fill", x, [100 * s.fill if s.fill is not None else None for s in steps], colour=2)]
    note = "part of the token slots that hold a token of a document"
    return line_chart("Packing fill", series, x_label="step", y_label="%", note=note)


def _evaluation_table(evaluations: Sequence[Evaluation]) -> Markup | None:
    if not evaluations:
        return h("p", {"class": "missing"}, "No held-out data was evaluated in this run.")
    rows = [
        (
            f"{e.step:,}",
            number(e.loss),
            number(e.perplexity),
            percent(e.accuracy),
            compact(_tokens(e)),
            duration(e.seconds),
        )
        for e in evaluations
    ]
    header = ("step", "held-out loss", "perplexity", "token accuracy", "tokens", "time")
    summary = h("summary", None, f"All {len(rows)} evaluations")
    return h("details", None, summary, table(header, rows, numeric=range(6)))


def _tokens(evaluation: Evaluation) -> float | None:
    counts = [s.tokens for s in evaluation.per_source.values() if s.tokens is not None]
    return sum(counts) if counts else None


def held_out_change(run: Run) -> float | None:
    """Return the relative change of the held-out loss from the first evaluation to the last."""
    known = [e.loss for e in run.evaluations if e.loss is not None]
    ratio = divide(known[-1], known[0]) if len(known) > 1 else None
    return ratio - 1 if ratio is not None else None
