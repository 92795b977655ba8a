"""`tutelage eval`: what fine-tuning did to a model, against its base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tutelage.cli.console import output
from tutelage.cli.progress import progress_bars

if TYPE_CHECKING:
    from tutelage.config.schema import Config
    from tutelage.evaluate.measures import Contrast, Measure
    from tutelage.evaluate.stats import Change
    from tutelage.evaluate.story import Evaluation

_ARROWS = {"up": "▲", "down": "▼", "not distinguishable": "·"}


def run(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run directory, or a model or adapter folder.")
    ],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model before fine-tuning; a run knows its own.")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Examples or texts that were not trained on, in place of those of the run.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Tasks that code can score, in place of those of the run: constraints as in IFEval, numbers as in GSM8K, exact "
            "answers, choices, refusals.",
            show_default=False,
        ),
    ] = None,
    harness: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="Tasks of lm-evaluation-harness, in place of those of the run; needs pip install 'tutelage[harness]'.",
            show_default=False,
        ),
    ] = None,
    harness_folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="YAML files of tasks of your own for --harness.", show_default=False),
    ] = None,
    retrieve: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="Texts whose best passages stand before each question, in place of those of the run (data.retrieve.corpus).",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=0, help="Held-out prompts that both models answer.", show_default="evaluate.prompts: 200"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer in tokens.", show_default="evaluate.max_new_tokens: 128"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the figures go as JSON; by default into the run.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Compare a tuned model with its base on data that it was not trained on: what it learned, forgot, recites, repeats.

    Every change has a 95 % interval over documents or prompts; one that could be chance is called not distinguishable. What went too
    far is named first, with the training rows most tied to it and what to try. A run's figures become part of its report.

    Examples:
        tutelage eval runs/mine
        tutelage eval my-model --base Qwen/Qwen3-0.6B --held-out chats.jsonl --held-out texts.jsonl
        tutelage eval runs/mine --tasks ifeval.jsonl --tasks gsm8k_test.jsonl.gz --max-new-tokens 512
        tutelage eval runs/mine --harness arc_easy --harness hellaswag
    """
    import torch

    from tutelage.evaluate.story import evaluate
    from tutelage.files.atomic import write_json
    from tutelage.files.encode import encode_json

    words = [
        *([f"evaluate.tasks={json.dumps([str(path) for path in tasks])}"] if tasks else []),
        *([f"evaluate.harness.tasks={json.dumps(harness)}"] if harness else []),
        *([f"evaluate.harness.folder={json.dumps(str(harness_folder))}"] if harness_folder else []),
        *(_retrieval(model, retrieve) if retrieve else []),
        *([f"evaluate.prompts={prompts}"] if prompts is not None else []),
        *([f"evaluate.max_new_tokens={max_new_tokens}"] if max_new_tokens is not None else []),
    ]
    config, tuned, kept = _resolve(model, base, held_out or [], words, needs_data=not tasks and not harness)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    with progress_bars() as progress:
        found = evaluate(config, tuned, device=place, progress=progress)
    target = out or kept
    if target is not None:
        write_json(target, found.to_json())
    if as_json:
        typer.echo(encode_json(found.to_json()))
        return
    _print(found)
    if target is not None:
        output().print(f"figures   {target}", markup=False, soft_wrap=True)
    if target == kept and kept is not None:
        from tutelage.report.page import write_report

        output().print(f"report    {write_report(model)}", markup=False, soft_wrap=True)


def _retrieval(model: Path, corpus: str) -> list[str]:
    """Return settings that retrieve from `corpus`, by the rule that the model in the folder `model` was trained with, if it was."""
    from tutelage.data.retrieve import recall

    known = recall(model)
    settings = {"corpus": corpus}
    if known is not None:  # of a run its configuration knows
        settings |= {"passages": str(known.passages), "passage_words": str(known.passage_words)}
    return [f"data.retrieve.{key}={json.dumps(value) if key == 'corpus' else value}" for key, value in settings.items()]


