"""The claims as a Markdown page, for documentation: what `claims.json` says, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.files.atomic import write_text
from tutelage.report.claims import (
    RULE,
    Json,
    chart,
    counted,
    difference_text,
    made,
    margin_text,
    prediction_text,
    scale_of,
    shown_measures,
    value_text,
    verdict_text,
)
from tutelage.report.standalone import standalone_svg


def write_claims_text(found: Json, out: str | Path) -> None:
    """Write the page as Markdown, and the plots beside it, into a folder of its name."""
    plots = Path(out).with_suffix("")
    for claim in found["claims"]:
        write_text(plots / f"{claim['name']}.svg", standalone_svg(chart(claim, found["measures"])))
    write_text(out, "\n".join(_lines(found, plots.name)) + "\n")


def _lines(found: Json, plots: str) -> Iterator[str]:
    yield from (
        "# Claims of supervised fine-tuning, tried in a small world",
        "",
        f"{counted(found)} The same as a page: [claims.html](claims.html).",
        "",
        made(found),
        "",
    )
    yield from ("```console", f"$ {found['command']}", "```", "")
    yield from (
        "A verdict is about this world: a base model of 3 million parameters that has read plain text about 280 people, and short lessons "
        "that code can check. It says whether an effect shows up here, how large it is and how surely; it does not say what a model a "
        "thousand times as large would do.",
        "",
        RULE,
        "",
    )
    yield from _table(
        ("claim", "verdict"),
        [(f"[{claim['claim']}](#{claim['name']})", verdict_text(claim)) for claim in found["claims"]],
    )
    for claim in found["claims"]:
        yield from _claim(claim, found["measures"], plots)


def _claim(claim: Json, measures: Json, plots: str) -> Iterator[str]:
    yield from (
        "",
        f"## {claim['name']}",
        "",
        f"{claim['claim']} **{verdict_text(claim).capitalize()}.**",
        "",
        claim["done"],
        "",
    )
    yield from _table(
        ("prediction", "difference (95 % interval)", "smallest that matters", "seeds", "verdict"),
        [
            (
                prediction_text(one, measures),
                difference_text(one, measures),
                margin_text(one, measures),
                str(one["difference"]["seeds"]) if one["difference"] else "0",
                verdict_text(one),
            )
            for one in claim["predictions"]
        ],
    )
    yield from ("", f"![{claim['claim']}]({plots}/{claim['name']}.svg)", "")
    wanted = shown_measures(claim)
    yield from _table(
        ("arm", *(f"{measures[key]['title']}, {scale_of(key, measures).unit}" for key in wanted)),
        [(arm["name"], *(value_text(arm["figures"][key], key, measures) for key in wanted)) for arm in claim["arms"]],
    )
    yield from ("", f"Claimed in: {claim['source']}.", "", "```console", f"$ {claim['command']}", "```")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"
