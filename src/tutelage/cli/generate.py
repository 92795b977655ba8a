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

Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL_OR_RUN", help="Who answers, in this process: a folder, Hub name, or run directory."),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Who answers, over HTTP: an OpenAI-compatible address that ends in /v1."),
]
ServerModel = Annotated[str, typer.Option(metavar="NAME", help="The model's name at the server.")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where everything goes; the same folder goes on.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 gives the same answer each time.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens of this probability.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens; longer ones are rejected.")]
Price = Annotated[
    str,
    typer.Option(metavar="IN:OUT", help="Dollars of the server for a million tokens read, and for a million written."),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        min=0.0, metavar="DOLLARS", help="Never spend more, over all runs in this folder.", show_default=False
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Most requests at once that the server gets.")]
Timeout = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For one whole answer of the server.")]
Patience = Annotated[
    float, typer.Option(min=0.0, metavar="SECONDS", help="How long a server that answers nothing is waited for.")
]
KeyVariable = Annotated[str, typer.Option(metavar="VARIABLE", help="Environment variable that holds the server's key.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Prompts that --model answers at once.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask nothing: make everything anew of the answers that are in the folder.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

app = typer.Typer(no_args_is_help=True, help="Make data with models, and account for every request.")


@app.command("best-of-n")
def best_of_n(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="JSON-lines file of prompts, with what their answers are checked by."),
    ],
    out: Out,
    model: Model = None,
    server: ServerUrl = None,
    server_model: ServerModel = "",
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
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(min=0, help="Which answers, and which of equal ones.")] = 0,
    price: Price = "0:0",
    max_cost: MaxCost = None,
    concurrency: Concurrency = 64,
    timeout: Timeout = 300.0,
    patience: Patience = 600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    batch_rows: BatchRows = 64,
    offline: Offline = False,
    device: Device = "auto",
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
    from tutelage.synthesize.best_of_n import Plan, build
    from tutelage.synthesize.prompts import read_prompts
    from tutelage.synthesize.scorers import find_scorer
    from tutelage.synthesize.select import RIGHT, Rule

    low, high = _pair(window, "--window")
    if not 0 <= low <= high <= 1:
        raise typer.BadParameter("must be two shares from 0 to 1, such as 0.1:0.9", param_hint="--window")
    if temperature == 0 and n > 1:
        raise typer.BadParameter(
            "0 gives the same answer each time, so there is nothing to choose", param_hint="--temperature"
        )
    cap = _cap(max_cost, price)
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
        cap=cap,
        offline=offline,
    )
    sampling = _sampling(temperature, top_p, max_new_tokens)
    sampler = _answerer(
        model, server, server_model, sampling, price, key_variable, concurrency, timeout, patience, device, batch_rows
    )
    with _asking(len(plan.prompts) * n if sampler is not None else 0) as on_end:
        made = build(plan, sampler, out, on_end=on_end)
    _print(made, out)


@app.command("self-instruct")
def self_instruct(
    seeds: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON-lines file of tasks: the column instruction, prompt or question.")
    ],
    out: Out,
    model: Model = None,
    server: ServerUrl = None,
    server_model: ServerModel = "",
    accept: Annotated[int, typer.Option(min=1, help="New tasks that are wanted, no more and no fewer.")] = 100,
    most_lists: Annotated[
        int, typer.Option(min=1, help="Lists of about eight tasks that are asked for at most, to find so many.")
    ] = 100,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    max_new_tokens: MaxNewTokens = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Which seeds stand in which list.")] = 0,
    price: Price = "0:0",
    max_cost: MaxCost = None,
    concurrency: Concurrency = 64,
    timeout: Timeout = 300.0,
    patience: Patience = 600.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    batch_rows: BatchRows = 64,
    offline: Offline = False,
    device: Device = "auto",
) -> None:
    """Make new tasks from a few seeds, and examples of each, by Self-Instruct (arXiv 2212.10560).

    A model continues lists of tasks; what is new beside all others (ROUGE-L of at most 0.7) joins the pool that further lists are made
    of. Of each task it then writes instances: of classifications the label first. What is dropped is kept with the reason. The model has
    to be one that follows instructions. A build that was cut goes on with the same command, and asks nothing twice.

    Examples:
        tutelage generate self-instruct --seeds seeds.jsonl --model Qwen/Qwen3-0.6B --accept 200 --out made
        tutelage generate best-of-n made/tasks.jsonl --model Qwen/Qwen3-0.6B --scorer my_module:politeness --out best
    """
    from tutelage.errors import ConfigError
    from tutelage.synthesize.self_instruct import Plan, build, read_seeds

    plan = Plan(
        seeds=read_seeds(seeds),
        accept=accept,
        most_lists=most_lists,
        seed=seed,
        cap=_cap(max_cost, price),
        offline=offline,
    )
    sampling = _sampling(temperature, top_p, max_new_tokens)
    sampler = _answerer(
        model, server, server_model, sampling, price, key_variable, concurrency, timeout, patience, device, batch_rows
    )
    if sampler is None:
        raise ConfigError("a model has to make the tasks", mend="give --model or --server")
    with _asking(None) as on_end:
        figures = build(plan, sampler, out, on_end=on_end)
    _print_tasks(figures, out)


