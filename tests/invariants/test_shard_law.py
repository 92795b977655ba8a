"""The layout law for a sharded model: ranks that hold a part of every weight take the steps that one process takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tutelage.files.manifest import verify_manifest

PROGRAM = Path(__file__).with_name("shard_ranks.py")
MODELS = ("llama-full", "llama_tied-full", "llama-lora", "llama_tied-lora")


# Name of a run: its folder and number there. Ranks that wrote the checkpoints, ranks that went on.
RUNS = {"2": ("two", 0), "2, then 1": ("one", 1), "2, then 3": ("three", 0)}


def run_ranks(folder: Path, count: int, *begins: str | Path) -> None:
    """Run the program with `count` ranks, from the beginning or from the checkpoints in a folder."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    ended = subprocess.run(
        [sys.executable, *launcher, str(PROGRAM), str(folder), *map(str, begins)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("shards")
    run_ranks(base / "two", 2, "begin")
    run_ranks(base / "one", 1, "begin", base / "two")
    run_ranks(base / "three", 3, base / "two")
    return base


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradient_norms_are_those_of_one_process(place: Path, name: str) -> None:
    folder, number = RUNS[name]
    one = json.loads((place / "one" / "figures-0.json").read_text())
    other = json.loads((place / folder / f"figures-{number}.json").read_text())
    assert len(other) == (12 if name == "2" else 4)
    for step, figures in other.items():
        assert figures == pytest.approx(one[step], rel=1e-11), step


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_at_the_end_are_those_of_one_process(place: Path, name: str) -> None:
    folder, number = RUNS[name]
    one = load_file(place / "one" / "weights-0.safetensors")
    other = load_file(place / folder / f"weights-{number}.safetensors")
    assert {key.split("/")[0] for key in one} == set(MODELS)
    assert one.keys() <= other.keys()  # a gathered state dict has tied weights under both of their names
    for key, expected in one.items():
        # AdamW divides by the root of a moment, which makes rounding of the smallest gradients visible.
        assert (other[key] - expected).abs().max() <= 1e-9, key


def test_every_rank_writes_its_own_part_and_the_manifest_covers_all(place: Path) -> None:
    for model in MODELS:
        folder = place / "two" / model
        names = {path.name for path in folder.iterdir()}
        parts = {f"{stem}-0000{rank}-of-00002.safetensors" for stem in ("weights", "optimiser") for rank in (0, 1)}
        assert names == {*parts, "state.json", "manifest.json"}
        assert verify_manifest(folder) == []
        whole = (place / "one" / model / "optimiser.safetensors").stat().st_size
        assert max((folder / part).stat().st_size for part in parts) < 0.75 * whole
