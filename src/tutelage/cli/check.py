"""`tutelage check`: whether data may be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tutelage.cli.console import errors, output
from tutelage.cli.edge import exit_code
from tutelage.cli.examples import DataPath, KindName, ModelPath, Overrides, TemplateName, count, resolve_examples
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from tutelage.config.schema import Config
    from tutelage.train.prepare import Prepared

_BAR_COLUMNS = 40


def run(
    data: DataPath,
    words: Overrides = None,
    model: ModelPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also load the model and measure isolation, layout and causality on a real pack."),
    ] = False,
    kind: KindName = None,
    template: TemplateName = None,
) -> None:
    """Read, render and check everything as training would, and say whether it may be trained on.

    The exit code is 0 when it may, otherwise that of the first problem: 3 data, 4 chat template, 7 isolation. Only
    tokenizer files are needed as the model, except with --probe.

    Examples:
        tutelage check chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage check mine.yaml
        tutelage check chats.jsonl --model my-model --probe --json
    """
    from tutelage.cli.verdict import problems_of, warnings_of
    from tutelage.train.prepare import prepare

    config = resolve_examples(data, words, model=model, kind=kind, template=template).config
    try:
        with errors().status("reading"):
            prepared = prepare(config, lenient=True)
    except TutelageError as error:
        if as_json:  # a program that reads the verdict gets one, whatever went wrong
            _print_verdict({"may_train": False, "problems": [_problem(error)]})
        raise
    problems = problems_of(prepared, config)
    warnings = warnings_of(prepared, config)
    probes: list[dict[str, Any]] = []
    if probe and prepared.documents:
        try:
            probes, reason = _probe(prepared, config)
            warnings += [reason]
        except TutelageError as error:
            problems.append(error)
    if as_json:
        _print_json(prepared, problems, warnings, probes)
    else:
        _print_findings(prepared, problems, warnings, probes)
    if problems:
        raise typer.Exit(exit_code(problems[0]))


def _probe(prepared: Prepared, config: Config) -> tuple[list[dict[str, Any]], str]:
    """Return the figures of the probes that training makes before its first step, and the layout that follows."""
    import torch

    from tutelage.config.schema import Precision
    from tutelage.model.load import read_config
    from tutelage.model.locate import locate_model
    from tutelage.train.environment import choose_device
    from tutelage.train.layout import choose_layout
    from tutelage.train.plan import plan_run
    from tutelage.train.precision import choose_precision
    from tutelage.train.sharing import ask_model
    from tutelage.train.trainee import Start, make_trainee

    device = choose_device(config.train)
    source = locate_model(config.model.path, revision=config.model.revision)
    precision = choose_precision(config.train, device, read_config(source)).precision
    plan = plan_run(prepared.documents, prepared.mixture, config)
    trainee = make_trainee(config, start=Start.WEIGHTS, device=device, precision=precision, new_ids=prepared.new_ids)
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16)
    choice = choose_layout(
        config.train.packing,
        trainee.model,
        plan.steps,
        prepared.documents,
        micro_tokens=plan.slot_tokens,
        device=device,
        autocast=autocast(),
    )
    checks, said = list(choice.checks), f"layout {choice.layout.value}: {choice.reason}"
    if plan.sharing.prefixes is not None:
        sharing, check = ask_model(
            plan.sharing, trainee.model, plan.steps, prepared.documents, layout=choice.layout, autocast=autocast()
        )
        checks += [check] if check is not None else []
        said += f"; shared prefixes: {sharing.reason}"
    return [vars(check) for check in checks], said


def _print_json(
    prepared: Prepared, problems: Sequence[TutelageError], warnings: Sequence[str], probes: Sequence[dict[str, Any]]
) -> None:
    from tutelage.chat.documents import lengths_of
    from tutelage.cli.verdict import figures_of, histogram

    verdict = {
        "may_train": not problems,
        "problems": [
            {"kind": type(error).__name__, "problem": error.problem, "mend": error.mend} for error in problems
        ],
        "warnings": warnings,
        "figures": figures_of(prepared),
        "lengths": histogram(lengths_of(prepared.documents).tolist()),
        "shares": prepared.mixture.realised_shares(),
        "contract": prepared.contract.to_json() if prepared.contract is not None else None,
        "ledger": prepared.ledger.to_json(),
        "quarantine": [vars(entry) for entry in prepared.ledger.quarantine],
        "probes": probes,
    }
    _print_verdict(verdict)


def _print_verdict(verdict: dict[str, Any]) -> None:
    from tutelage.files.encode import encode_json

    typer.echo(encode_json(verdict))


def _problem(error: TutelageError) -> dict[str, str]:
    return {"kind": type(error).__name__, "problem": error.problem, "mend": error.mend}


def _print_findings(
    prepared: Prepared, problems: Sequence[TutelageError], warnings: Sequence[str], probes: Sequence[dict[str, Any]]
) -> None:
    show = output().print
    for line in prepared.news:
        show(f"[quiet]{escape(line)}[/]")
    show(prepared.ledger.table())
    for account in prepared.ledger.sources.values():
        show(f"{escape(account.name)} read as {escape(account.taken_as or account.kind)}")
    _print_figures(prepared)
    _print_lengths(prepared)
    _print_shares(prepared)
    for check in prepared.contract.checks if prepared.contract is not None else ():
        _print_check(check.passed, check.name, check.detail)
    for result in probes:
        _print_check(result["passed"], result["name"], result["detail"])
        show("   [quiet]" + escape(", ".join(f"{name} {value:g}" for name, value in result["figures"].items())) + "[/]")
    for warning in warnings:
        show(f"[warn]note[/] {escape(warning)}")
    for error in problems:
        show(f"[problem]problem[/] {escape(error.problem)}")
        if error.mend:
            show(f"[mend]   mend[/] {escape(error.mend)}")
    verdict = "[problem]It may not be trained on as it is.[/]" if problems else "[good]It may be trained on.[/]"
    show(verdict)


def _print_figures(prepared: Prepared) -> None:
    from tutelage.cli.verdict import figures_of

    figures = figures_of(prepared)
    share = figures["supervised_share"]
    output().print(
        f"\n{count(figures['documents'], 'document')}, {figures['tokens']:,} tokens, "
        f"{figures['supervised_tokens']:,} with loss" + (f" ({share:.1%})" if share is not None else "")
    )
    if figures["held_out_documents"]:
        output().print(f"{count(figures['held_out_documents'], 'document')} held out")


def _print_lengths(prepared: Prepared) -> None:
    from tutelage.chat.documents import lengths_of
    from tutelage.cli.verdict import histogram

    bins = histogram(lengths_of(prepared.documents).tolist())
    tallest = max((one.documents for one in bins), default=0)
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for one in bins:
        bar = "█" * round(_BAR_COLUMNS * one.documents / tallest) or ("▏" if one.documents else "")
        table.add_row(f"{one.above + 1:,}-{one.up_to:,} tokens", f"{one.documents:,}", f"[good]{bar}[/]")
    output().print(table)


def _print_shares(prepared: Prepared) -> None:
    shares = prepared.mixture.realised_shares()
    if len(shares) < 2:
        return
    table = Table(title="shares of the trained tokens", title_justify="left")
    for heading in ("source", "asked", "realised", "documents", "trained tokens"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for share in shares:
        asked = "the rest" if share.asked is None else f"{share.asked:.1%}"
        table.add_row(share.name, asked, f"{share.realised:.1%}", f"{share.documents:,}", f"{share.supervised:,}")
    output().print(table)


def _print_check(passed: bool, name: str, detail: str) -> None:
    mark = "[good]ok[/]  " if passed else "[problem]no[/]  "
    output().print(f"{mark}{escape(name)}  [quiet]{escape(detail)}[/]")
