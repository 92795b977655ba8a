"""`tutelage advise`: how to train on data, before anything is trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tutelage.cli.console import output
from tutelage.cli.examples import DataPath, KindName, ModelPath, Overrides, TemplateName, resolve_examples
from tutelage.cli.progress import progress_bars

if TYPE_CHECKING:
    from tutelage.evaluate.advise import Advice, Expected


class Treatment(StrEnum):
    """What becomes of rows with unknown facts; `evaluate.advise_rows.Unknown` says the rest, and loads what `--help` does without."""

    LABEL = "label"
    APART = "apart"
    DROP = "drop"
    ABSTAIN = "abstain"


def run(
    data: DataPath,
    words: Overrides = None,
    model: ModelPath = None,
    most_facts: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Facts of the data that the model is asked for, by chance; more make intervals narrower.",
            show_default="100",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Where the recommended configuration goes, as YAML."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the rows again, as JSON lines, with what the model knows of them in mind; all facts are asked for then.",
            show_default=False,
        ),
    ] = None,
    unknown: Annotated[
        Treatment | None,
        typer.Option(
            help="What --rows does with a row whose fact the model does not know: keep it, with the "
            "category of each fact as a label; set it apart, in FILE-unknown; drop it; or let it abstain.",
            show_default="label",
        ),
    ] = None,
    abstention: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The answer with which to abstain.", show_default="I do not know."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the figures go, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    kind: KindName = None,
    template: TemplateName = None,
) -> None:
    """Read training data through the model to be trained, and say how to train on them, why, and what may go wrong.

    The model is asked for short facts of the data: what it knows already is a matter of behaviour, what it does not is knowledge.
    LoRA or full, learning rate, epochs, rank and replay follow, each with its figure and whether that was measured on your data or is
    a rule of thumb. A few steps are timed. What you set yourself stays. Nothing is trained.

    Examples:
        tutelage advise chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage advise chats.jsonl --model lab --template chatml -c advised.yaml
        tutelage train advised.yaml
        tutelage advise chats.jsonl --model lab --template chatml --rows honest.jsonl --unknown abstain
    """
    from tutelage.errors import ConfigError
    from tutelage.evaluate.advise import MOST_FACTS, advise
    from tutelage.evaluate.advise_rows import ABSTENTION, Unknown, require_one_source, write_rows
    from tutelage.files.atomic import write_json, write_text
    from tutelage.files.encode import encode_json
    from tutelage.train.environment import choose_device

    resolved = resolve_examples(data, words, model=model, kind=kind, template=template)
    if rows is None and (unknown or abstention):
        raise ConfigError("--unknown and --abstention say what --rows does", mend="give --rows FILE too")
    source = require_one_source(resolved.config, rows) if rows is not None else None
    with progress_bars() as progress:
        found = advise(
            resolved,
            device=choose_device(resolved.config.train),
            progress=progress,
            most_facts=most_facts if rows is not None else most_facts or MOST_FACTS,
        )
    content = found.to_json()
    counts = None
    if rows is not None and source is not None:
        treatment = Unknown((unknown or Treatment.LABEL).value)
        counts = write_rows(rows, source, found.known, treatment, abstention=abstention or ABSTENTION)
        content["rows"] = vars(counts)
    if out is not None:
        write_json(out, content)
    if config is not None:
        write_text(config, f"# Advice of `tutelage advise` on {data}; the goal is {found.goal.value}.\n{found.yaml}")
    if as_json:
        typer.echo(encode_json(content))
        return
    _print(found, config)
    if counts is not None:
        output().print(f"rows         {rows}: {counts}", markup=False, soft_wrap=True)


def _print(found: Advice, written: Path | None) -> None:
    show = output().print
    show(
        f"What training would change in [figure]{escape(found.base)}[/]: [figure]{found.goal.value}[/]; {escape(found.why)}."
    )
    if found.shift is not None:
        show(
            f"Of {found.shift.tokens:,} tokens of answers, {found.shift.unshifted:.0%} are the base's own choice in the chat template, "
            f"{found.shift.marginal:.0%} among its first three, {found.shift.shifted:.0%} beyond.\n"
        )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("setting", "value", "why", "rests on"):
        table.add_column(name, overflow="fold")
    for one in found.recommendations:
        value = str(one.value) if one.yours in (None, one.value) else f"{one.value} (yours stays: {one.yours})"
        value += f" (needs {one.needs})" if one.needs else ""
        table.add_row(one.key, f"[figure]{escape(value)}[/]", escape(one.reason), one.basis.value)
    show(table)
    show(f"\n{_expected(found.expected)}\n")
    for number, risk in enumerate(found.risks, start=1):
        show(f"[problem]{number}. {escape(risk.title)}[/]")
        show(f"   {escape(risk.detail)}")
        if risk.rows:
            show(f"   [quiet]such as {escape(', '.join(risk.rows))}[/]")
        show(f"   [mend]try[/] {escape(risk.mend)}")
    if not found.risks:
        show("[good]no risk was found in the data[/]")
    show("\nWhat cannot be known beforehand:")
    for line in found.not_known:
        show(f"   [quiet]{escape(line)}[/]")
    if written is None:
        show("\nThe configuration (--config FILE writes it):\n")
        show(found.yaml, markup=False)
    else:
        show(f"\ntrain with   tutelage train {written}", markup=False, soft_wrap=True)


def _expected(expected: Expected) -> str:
    least, most = (seconds / 60 for seconds in expected.seconds)
    memory = "not known" if expected.peak_bytes is None else f"{expected.peak_bytes / 1e9:.2g} GB"
    return (
        f"On {escape(expected.device)}: {expected.steps:,} steps, {least:.2g} to {most:.2g} minutes without evaluations, by a few that were "
        f"timed; {memory} at the peak of a step"
    )
