"""`tutelage generate`: data made by models, with every request accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tutelage.cli.console import errors, output, say_problem

if TYPE_CHECKING:
    from tutelage.generate.journal import Journal
    from tutelage.generate.sampler import Sampler, Sampling
    from tutelage.synthesize.best_of_n import Made

EXIT_CAP = 75
_CHOSEN_BY = "task (each row's own check), exact, number, contains, constraints, or module:function of your own"

app = typer.Typer(no_args_is_help=True, help="Make data with models, and account for every request.")


@app.command("best-of-n")
def best_of_n(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="JSON-lines file of prompts, with what their answers are checked by."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything goes; the same folder goes on.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL_OR_RUN", help="Who answers, in this process: a folder, Hub name, or run directory."
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Who answers, over HTTP: an OpenAI-compatible address that ends in /v1."),
    ] = None,
    server_model: Annotated[str, typer.Option(metavar="NAME", help="The model's name at the server.")] = "",
    n: Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")] = 4,
    scorer: Annotated[str, typer.Option(metavar="NAME", help=f"What chooses: {_CHOSEN_BY}.")] = "task",
    held_out_scorer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A second scorer that chooses nothing, to see whether the first is being gamed."
        ),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Answers that are kept of each prompt.")] = 1,
    at_least: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Lowest score that is kept.", show_default="1 where code checks the answer"),
    ] = None,
    window: Annotated[
        str,
        typer.Option(metavar="LOW:HIGH", help="Keep prompts with this share of right answers, such as 0.1:0.9."),
    ] = "0:1",
    sharpness: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Draw answers with probability proportional to exp(sharpness x score), in place of the best.",
            show_default="the best",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 gives the same answer each time.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer in tokens; longer ones are rejected.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Which answers, and which of equal ones.")] = 0,
    price: Annotated[
        str,
        typer.Option(
            metavar="IN:OUT", help="Dollars of the server for a million tokens read, and for a million written."
        ),
    ] = "0:0",
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="DOLLARS", help="Never spend more, over all runs in this folder.", show_default=False
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests at once that the server gets.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For one whole answer of the server.")
    ] = 300.0,
    patience: Annotated[
        float,
        typer.Option(min=0.0, metavar="SECONDS", help="How long a server that answers nothing is waited for."),
    ] = 600.0,
    key_variable: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable that holds the server's key.")
    ] = "OPENAI_API_KEY",
    batch_rows: Annotated[int, typer.Option(min=1, help="Prompts that --model answers at once.")] = 64,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask nothing: choose anew among the answers that are in the folder.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Sample several answers to each prompt, keep the best, and show that choosing was worth it.

    Writes examples to train on, preference pairs, and controls of the same size chosen blindly (by chance, the first, the longest), so
    that you can train on each and compare. Rows may be tasks as in `tutelage eval --tasks`, or examples, whose answer is then the right
    one; a row with `candidates` brings its answers along. A run that was cut goes on with the same command, and asks nothing twice.

    Examples:
        tutelage generate best-of-n gsm8k.jsonl --model runs/mine --n 8 --scorer number --out best
        tutelage generate best-of-n tasks.jsonl --server http://127.0.0.1:8000/v1 --server-model qwen --out best
        tutelage generate best-of-n prompts.jsonl --model runs/mine --scorer my_module:politeness --held-out-scorer task --out best
        tutelage generate best-of-n gsm8k.jsonl --model runs/mine --n 8 --scorer number --out best --offline --window 0.1:0.9
    """
    from tutelage.errors import ConfigError
    from tutelage.generate.journal import CapReachedError
    from tutelage.generate.sampler import NANODOLLARS, Sampling
    from tutelage.synthesize.best_of_n import Plan, build
    from tutelage.synthesize.prompts import read_prompts
    from tutelage.synthesize.scorers import find_scorer
    from tutelage.synthesize.select import RIGHT, Rule

    low, high = _pair(window, "--window")
    dollars_in, dollars_out = _pair(price, "--price")
    if not 0 <= low <= high <= 1:
        raise typer.BadParameter("must be two shares from 0 to 1, such as 0.1:0.9", param_hint="--window")
    if top_p == 0:
        raise typer.BadParameter("must be above 0", param_hint="--top-p")
    if temperature == 0 and n > 1:
        raise typer.BadParameter(
            "0 gives the same answer each time, so there is nothing to choose", param_hint="--temperature"
        )
    if max_cost is not None and not dollars_in + dollars_out:
        raise typer.BadParameter("needs --price, as nothing else says what a token costs", param_hint="--max-cost")
    if model is not None and server is not None:
        raise ConfigError("both --model and --server would answer", mend="give one of them")
    chosen_by = find_scorer(scorer)
    plan = Plan(
        prompts=read_prompts(data),
        answers=n,
        scorer=chosen_by,
        rule=Rule(
            keep=keep,
            at_least=RIGHT if at_least is None and chosen_by.verifies else at_least,
            window=(low, high),
            sharpness=sharpness,
            seed=seed,
        ),
        held_out=find_scorer(held_out_scorer) if held_out_scorer is not None else None,
        cap=None if max_cost is None else int(max_cost * NANODOLLARS),
        offline=offline,
    )
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    sampler: Sampler | None = None
    if server is not None:
        from tutelage.generate.api import ApiSampler, Server

        if not server_model:
            raise ConfigError("a server has to be told which model", mend="give --server-model NAME")
        place = Server(
            server,
            server_model,
            key_variable,
            concurrency,
            timeout,
            patience,
            dollars_in=dollars_in,
            dollars_out=dollars_out,
        )
        sampler = ApiSampler(place, sampling)
    elif model is not None:
        sampler = _local(model, sampling, device, batch_rows)
    try:
        with _progress(len(plan.prompts) * n if sampler is not None else 0) as on_end:
            made = build(plan, sampler, out, on_end=on_end)
    except CapReachedError as error:
        say_problem(error.problem, error.mend)
        raise typer.Exit(EXIT_CAP) from error
    _print(made, out)


