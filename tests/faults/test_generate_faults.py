"""Requests are asked once, booked once and never mixed up, whatever the server does and whenever the process dies."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import asker
from fault_server import ANSWER_TOKENS, PROMPT_TOKENS, FaultServer, answer_to, fault_server
from tutelage.files.database import read_database
from tutelage.generate.journal import Journal, State

ASKER = Path(asker.__file__)
TRUE_COST = (PROMPT_TOKENS * asker.DOLLARS_IN + ANSWER_TOKENS * asker.DOLLARS_OUT) * 1000  # billionths for one reply
GENEROUS = 10**9


def start(server: FaultServer, folder: Path, count: int, cap: int = GENEROUS) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(ASKER), str(server.port), str(folder), str(count), str(cap)])


def check(server: FaultServer, folder: Path, count: int) -> Counter[State]:
    """Hold a journal whose requests have all ended to every law, and return how they ended."""
    with Journal(folder / "journal.sqlite", asker.sampler_of(server.port)) as journal:
        outcomes = dict(journal.outcomes())
        totals = journal.totals()
    database = read_database(folder / "journal.sqlite")
    bodies = dict(database.execute("SELECT key, json_extract(body, '$.seed') FROM requests"))
    ends = dict(
        database.execute("SELECT key, count(*) FROM events WHERE state IN ('accepted', 'rejected') GROUP BY key")
    )
    database.close()
    assert len(outcomes) == count
    assert ends == dict.fromkeys(bodies, 1)
    for key, outcome in outcomes.items():
        if outcome.state is State.ACCEPTED:
            asked = {"messages": [{"content": f"question {bodies[key]}"}], "seed": bodies[key]}
            assert outcome.reply is not None
            assert outcome.reply.text == answer_to(asked)
    assert totals.states["accepted"] + totals.states["rejected"] == count
    assert sum(totals.rejected.values()) == totals.states["rejected"]
    assert totals.held == 0
    assert totals.spent >= server.charged * TRUE_COST
    return Counter(outcome.state for outcome in outcomes.values())


def run_with_kills(server: FaultServer, folder: Path, count: int, *, kills: int, seconds: tuple[float, float]) -> int:
    """Run to the end, killed at random moments; return how many kills hit."""
    chance = random.Random(count)
    hits = 0
    for _ in range(kills):
        process = start(server, folder, count)
        while process.poll() is None and not (folder / "journal.sqlite-wal").exists():
            time.sleep(0.01)  # to begin takes longer than to ask
        time.sleep(chance.uniform(*seconds))
        process.kill()
        hits += process.wait() == -9
    assert start(server, folder, count).wait() == 0
    return hits


def test_a_build_survives_every_fault_and_kills(tmp_path: Path) -> None:
    with fault_server(share=0.3, delay_seconds=0.02) as server:
        assert run_with_kills(server, tmp_path, 150, kills=3, seconds=(0.05, 0.4)) >= 2
        ended = check(server, tmp_path, 150)
    assert ended[State.ACCEPTED] >= 140
    assert len(server.faults) > 6
    assert server.charged <= 150 * 2.5


@pytest.mark.slow
def test_a_thousand_requests_survive_every_fault_and_fifty_kills(tmp_path: Path) -> None:
    with fault_server(share=0.3, delay_seconds=0.05) as server:
        assert run_with_kills(server, tmp_path, 1000, kills=50, seconds=(0.0, 0.5)) >= 40
        ended = check(server, tmp_path, 1000)
    assert ended[State.ACCEPTED] >= 950


def test_what_has_ended_is_never_asked_again(tmp_path: Path) -> None:
    with fault_server(share=0.0) as server:
        assert start(server, tmp_path, 30).wait() == 0
        assert start(server, tmp_path, 40).wait() == 0
        check(server, tmp_path, 40)
        assert Counter(Counter(body["seed"] for body in server.asked).values()) == {1: 40}


def test_spending_stops_below_the_cap_and_goes_on_when_it_is_raised(tmp_path: Path) -> None:
    cap = int(20 * TRUE_COST)
    with fault_server("busy", "error", "cut", "malformed", share=0.3) as server:
        assert start(server, tmp_path, 60, cap).wait() == 75
        assert 5 <= server.charged <= 20
        assert start(server, tmp_path, 60, cap).wait() == 75
        assert server.charged <= 20
        assert start(server, tmp_path, 60).wait() == 0
        check(server, tmp_path, 60)
