"""Hostile chat templates run nothing, and are stopped in little time and memory, whichever way they try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from hostile_templates import BOMBS, INJECTIONS
from measured import MEGABYTES, SECONDS, Case, Outcome, refusals

from tutelage.chat.budget import Budget
from tutelage.chat.template import Template
from tutelage.errors import TemplateError

MESSAGES = [{"role": "user", "content": "How warm is it?"}, {"role": "assistant", "content": "It is 21 degrees."}]


def test_hostile_templates_run_nothing_and_are_stopped_in_time_and_within_memory(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    canary = tmp_path / "code-has-run"
    cases = []
    for number, (name, source) in enumerate([*INJECTIONS.items(), *BOMBS.items()]):
        file = tmp_path / f"{number}.jinja"
        file.write_text(source.replace("CANARY", str(canary)))
        cases.append(Case(name, "template", str(file)))
    outcomes = refusals(cases)
    assert not canary.exists()
    assert {name: outcome for name, outcome in outcomes.items() if not _is_refused_well(outcome)} == {}
    bombs = [outcomes[name] for name in BOMBS]
    slowest, largest = max(bomb.seconds for bomb in bombs), max(bomb.megabytes for bomb in bombs)
    figure("template injections: tried, executed", f"{len(INJECTIONS)}, {int(canary.exists())}")
    figure(
        "resource bombs in templates: tried, stopped",
        f"{len(BOMBS)}, {len(bombs)}; {slowest:.1f} s, {largest:.0f} MB at most",
    )


def _is_refused_well(outcome: Outcome) -> bool:
    cheap = outcome.seconds <= SECONDS and outcome.megabytes <= MEGABYTES
    return outcome.kind == "TemplateError" and ".jinja" in outcome.problem and cheap


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