def _cap(max_cost: float | None, price: str) -> int | None:
    """Return the cap in billionths of a dollar."""
    from tutelage.generate.sampler import NANODOLLARS

    if max_cost is not None and not sum(_pair(price, "--price")):
        raise typer.BadParameter("needs --price, as nothing else says what a token costs", param_hint="--max-cost")
    return None if max_cost is None else int(max_cost * NANODOLLARS)


def _sampling(temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    from tutelage.generate.sampler import Sampling

    if top_p == 0:
        raise typer.BadParameter("must be above 0", param_hint="--top-p")
    return Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)


def _answerer(
    model: str | None,
    server: str | None,
    server_model: str,
    sampling: Sampling,
    price: str,
    key_variable: str,
    concurrency: int,
    timeout: float,
    patience: float,
    device: str,
    batch_rows: int,
) -> Sampler | None:
    """Return who answers; None where neither a model nor a server was named."""
    from tutelage.errors import ConfigError

    if model is not None and server is not None:
        raise ConfigError("both --model and --server would answer", mend="give one of them")
    if server is not None:
        from tutelage.generate.api import ApiSampler, Server

        if not server_model:
            raise ConfigError("a server has to be told which model", mend="give --server-model NAME")
        dollars_in, dollars_out = _pair(price, "--price")
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
        return ApiSampler(place, sampling)
    return _local(model, sampling, device, batch_rows) if model is not None else None


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
def _asking(total: int | None) -> Iterator[Callable[[Journal], None]]:
    """Yield a function that draws how far the requests are, how many were usable, and what they cost; told when the money is gone."""
    from tutelage.generate.journal import CapReachedError

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors(), transient=True) as bars:
        bar = bars.add_task("asking", total=total, visible=total != 0)

        def show(journal: Journal) -> None:
            ended = journal.accepted + journal.rejected
            cost = f", ${journal.spent_dollars:.2f}" if journal.spent else ""
            bars.update(bar, completed=ended, description=f"asking ({journal.accepted / ended:.0%} usable{cost})")

        try:
            yield show
        except CapReachedError as error:
            say_problem(error.problem, error.mend)
            raise typer.Exit(EXIT_CAP) from error


def _print_tasks(figures: dict[str, Any], out: Path) -> None:
    console = output()
    console.print(
        f"tasks     [good]{figures['tasks']}[/] of {sum(one['candidates'] for one in figures['rounds'])} candidates"
    )
    console.print(f"instances {figures['instances']}")
    for reason, count in figures["rejected"].items():
        console.print(f"dropped   {count} {escape(reason)}")
    table = Table(box=None, header_style="dim")
    for name in ("round", "lists", "candidates", "accepted", "distinct-2 of all tasks so far"):
        table.add_column(name, justify="right")
    for number, one in enumerate(figures["rounds"], start=1):
        share = "not measured" if one["distinct_2"] is None else f"{one['distinct_2']:.3f}"
        table.add_row(str(number), str(one["lists"]), str(one["candidates"]), str(one["accepted"]), share)
    console.print()
    console.print(table)
    if figures["journal"]["spent_dollars"]:
        console.print(f"\nspent     {figures['journal']['spent_dollars']:.4f} dollars")
    console.print(f"\nwritten   {out}", markup=False, soft_wrap=True)


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
