"""What the verbs that train have in common: the run directory, the progress bar, and what is printed at the end.

Imported only when such a verb runs.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tutelage.cli.configuration import print_resolved
from tutelage.cli.console import errors, output, warn
from tutelage.config.load import Resolved
from tutelage.config.schema import Config
from tutelage.config.unread import require_all_read
from tutelage.errors import ConfigError, RunDirError
from tutelage.evaluate.probes import make_probe
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.parallel import agree
from tutelage.train.environment import choose_device
from tutelage.train.evaluate import Evaluation
from tutelage.train.loop import TrainResult, train
from tutelage.train.narrate import Narrator
from tutelage.train.plan import RunPlan
from tutelage.train.preview import preview
from tutelage.train.resume import Changed
from tutelage.train.stop import RESUME_EXIT_CODE, StopFlag
from tutelage.train.trainee import Start

PLAIN_LINE_SECONDS = 10.0
SPEED_WINDOW_STEPS = 20
SHOWN_CHARACTERS = 240
SHOWN_SAMPLES = 4


def run_training(
    resolved: Resolved,
    *,
    start: Start,
    dry_run: bool,
    resume: bool,
    accept_changed: Collection[Changed],
    stop: StopFlag,
) -> None:
    """Do what `tutelage train` and `tutelage pretrain` do, from the resolved configuration to the report.

    Raises:
        SystemExit: with code 75 when a signal or the time stopped the run.
    """
    _require_data(resolved.config)
    require_all_read(resolved.config, resolved.origins)  # before there is a run directory
    if dry_run:
        print_resolved(resolved, everything=True)
        print_plan(preview(resolved.config))
        return
    with agree.process_group(choose_device(resolved.config.train)):
        run, resumes = open_run(resolved.config, resume=resume)
        narrator: Narrator = Narrator()
        if agree.is_main():
            print_resolved(resolved, everything=True)
            narrator = terminal_narrator()
        if resumes and not resume:
            narrator.say(f"{run.path} holds a run that did not end: going on with it")
        with run:
            if not run.is_locked:
                narrator.say(
                    f"{run.path} is on a file system without locks: see to it that no other process trains there"
                )
            try:
                result = train(
                    resolved,
                    run,
                    generate=generate,
                    make_probe=make_probe,
                    narrator=narrator,
                    start=start,
                    resume=resumes,
                    accept_changed=accept_changed,
                    stop=stop,
                )
            finally:
                narrator.end()  # a progress bar hides the cursor; an error must not leave it so
            if agree.is_main():
                print_result(result, run.path)
                write_page(run.path)
    if result.status == "stopped":
        raise SystemExit(RESUME_EXIT_CODE)


def what_may_change(words: Sequence[str] | None) -> frozenset[Changed]:
    """Return what the words after `--accept-changed` name.

    Raises: ConfigError for a word that is not one of them.
    """
    known = [what.value for what in Changed]
    if unknown := sorted(set(words or ()) - set(known)):
        raise ConfigError(f"--accept-changed {unknown[0]}: there is {', '.join(known)}", mend="name what has changed")
    return frozenset(map(Changed, words or ()))


def open_run(config: Config, *, resume: bool) -> tuple[RunDir, bool]:
    """Return the run directory, and whether it holds a run to go on with.

    The main rank creates or reopens and locks it, the others only know where it is.
    """
    device = choose_device(config.train)
    started = agree.value_of_main(int(time.time()), device if device.type == "cuda" else None)
    name = f"{datetime.fromtimestamp(started):%Y-%m-%d-%H%M%S}-{config.run.name}"
    path = Path(config.run.dir) if config.run.dir is not None else Path("runs") / name
    if resume and config.run.dir is None:
        raise ConfigError("--resume needs to know which run to go on with", mend="give run.dir=...")
    run = _open_main(path, resume=resume) if agree.is_main() else (RunDir(path), False)
    return run[0], bool(agree.value_of_main(int(run[1]), device if device.type == "cuda" else None))


def _open_main(path: Path, *, resume: bool) -> tuple[RunDir, bool]:
    if not resume and not RunDir(path).status_file.is_file():
        return RunDir.create(path), False
    run = RunDir.open(path, lock=True)
    if run.status["status"] == "finished":
        run.close()
        raise RunDirError(f"{path} has finished already", mend="choose another run.dir to train again")
    run.mark("running")
    return run, True


def write_page(path: Path) -> None:
    """Write the run's report; a run without its page is still a run, so that page's own trouble is only told."""
    from tutelage.report.page import write_report

    output().print(f"report    {escape(str(write_report(path)))}")


def print_plan(description: Mapping[str, Any]) -> None:
    """Print what a run would do."""
    table = Table(box=None, pad_edge=False, show_header=False, title="plan", title_justify="left", title_style="bold")
    table.add_column(style="quiet")
    table.add_column()
    for name, value in plan_rows(description):
        table.add_row(name, escape(value))
    output().print(table)


def plan_rows(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the plan as (what, figure) for people."""
    rows = [
        ("documents", f"{description['documents']:,} to train on, {description['held_out_documents']:,} held out"),
        ("tokens", f"{description['tokens']:,}, of which {description['supervised_tokens']:,} carry loss"),
        ("longest", f"{description['longest_document_tokens']:,} tokens"),
        ("epochs", f"{description['epochs']:.3g}"),
        ("steps", f"{description['steps']:,}"),
        ("packs", f"{description['packs']:,} of {description['pack_tokens']:,} tokens, {description['fill']:.1%} full"),
    ]
    if description["computed_tokens"] < description["planned_tokens"]:
        rows.append(("shared prefixes", description["shared_prefixes"]))
    if description["dropped_rows"] or description["dropped_tokens"]:
        reasons = "".join(f"{count:,} rows {reason}, " for reason, count in description["dropped_rows"].items())
        rows.insert(1, ("left out", f"{reasons}{description['dropped_tokens']:,} rendered tokens"))
    for share in description["shares"]:
        asked = "" if share["asked"] is None else f" (asked: {share['asked']:.1%})"
        rows.append((f"source {share['source']}", f"{share['realised']:.1%} of the trained tokens{asked}"))
    rows += [
        ("parameters", f"{description['parameters']:,}, of which {description['trainable_parameters']:,} are trained"),
        ("memory (estimate)", _memory(description)),
    ]
    return rows


