"""Hostile artefacts, each handed to tutelage in a process of its own whose time and memory are measured.

`refusals(cases)` starts one interpreter that imports the rooms once and forks for every case, so that hundreds of them take
seconds. What a case costs is the processor time of its process, which other work on the machine does not change, and its peak
memory, imports included; a process that waits instead is killed after twenty seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SECONDS, MEGABYTES = 5.0, 600.0  # what a refusal may take
_GIVEN_UP_SECONDS = 20


@dataclass(frozen=True)
class Case:
    """Something hostile at `target`, and the verb that is to meet it: a key of `VERBS`."""

    name: str
    verb: str
    target: str


@dataclass(frozen=True)
class Outcome:
    """What came of a case. `kind` is the type of the exception, empty when nothing was refused; `problem` and `mend` are its words."""

    name: str
    kind: str
    problem: str
    mend: str
    seconds: float
    megabytes: float


def refusals(cases: Sequence[Case]) -> dict[str, Outcome]:
    """Return what came of every case, by its name."""
    assert len({case.name for case in cases}) == len(cases)
    told = json.dumps([asdict(case) for case in cases])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    ended = subprocess.run(command, input=told, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return {found["name"]: Outcome(**found) for found in json.loads(ended.stdout.splitlines()[-1])}


def _model(target: str) -> None:
    from tutelage.config.schema import ModelConfig
    from tutelage.model.load import load_model

    load_model(ModelConfig(path=target))


def _tokenizer(target: str) -> None:
    from tutelage.chat.tokenizer import load_tokenizer
    from tutelage.model.locate import locate_model

    load_tokenizer(locate_model(target, weights=False).tokenizer_folder)


def _template(target: str) -> None:
    from tutelage.chat.template import load_template

    messages = [{"role": "user", "content": "How warm is it?"}, {"role": "assistant", "content": "It is 21 degrees."}]
    load_template(target).render(messages)


def _config(target: str) -> None:
    from tutelage.config.load import load_config

    load_config(target)


def _data(target: str) -> None:
    from tutelage.config.schema import SourceConfig
    from tutelage.data.ledger import Ledger
    from tutelage.data.sources import read_source

    read_source(SourceConfig(path=target), Ledger())


def _run(target: str) -> None:
    from tutelage.files.rundir import RunDir

    with RunDir.open(target, lock=True) as run:
        run.mark("running")


VERBS = {
    "model": _model,
    "tokenizer": _tokenizer,
    "template": _template,
    "config": _config,
    "data": _data,
    "run": _run,
}
# What each verb needs: imported before the forks, so that no case pays for it in time.
_MODULES = {
    "model": "model.load",
    "tokenizer": "model.load",
    "template": "chat.template",
    "config": "config.load",
    "data": "data.sources",
    "run": "files.rundir",
}


def _in_a_child(case: Case) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_GIVEN_UP_SECONDS)
        os.close(reading)
        words = ["", "", ""]
        try:
            VERBS[case.verb](case.target)
        except BaseException as error:  # noqa: BLE001 - whatever comes is the outcome
            words = [type(error).__name__, getattr(error, "problem", str(error)), getattr(error, "mend", "")]
        os.write(writing, json.dumps(words).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    _, status, usage = os.wait4(child, 0)
    words = json.loads(written) if written else [f"killed by signal {os.WTERMSIG(status)}", "", ""]
    return Outcome(case.name, *words, seconds=usage.ru_utime + usage.ru_stime, megabytes=usage.ru_maxrss / 1024)


def _main() -> None:
    cases = [Case(**told) for told in json.load(sys.stdin)]
    for verb in {case.verb for case in cases}:
        importlib.import_module(f"tutelage.{_MODULES[verb]}")
    if any(case.verb in ("model", "tokenizer") for case in cases):
        importlib.import_module("tutelage.chat.tokenizer")
        importlib.import_module("transformers.models.auto.tokenization_auto")
    print(json.dumps([asdict(_in_a_child(case)) for case in cases]))


if __name__ == "__main__":
    _main()
