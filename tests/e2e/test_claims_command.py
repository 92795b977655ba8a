"""`tutelage claims` from the command line, and what becomes of it when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.errors import ConfigError
from tutelage.lab.claims.catalogue import CLAIMS, claims_named
from tutelage.lab.claims.measures import MEASURES
from tutelage.lab.claims.runner import runs_of
from tutelage.lab.claims.settings import FULL
from tutelage.lab.claims.store import RunStore

KILLED_RUNS = """
import sys
from pathlib import Path
from tutelage.lab.claims.catalogue import claims_named
from tutelage.lab.claims.runner import make_runs, runs_of
from tutelage.lab.claims.settings import Scale
from tutelage.lab.claims.store import RunStore
if __name__ == "__main__":
    runs = runs_of(claims_named(["behaviour-not-knowledge"]), Scale(part=0.016, asked=6, texts=3, seeds=3), 3)
    make_runs(runs, RunStore(Path(sys.argv[1])), num_workers=2, tell=lambda one: print(one.done, one.count, flush=True))
"""


def test_the_list_names_every_claim() -> None:
    result = CliRunner().invoke(app, ["claims", "--list"])
    assert result.exit_code == 0
    assert all(claim.name in result.output for claim in CLAIMS)


def test_an_unknown_claim_is_refused() -> None:
    result = CliRunner().invoke(app, ["claims", "replai"])
    assert isinstance(result.exception, ConfigError)
    assert "replay" in result.exception.mend


def test_runs_that_are_kept_become_pages(tmp_path: Path) -> None:
    """Records of runs whose figures are known: everything but one figure is the same in both arms of the claim."""
    chosen = claims_named(["neftune"])
    store = RunStore(tmp_path / "out" / "runs")
    for settings in runs_of(chosen, FULL, 3):
        figures = dict.fromkeys(MEASURES, 0.5 + 0.001 * settings.seed)
        figures["right"] += 0.2 * (settings.neftune_alpha > 0)
        store.keep(settings, {"measures": figures})
    result = CliRunner().invoke(app, ["claims", "neftune", "--seeds", "3", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "1 claims: 1 seen here." in result.output
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert [claim["verdict"] for claim in found["claims"]] == ["seen here"]
    assert "+20.0 points (+20.0 to +20.0)" in (tmp_path / "out" / "claims.md").read_text()
    assert "seen here" in (tmp_path / "out" / "claims.html").read_text()


@pytest.mark.slow
def test_killed_claims_leave_no_process_behind_and_go_on(tmp_path: Path) -> None:
    script, store = tmp_path / "runs.py", tmp_path / "runs"
    script.write_text(KILLED_RUNS)
    command = [sys.executable, str(script), str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "1 6\n"
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        first.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while alive := [pid for pid in children if _runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("*.json")}
    assert 1 <= len(kept) < 6
    rest = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(rest.stdout.splitlines()) == 6 - len(kept)
    assert len(list(store.glob("*.json"))) == 6
    assert all((store / name).stat().st_mtime_ns == changed for name, changed in kept.items())


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
