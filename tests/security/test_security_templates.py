"""Hostile chat templates run nothing, and are stopped in little time and memory, whichever way they try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
import measured
import pytest
from hostile_templates import BOMBS, INJECTIONS
from measured import Case, Outcome, refusals

from tutelage.chat.budget import Budget
from tutelage.chat.template import Template
from tutelage.errors import TemplateError

MESSAGES = [{"role": "user", "content": "How warm is it?"}, {"role": "assistant", "content": "It is 21 degrees."}]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], Path]:
    """What came of every template, and the file that exists if the code of one has run."""
    place = tmp_path_factory.mktemp("templates")
    canary = place / "code-has-run"
    cases = []
    for number, (name, source) in enumerate([*INJECTIONS.items(), *BOMBS.items()]):
        file = place / f"{number}.jinja"
        file.write_text(source.replace("CANARY", str(canary)))
        cases.append(Case(name, "template", str(file)))
    return refusals(cases), canary


def test_injections_are_refused_and_run_nothing(
    met: tuple[dict[str, Outcome], Path], figure: Callable[[str, str], None]
) -> None:
    outcomes, canary = met
    assert not canary.exists()
    assert {name: outcomes[name] for name in INJECTIONS if outcomes[name].kind != "TemplateError"} == {}
    figure("template injections: tried, executed", f"{len(INJECTIONS)}, {int(canary.exists())}")


def test_bombs_are_stopped_in_time_and_within_memory(
    met: tuple[dict[str, Outcome], Path], figure: Callable[[str, str], None]
) -> None:
    outcomes = {name: met[0][name] for name in BOMBS}
    wrong = {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome.kind != "TemplateError"
        or outcome.seconds > measured.SECONDS
        or outcome.megabytes > measured.MEGABYTES
    }
    assert wrong == {}
    slowest, largest = max(o.seconds for o in outcomes.values()), max(o.megabytes for o in outcomes.values())
    figure(
        "resource bombs in templates: tried, stopped",
        f"{len(BOMBS)}, {len(BOMBS)}; {slowest:.1f} s, {largest:.0f} MB at most",
    )


def test_every_refusal_names_the_file(met: tuple[dict[str, Outcome], Path]) -> None:
    assert [name for name, outcome in met[0].items() if ".jinja" not in outcome.problem] == []


def test_a_plain_environment_runs_the_injections(tmp_path: Path) -> None:
    """The negative control of the canary: what is refused above does run code where there is no sandbox."""
    ran = []
    for name, source in INJECTIONS.items():
        canary = tmp_path / str(len(ran))
        environment = jinja2.Environment()
        environment.globals |= {"strftime_now": lambda form: form, "raise_exception": print}
        try:
            environment.from_string(source.replace("CANARY", str(canary))).render(messages=list(map(dict, MESSAGES)))
        except Exception:  # noqa: BLE001 - many of them reach for what is not there
            continue
        finally:
            if canary.exists():
                ran.append(name)
    assert len(ran) >= 8


@pytest.mark.parametrize("net", ["measure", "charge", "spend"])
def test_without_a_part_of_the_budget_a_bomb_goes_off(monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    """The negative control of the limits: small versions of the bombs pass when a part of the budget counts nothing."""
    small = {
        "measure": "{% set ns = namespace(l=[1]) %}{% for i in range(20) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | length }}",
        "charge": "{{ ('x' * 9000000) | length }}",
        "spend": "{% for a in range(99999) %}{% for b in range(60) %}{% endfor %}{% endfor %}x",
    }[net]
    with pytest.raises(TemplateError):
        Template(small).render(MESSAGES)
    monkeypatch.setattr(Budget, net, lambda self, *args: 0)
    assert Template(small).render(MESSAGES)
