"""`tutelage claims`: what the field says of supervised fine-tuning, put to the test in the small world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tutelage.lab.claims.claim import Claim
    from tutelage.lab.claims.runner import Progress


def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Claims to try; without any, all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller runs, fewer seeds: all claims in about five minutes on two cores.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of every arm: 5, or 3 with --quick. Fewer than 3 give no verdict.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of runs and pages. Default: runs/claims, or runs/claims-quick.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with one thread. Default: one a core.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is to try, and do nothing.")] = False,
) -> None:
    """Try claims of the field as small experiments: arms, seeds, intervals, and a verdict by a rule fixed beforehand.

    Runs that claims have in common are made once, and what was made before is kept: after an interruption the same command goes on.
    OUT gets claims.json, claims.html and claims.md. All claims with 5 seeds take about an hour on two cores.

    Examples:
        tutelage claims --list
        tutelage claims replay neftune
        tutelage claims --quick
    """
    from tutelage.lab.claims.catalogue import claims_named
    from tutelage.lab.claims.runner import make_runs, runs_of
    from tutelage.lab.claims.settings import FULL, QUICK
    from tutelage.lab.claims.store import RunStore

    chosen = claims_named(names or [])
    if listed:
        _print_list(chosen)
        return
    scale = QUICK if quick else FULL
    num_seeds = seeds or scale.seeds
    folder = out or Path("runs") / ("claims-quick" if quick else "claims")
    store = RunStore(folder / "runs")
    make_runs(runs_of(chosen, scale, num_seeds), store, num_workers=workers or _cores(), tell=_tell)
    _write(folder, chosen, store, quick=quick, num_seeds=num_seeds, names=names or [])


def _write(
    folder: Path, chosen: Sequence[Claim], store: Any, *, quick: bool, num_seeds: int, names: Sequence[str]
) -> None:
    from tutelage.cli.console import output
    from tutelage.files.atomic import write_json
    from tutelage.lab.claims.results import results
    from tutelage.lab.claims.settings import FULL, QUICK
    from tutelage.report.claims import read_claims, write_claims_page
    from tutelage.report.claims_text import write_claims_text

    options = f"--quick --seeds {num_seeds}" if quick else f"--seeds {num_seeds}"
    about = {"command": " ".join(["tutelage claims", *names, options]), "options": options, **_circumstances()}
    write_json(folder / "claims.json", results(chosen, store, QUICK if quick else FULL, num_seeds, about))
    found = read_claims(folder / "claims.json")
    write_claims_page(found, folder / "claims.html")
    write_claims_text(found, folder / "claims.md")
    _print_verdicts(found)
    output().print(f"\npage  {folder / 'claims.html'}")


def _circumstances() -> dict[str, str]:
    from datetime import UTC, datetime

    import torch

    from tutelage.train.environment import describe_environment

    found: dict[str, Any] = describe_environment(torch.device("cpu"))
    packages = {name: found["packages"][name] for name in ("tutelage", "torch", "transformers")}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{found['processor'] or 'an unnamed processor'}, {found['cpu_count']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(progress: Progress) -> None:
    from tutelage.cli.console import errors

    left = (
        f"about {progress.left_seconds / 60:.0f} min left"
        if progress.left_seconds >= 90
        else f"about {progress.left_seconds:.0f} s left"
    )
    errors().print(
        f"{progress.done}/{progress.count}  {progress.what}: {progress.run_seconds:.0f} s, {left}", markup=False
    )


def _print_list(chosen: Sequence[Claim]) -> None:
    from rich.table import Table

    from tutelage.cli.console import output

    table = Table(box=None, pad_edge=False)
    for name in ("name", "claim", "arms"):
        table.add_column(name)
    for claim in chosen:
        table.add_row(claim.name, claim.claim, ", ".join(arm.name for arm in claim.arms))
    output().print(table)


def _print_verdicts(found: Any) -> None:
    from rich.table import Table

    from tutelage.cli.console import output
    from tutelage.report.claims import counted, difference_text, prediction_text, verdict_text

    table = Table(box=None, pad_edge=False)
    for name in ("claim", "verdict", "prediction", "difference (95 % interval)"):
        table.add_column(name)
    for claim in found["claims"]:
        for number, one in enumerate(claim["predictions"]):
            named = (claim["name"], verdict_text(claim)) if number == 0 else ("", "")
            table.add_row(*named, prediction_text(one, found["measures"]), difference_text(one, found["measures"]))
    output().print(table)
    output().print(f"\n{counted(found)}")
