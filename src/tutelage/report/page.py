"""The HTML page of a run: one file that needs nothing else and can reach nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from tutelage.files.atomic import write_text
from tutelage.report.answers import answers_section, scores_section
from tutelage.report.checks import checks_section
from tutelage.report.compare import comparison
from tutelage.report.curves import training_section
from tutelage.report.data import data_section
from tutelage.report.effect import effect_section
from tutelage.report.headline import headline
from tutelage.report.markup import Markup, Section, h, join
from tutelage.report.masks import masks_section
from tutelage.report.read import read_run
from tutelage.report.records import Run
from tutelage.report.settings import settings_section


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of one run, by default to `report.html` in its folder, and return its path.

    Raises: RunDirError when `run_dir` is not a run directory.
    """
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    write_text(path, run_page(read_run(run_dir)))
    return path


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that sets several runs side by side, and return its path.

    Raises: RunDirError when one of `run_dirs` is not a run directory.
    """
    runs = [read_run(folder) for folder in run_dirs]
    top, sections = comparison(runs)
    write_text(
        out,
        page(f"{len(runs)} runs compared", top, sections, [p for run in runs for p in _problems_of(run, named=True)]),
    )
    return Path(out)


def run_page(run: Run) -> str:
    """Return the page of one run as HTML."""
    sections = [
        effect_section(run.effect) if run.effect is not None else None,
        scores_section(run.scores) if run.scores is not None else None,
        training_section(run),
        answers_section(run),
        data_section(run),
        masks_section(run),
        checks_section(run),
        settings_section(run),
    ]
    return page(run.name, headline(run), [s for s in sections if s is not None], _problems_of(run))


def page(title: str, top: Markup, sections: Sequence[Section], problems: Sequence[str] = ()) -> str:
    """Return a whole HTML document.

    The policy allows exactly the one style sheet and the one script that are part of this package, by their hash: text
    of a data set could not run or load anything even if it came through unescaped.
    """
    style, script = _asset("style.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src {_source_hash(style)}; script-src {_source_hash(script)}; base-uri 'none'; form-action 'none'"
    head = h(
        "head",
        None,
        h("meta", {"charset": "utf-8"}),
        h("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        h("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        h("meta", {"name": "referrer", "content": "no-referrer"}),
        h("title", None, f"{title} - tutelage"),
        h("style", None, Markup(style)),
    )
    links = [h("a", {"href": f"#{s.anchor}"}, s.label or s.title) for s in sections]
    switch = h("button", {"id": "theme", "type": "button"}, "light / dark")
    body = h(
        "body",
        None,
        h("header", {"class": "top"}, top),
        h("nav", None, h("div", None, links, switch)),
        h("main", None, _problem_box(problems), (s.html() for s in sections)),
        h(
            "footer",
            None,
            "Written by tutelage from the files of the run directory. This page loads nothing from anywhere.",
        ),
        h("div", {"id": "tip"}),
        h("script", None, Markup(script)),
    )
    return f"<!doctype html>\n{h('html', {'lang': 'en'}, head, body)}\n"


def _problems_of(run: Run, *, named: bool = False) -> list[str]:
    return [f"{run.name}: {problem}" if named else problem for problem in run.problems]


def _problem_box(problems: Sequence[str]) -> Markup | None:
    if not problems:
        return None
    items = (h("li", None, problem) for problem in problems)
    return h(
        "div", {"class": "problems"}, h("b", None, "Parts of the run could not be read"), h("ul", None, join(items))
    )


@cache
def _asset(name: str) -> str:
    return resources.files("tutelage.report").joinpath("assets", name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