def _pair(text: str, option: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise typer.BadParameter("must be two numbers with a colon between them", param_hint=option) from None
    return low, high


def _local(model: str, sampling: Sampling, device: str, batch_rows: int) -> Sampler:
    import torch

    from tutelage.generate.in_process import LocalSampler

    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return LocalSampler(model, sampling, device=place, batch_rows=batch_rows)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Journal], None]]:
    """Yield a function that draws how far the requests are, how many were usable, and what they cost."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors(), transient=True) as bars:
        bar = bars.add_task("asking", total=total, visible=total > 0)

        def show(journal: Journal) -> None:
            ended = journal.accepted + journal.rejected
            cost = f", ${journal.spent_dollars:.2f}" if journal.spent else ""
            bars.update(bar, completed=ended, description=f"asking ({journal.accepted / ended:.0%} usable{cost})")

        yield show


def _print(made: Made, out: Path) -> None:
    console, figures = output(), made.figures
    prompts, answers, journal = figures["prompts"], figures["answers_scored"], figures["journal"]
    rejected = "".join(f", {count} {escape(reason)}" for reason, count in prompts["rejected"].items())
    console.print(f"prompts   {prompts['in']} = [good]{prompts['chosen']} chosen[/]{rejected}")
    lost = "".join(f", {count} rejected: {escape(reason)}" for reason, count in answers["rejected"].items())
    lost += f", {answers['unscored']} could not be scored" if answers["unscored"] else ""
    console.print(f"answers   {answers['asked'] + answers['given']} = {answers['scored']} scored{lost}")
    if journal["spent_dollars"]:
        console.print(f"spent     {journal['spent_dollars']:.4f} dollars")
    table = Table(box=None, header_style="dim")
    for name in ("chosen against a random answer", "random", "chosen", "difference (95 % interval)"):
        table.add_column(name, justify="left" if name.startswith("chosen a") else "right")
    table.add_row("score by the scorer", *_change(figures["score"]))
    table.add_row("score, had the longest been taken", *_change(figures["score_of_longest"]))
    table.add_row("words", *_change(figures["length"]["words"]))
    for one in figures["diversity"]:
        table.add_row(f"distinct-{one['distinct']}", *_by_chance(one))
    table.add_row("correlation of score and length", *_change(figures["length"]["score_by_length"]))
    console.print()
    console.print(table)
    console.print()
    console.print(_curve(figures["curve"], held_out=figures["held_out_scorer"] is not None))
    fit = figures["curve"]["over_optimisation"]
    if fit is not None:
        console.print(f"\nrecommended by the held-out scorer: n = [figure]{fit['recommended_n']}[/]")
    console.print(f"\nwritten   {out}", markup=False, soft_wrap=True)


def _change(change: dict[str, Any]) -> tuple[str, str, str]:
    if change["difference"] is None:
        return "not measured", "not measured", "not measured"
    interval = f"({change['low']:+.3g} to {change['high']:+.3g})" if change["low"] is not None else "(too few prompts)"
    same = change["direction"] == "not distinguishable"
    said = f"not distinguishable {interval}" if same else f"{change['difference']:+.3g} {interval}"
    return f"{change['base']:.3g}", f"{change['tuned']:.3g}", said


def _by_chance(one: dict[str, Any]) -> tuple[str, str, str]:
    if one["direction"] is None:
        return "not measured", "not measured", "not measured"
    low, high = one["by_chance"]
    said = f"{one['difference']:+.3g}" if one["direction"] != "not distinguishable" else one["direction"]
    return f"{one['random']:.3g}", f"{one['chosen']:.3g}", f"{said} (by chance {low:+.3g} to {high:+.3g})"


def _curve(curve: dict[str, Any], *, held_out: bool) -> Table:
    table = Table(box=None, header_style="dim")
    names = ["best of", "score", "against one (95 % interval)"] + (
        ["held-out score", "against one"] if held_out else []
    )
    for name in names:
        table.add_column(name, justify="right")
    for point in curve["points"]:
        _, score, gain = _change(point["score"])
        cells = [str(point["n"]), score, gain if point["n"] > 1 else ""]
        if held_out:
            _, score, gain = _change(point["held_out"]) if point["held_out"] is not None else ("", "not measured", "")
            cells += [score, gain if point["n"] > 1 else ""]
        table.add_row(*cells)
    return table