def _memory(description: Mapping[str, Any]) -> str:
    parts = description["memory_bytes"]
    known = ", ".join(f"{name.replace('_', ' ')} {_bytes(size)}" for name, size in parts.items())
    total = description["memory_predicted_bytes"]
    return f"{_bytes(total)}: {known}" if total is not None else f"not known; beside activations, {known}"


def print_result(result: TrainResult, path: Path) -> None:
    """Print what the run changed and where its result is."""
    console = output()
    for before, after in list(zip(result.samples_before, result.samples_after, strict=False))[:SHOWN_SAMPLES]:
        console.print()
        console.print(f"[bold]{escape(_short(before.prompt.messages[-1].content))}[/]")
        console.print(f"[quiet]before[/]  {escape(_short(before.answer))}")
        console.print(f"[good] after[/]  {escape(_short(after.answer))}")
    console.print()
    if result.held_out_before is not None and result.held_out_after is not None:
        before_loss, after_loss = result.held_out_before.loss, result.held_out_after.loss
        console.print(f"held-out loss {before_loss:.4f} -> {after_loss:.4f} nats per token")
    for check in result.receipt.checks:
        if not check.passed:
            warn(f"check failed: {check.law}: {check.name}: {check.detail}")
    console.print(f"steps     {result.steps}")
    console.print(f"result    {escape(str(result.final or path))}")


def terminal_narrator() -> Narrator:
    """Return a progress bar for a terminal, plain lines for anything else."""
    return BarNarrator() if sys.stderr.isatty() else LineNarrator()


class Speed:
    """Tokens and supervised tokens per second over the last few steps, and the time that is left."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._recent: deque[tuple[int, int, float]] = deque(maxlen=SPEED_WINDOW_STEPS)
        self._done = 0

    def add(self, metrics: Mapping[str, Any]) -> str:
        """Add a step and return a line of figures."""
        self._recent.append((metrics["tokens"], metrics["supervised_tokens"], metrics["seconds"]))
        self._done = metrics["step"]
        tokens, supervised, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        left = (self.num_steps - self._done) * seconds / len(self._recent)
        return (
            f"loss {metrics['loss']:.4f}  {tokens / seconds:,.0f} tok/s  {supervised / seconds:,.0f} supervised/s  "
            f"{_duration(left)} left"
        )


class LineNarrator(Narrator):
    """Plain lines on standard error, at most one every few seconds."""

    def __init__(self) -> None:
        self._speed = Speed(0)
        self._told = 0.0
        self._last = ""

    def say(self, text: str) -> None:
        errors().print(escape(text))

    def plan(self, description: Mapping[str, Any]) -> None:
        print_plan(description)

    def begin(self, plan: RunPlan, first_step: int) -> None:
        self._speed = Speed(plan.num_steps)
        self.say(
            f"training {plan.num_steps - first_step:,} steps of about {plan.num_tokens // plan.num_steps:,} tokens"
        )

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._last = f"step {metrics['step']}/{self._speed.num_steps}  {self._speed.add(metrics)}"
        now = time.monotonic()
        if now - self._told >= PLAIN_LINE_SECONDS or metrics["step"] in (1, self._speed.num_steps):
            self._told = now
            self.say(self._last)

    def evaluation(self, evaluation: Evaluation) -> None:
        self.say(f"step {evaluation.step}  held-out loss {evaluation.loss:.4f}  ({evaluation.seconds:.1f} s)")


class BarNarrator(LineNarrator):
    """A progress bar with loss, speed and time left; news are printed above it."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=errors(),
            redirect_stdout=sys.stdout.isatty(),  # results that go into a pipe belong there
        )
        self._tasks: dict[str, TaskID] = {}

    def preparing(self, what: str, done: int, count: int) -> None:
        self._advance(what, done, count)

    def plan(self, description: Mapping[str, Any]) -> None:
        while self._tasks:  # the preparation is over, and its bars with it
            self._bar.remove_task(self._tasks.popitem()[1])
        self._bar.stop()
        super().plan(description)

    def begin(self, plan: RunPlan, first_step: int) -> None:
        self._speed = Speed(plan.num_steps)
        self._advance("training", first_step, plan.num_steps)

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._advance("training", metrics["step"], self._speed.num_steps, self._speed.add(metrics))

    def end(self) -> None:
        self._bar.stop()

    def _advance(self, what: str, done: int, count: int, figures: str = "") -> None:
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=count, figures=figures)
        self._bar.update(self._tasks[what], completed=done, total=count, figures=figures)


def _require_data(config: Config) -> None:
    if not config.data.train:
        raise ConfigError("nothing to train on: data.train is empty", mend="data.train.0.path=chats.jsonl")


def _short(text: str) -> str:
    """Return a text in one line, cut where it gets long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} ..."


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
