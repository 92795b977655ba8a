"""The layout law across processes: two ranks compute the loss and gradient that one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.parallel import agree

PROGRAM = Path(__file__).with_name("two_ranks.py")


def run_ranks(folder: Path, count: int) -> None:
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *launcher, str(PROGRAM), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("ranks")
    run_ranks(base / "one", 1)
    run_ranks(base / "two", 2)
    return base / "one", base / "two"


def test_two_ranks_have_the_gradient_of_one(folders: tuple[Path, Path]) -> None:
    one, two = (load_file(folder / "gradients.safetensors") for folder in folders)
    assert one.keys() == two.keys() and len(one) > 100
    for name, expected in one.items():
        assert (two[name] - expected).norm() <= 1e-10 * expected.norm(), name


def test_two_ranks_have_the_loss_sums_of_one(folders: tuple[Path, Path]) -> None:
    one, two = (json.loads((folder / "sums.json").read_text()) for folder in folders)
    for name, expected in one.items():
        assert two[name] == pytest.approx(expected, rel=1e-12), name


def test_every_layout_has_the_gradient_of_the_packed_one(folders: tuple[Path, Path]) -> None:
    gradients = load_file(folders[1] / "gradients.safetensors")
    for name, gradient in gradients.items():
        packed = gradients[name.replace("/padded/", "/packed/").replace("/single/", "/packed/")]
        assert (gradient - packed).norm() <= 1e-10 * packed.norm(), name


def test_a_single_process_agrees_with_itself() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert agree.sum_across_ranks(tensor) is tensor
    assert (agree.rank(), agree.world_size(), agree.is_main()) == (0, 1, True)
    assert agree.all_agree(7) and agree.any_rank(True) and not agree.any_rank(False)
    assert agree.value_of_main(11) == 11
