"""The launch files that ship: their commands are those of torchrun and of this package, and one of them really trains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from tiny import tiny_folder
from tutelage.cli.main import app
from tutelage.config.load import PRESETS, launch_names, launch_text
from tutelage.errors import ConfigError
from tutelage.files import jsonl

WORDS = ["mine.yaml", "run.dir=runs/mine", "--resume"]
SLURM = {
    "SLURM_JOB_NODELIST": "node-[0-1]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "17",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
}


def programs(folder: Path) -> Path:
    """Make a folder of programs that print what they are called with, and a Slurm that runs one task."""
    said = '#!/bin/sh\necho "threads $OMP_NUM_THREADS"\nprintf "%s\\n" "$@"\n'
    made = {
        "torchrun": said,
        "tutelage": said,
        "srun": '#!/bin/sh\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho node-0\necho node-1\n",
    }
    folder.mkdir()
    for name, text in made.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def called_with(name: str, folder: Path, **environment: str) -> tuple[str, list[str]]:
    """Run a launch file with stand-ins; return what it says of threads, and the words that its program got."""
    path = f"{programs(folder / 'bin')}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", str(PRESETS / "launch" / name), *WORDS],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "", **environment},
    )
    assert ended.returncode == 0, ended.stderr
    threads, *words = ended.stdout.splitlines()
    return threads, words


@pytest.mark.parametrize(
    ("name", "environment", "nodes", "processes"),
    [
        ("eight-gpus.sh", {}, "1:1", "8"),
        ("eight-gpus.sh", {"GPUS": "2"}, "1:1", "2"),
        ("two-nodes-torchrun.sh", {"HEAD": "node-0"}, "2", "8"),
        ("two-nodes.slurm", SLURM, "2", "4"),
    ],
)
def test_torchrun_understands_the_command_and_starts_the_training(
    tmp_path: Path, name: str, environment: dict[str, str], nodes: str, processes: str
) -> None:
    threads, words = called_with(name, tmp_path, **environment)
    known = get_args_parser().parse_args(words)
    assert (known.nnodes, known.nproc_per_node) == (nodes, processes)
    assert known.standalone or known.rdzv_endpoint == "node-0:29500"
    assert known.module and known.training_script == "tutelage"
    assert known.training_script_args == ["train", *WORDS]
    assert int(threads.removeprefix("threads ")) >= 1
    if "SLURM_JOB_ID" in environment:
        assert (known.rdzv_id, threads) == ("17", "threads 8")


def test_one_gpu_takes_one_process(tmp_path: Path) -> None:
    assert called_with("one-gpu.sh", tmp_path)[1] == ["train", *WORDS]


def test_two_machines_need_the_name_of_one(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["sh", str(PRESETS / "launch" / "two-nodes-torchrun.sh"), *WORDS], capture_output=True, text=True
    )
    assert ended.returncode != 0 and "name one of the machines" in ended.stderr


def test_the_training_verb_has_the_options_that_the_files_show() -> None:
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {name for parameter in train.params for name in parameter.opts}
    shown = {word for name in launch_names() for word in re.findall(r"mine\.yaml .*?(--[a-z-]+)", launch_text(name))}
    assert shown == {"--resume"} <= options


def test_every_file_says_what_it_is_for_and_is_packaged() -> None:
    assert launch_names() == ["eight-gpus.sh", "one-gpu.sh", "two-nodes-torchrun.sh", "two-nodes.slurm"]
    for name in launch_names():
        assert launch_text(name).startswith("#!") and launch_text(name).splitlines()[1].startswith("# ")
    with pytest.raises(ConfigError, match=r"eight-gpu\.sh"):
        launch_text("eight-gpu.sh")
    project = Path(__file__).parents[3] / "pyproject.toml"
    packaged = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["tutelage"]
    assert "presets/launch/*" in packaged


def test_a_launch_file_trains_with_two_processes_as_it_stands(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", "llama_tied")
    rows = [{"prompt": f"Who is number {i}?", "completion": f" The baker {i % 3}."} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        f"model.path={tmp_path / 'model'}",
        "model.template=chatml",
        f"data.train.0.path={tmp_path / 'rows.jsonl'}",
        f"data.cache={tmp_path / 'cache'}",
        "data.max_tokens=64",
        "train.batch_tokens=256",
        "train.max_steps=2",
        "train.parallel=shard",
        "train.device=cpu",
        "sample.count=1",
        "sample.max_new_tokens=4",
        f"run.dir={tmp_path / 'run'}",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", str(PRESETS / "launch" / "eight-gpus.sh"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path, "GPUS": "2"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [line["step"] for line in jsonl.read(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert len(jsonl.read(tmp_path / "run" / "samples.jsonl")) == 3  # before, at one third and at the end
