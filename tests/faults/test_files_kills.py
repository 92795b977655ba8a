"""Writers that are killed at any moment leave files and folders whole or absent, never half."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tutelage.files import jsonl
from tutelage.files.atomic import remove_staging
from tutelage.files.manifest import verify_manifest

NUM_KILLS = 12

WRITER = """
import sys
from itertools import count
from pathlib import Path
from tutelage.files.atomic import new_folder, write_json
from tutelage.files.jsonl import Appender
from tutelage.files.manifest import write_manifest

folder = Path(sys.argv[1])
first = int(sys.argv[2])
print("ready", flush=True)
with Appender(folder / "metrics.jsonl") as metrics:
    for step in count(first):
        with new_folder(folder / f"step-{step:06d}") as staging:
            for name in ("a", "b", "c"):
                (staging / name).write_bytes(bytes([step % 256]) * 200_000)
            write_manifest(staging, about={"step": step})
        write_json(folder / "state.json", {"step": step, "text": "x" * 50_000})
        metrics.append({"step": step, "text": "y" * 5_000})
"""


def test_killed_writers_leave_nothing_half_written(tmp_path: Path) -> None:
    draw = random.Random(0)
    landed_inside, next_step = 0, 0
    for _ in range(NUM_KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(next_step)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.005, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

        landed_inside += len(remove_staging(tmp_path)) > 0
        folders = sorted(path for path in tmp_path.iterdir() if path.name.startswith("step-"))
        assert [problem for folder in folders for problem in verify_manifest(folder)] == []
        steps = [int(folder.name.removeprefix("step-")) for folder in folders]
        assert steps == list(range(len(steps)))
        if (tmp_path / "state.json").exists():
            assert all(record["step"] < len(steps) for record in jsonl.read(tmp_path / "metrics.jsonl"))
            assert (tmp_path / "state.json").read_text().endswith("}\n")
        next_step = len(steps)
    assert next_step > 0, "no writer lived long enough to write anything"
    assert landed_inside > 0, "no kill fell into a write: this run proved nothing"