def _resolve(
    model: Path, base: str | None, held_out: list[str], settings: list[str], *, needs_data: bool
) -> tuple[Config, Path, Path | None]:
    """Return the configuration of the base and its data, the folder of the tuned model, and the run's file for the figures.

    Raises: RunDirError when a run has no result yet; ConfigError when a model comes without its base or without data.
    """
    from tutelage.config.load import load_config
    from tutelage.errors import ConfigError, RunDirError
    from tutelage.files.rundir import RunDir

    words = [f"data.held_out={json.dumps([{'path': path} for path in held_out])}"] if held_out else []
    words += settings
    words += [f"model.path={json.dumps(base)}"] if base else []
    run = RunDir(model)
    if run.status_file.is_file():
        if not run.final.is_dir():
            raise RunDirError(f"{model} has no result yet", mend="let it end first: `tutelage train --resume`")
        return load_config(run.config, words).config, run.final, run.evaluation
    if not base or (needs_data and not held_out):
        missing = "--base MODEL" if not base else "--held-out FILE, --tasks FILE or --harness TASK"
        raise ConfigError(f"{model} is not a run directory, so its data and base are not known", mend=f"give {missing}")
    template = model / "chat_template.jinja"  # both models are asked in the template that the tuned one was tuned in
    words += [f"model.template={json.dumps(str(template))}"] if template.is_file() else []
    return load_config(None, words).config, model, None


def _print(found: Evaluation) -> None:
    console = output()
    console.print(f"[figure]{escape(found.tuned)}[/] compared with its base [figure]{escape(found.base)}[/]\n")
    for number, finding in enumerate(found.findings, start=1):
        console.print(f"[problem]{number}. {escape(finding.title)}[/]")
        console.print(f"   {escape(finding.detail)}")
        if finding.rows:
            console.print(f"   [quiet]such as {escape(', '.join(finding.rows))}[/]")
        console.print(f"   [mend]try[/] {escape(finding.mend)}")
    if not found.findings:
        console.print("[good]nothing went further than it may[/]")
    table = Table(box=None, header_style="dim")
    for name in ("", "figure", "unit"):
        table.add_column(name)
    for name in ("base", "tuned", "change (95 % interval)", "data"):
        table.add_column(name, justify="right")
    for measure in found.measures:
        table.add_row(*_row(measure))
    console.print()
    console.print(table)
    if found.contrasts:
        console.print()
        console.print(_contrasts(found.contrasts))
    if found.shift is not None:
        console.print(
            f"\nof {found.shift.tokens:,} tokens it says, {found.shift.unshifted:.0%} are the base's own choice, "
            f"{found.shift.marginal:.0%} among its first three, {found.shift.shifted:.0%} beyond; "
            f"KL(tuned || base) is {found.shift.kl:.3g} nats a token"
        )


def _contrasts(contrasts: Sequence[Contrast]) -> Table:
    table = Table(box=None, header_style="dim")
    for name in ("trained rows against held-out rows", "unit"):
        table.add_column(name)
    for name in ("held out", "trained", "difference (95 % interval)"):
        table.add_column(name, justify="right")
    for one in contrasts:
        change = one.change
        table.add_row(escape(one.title), one.unit, _figure(change.base), _figure(change.tuned), _change(change))
    return table


def _row(measure: Measure) -> tuple[str, ...]:
    change = measure.change
    style = {"lower": {"up": "problem", "down": "good"}, "higher": {"up": "good", "down": "problem"}}
    direction = change.direction.value if change.direction is not None else ""
    colour = style.get(measure.better.value, {}).get(
        direction, "quiet" if direction == "not distinguishable" else "figure"
    )
    arrow = f"[{colour}]{_ARROWS.get(direction, '')}[/]"
    data = _figure(measure.from_data.base) if measure.from_data is not None else ""
    return (
        arrow,
        escape(measure.title),
        measure.unit,
        _figure(change.base),
        _figure(change.tuned),
        _change(change),
        data,
    )


def _change(change: Change) -> str:
    if change.difference is None or change.low is None or change.high is None:
        return "not measured"
    if change.direction is not None and change.direction.value == "not distinguishable":
        return f"not distinguishable ({change.low:+.3g} to {change.high:+.3g})"
    return f"{change.difference:+.3g} ({change.low:+.3g} to {change.high:+.3g})"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
