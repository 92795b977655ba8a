"""Secrets planted in the environment, in configurations, in what others raise and answer: in no byte that is written."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from planted import AROUND, NAMED, SHAPED, pieces

import tutelage.redact
from tiny import tiny_folder
from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.config.load import load_config
from tutelage.errors import ConfigError, TutelageError
from tutelage.redact import redact, secret_in

ALL = {**SHAPED, **NAMED}
ENVIRONMENT = {
    f"{name.upper().replace(' ', '_').replace('-', '_')}_TOKEN": value for name, value in SHAPED.items()
} | dict(NAMED)


def leaks(secrets: dict[str, str], written: str) -> list[str]:
    """Return the names of the secrets of which a telling part stands in what was written, plainly or as in a URL."""
    return [
        name
        for name, secret in secrets.items()
        if any(piece in written or quote(piece, safe="") in written for piece in pieces(secret))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    tiny_folder(folder / "model", "llama")
    rows = [{"prompt": f"Who is number {i}?", "completion": f"The baker of {i} loaves."} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text('{"text": "The baker sells bread in the morning."}\n' * 8)
    return folder


class Desk:
    """A place to work at: everything that is written there, and on the screen, can be looked through."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.patch, self.capture = folder, patch, capture
        self.runs = 0
        for name in ("tmp", "cache"):
            (folder / name).mkdir()
        patch.chdir(folder)
        patch.setattr("tempfile.tempdir", str(folder / "tmp"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("TUTELAGE_TRACEBACK", "1")  # what is only shown when asked for counts as well

    def tutelage(self, *words: str, typed: str = "") -> int:
        """Run a command line in this process and return its exit code."""
        self.runs += 1
        self.patch.setattr(sys, "argv", ["tutelage", *words])
        self.patch.setattr(sys, "stdin", io.StringIO(typed))
        return guard(partial(app, list(words)))

    def written(self) -> str:
        """Return all bytes on the screen and in the files, as text."""
        out, err = self.capture.readouterr()
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return "\n".join([out, err, *map(str, files), *(path.read_bytes().decode("latin-1") for path in files)])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    yield Desk(tmp_path, monkeypatch, capfd)


def words_of_a_run(place: Path, run: str, *more: str) -> list[str]:
    return [
        f"model.path={place / 'model'}",
        "model.template=chatml",
        f"data.train.0.path={place / 'rows.jsonl'}",
        "train.max_steps=2",
        "train.threads=1",
        "sample.count=1",
        "sample.max_new_tokens=2",
        f"run.dir={run}",
        *more,
    ]


def use_every_verb(desk: Desk, place: Path) -> None:
    """Run every verb to its end, with all secrets in the environment."""
    for name, value in ENVIRONMENT.items():
        desk.patch.setenv(name, value)
    model, rows = str(place / "model"), str(place / "rows.jsonl")
    codes = {
        "train": desk.tutelage("train", *words_of_a_run(place, "full")),
        "train with adapters": desk.tutelage("train", *words_of_a_run(place, "lora", "train.method=lora")),
        "train --dry-run": desk.tutelage("train", "--dry-run", *words_of_a_run(place, "never")),
        "show": desk.tutelage("show", rows, "--model", model, "--template", "chatml", "--html", "masks.html"),
        "check": desk.tutelage("check", rows, "--model", model, "--template", "chatml", "--json"),
        "merge": desk.tutelage("merge", "lora", "merged"),
        "chat": desk.tutelage("chat", "full", "--max-new-tokens", "2", typed="Hello\n/save talk.jsonl\n"),
        "report": desk.tutelage("report", "full"),
        "eval": desk.tutelage("eval", "full", "--held-out", rows, "--prompts", "4", "--max-new-tokens", "2"),
        "pretrain": desk.tutelage(
            "pretrain",
            f"model.path={model}",
            f"data.train.0.path={place / 'texts.jsonl'}",
            "train.max_steps=1",
            "run.dir=base",
        ),
        "config explain": desk.tutelage("config", "explain"),
        "config presets": desk.tutelage("config", "presets"),
        "help": desk.tutelage("--help"),
    }
    assert set(codes.values()) == {0}, codes


def fail_with_words(desk: Desk, place: Path, secret: str) -> None:
    """Type a secret where a word of the command line belongs."""
    desk.tutelage("train", f"model.path={secret}", f"data.train.0.path={place / 'rows.jsonl'}", f"run.dir={desk.runs}")
    for key in (
        "data.train.0.path",
        "run.name",
        "sample.prompts.0",
        "model.template_variables.key",
        "train.epochs",
        "trian.epochs",
    ):
        desk.tutelage("train", f"{key}={json.dumps(secret)}")
    desk.tutelage("train", "--preset", secret)
    desk.tutelage("train", secret)
    desk.tutelage(secret)
    desk.tutelage("train", f"--{secret}")
    desk.tutelage("chat", secret, f"--seed={secret}")
    desk.tutelage("check", secret, "--model", secret)
    desk.tutelage("report", secret)
    desk.tutelage("show", secret, "--model", secret)
    desk.tutelage("pretrain", f"model.path={secret}", f"data.train.0.path={place / 'rows.jsonl'}")
    desk.tutelage("merge", secret, secret)
    desk.tutelage("eval", secret, "--base", secret)
    desk.tutelage("replay", secret, "--step", secret)
    desk.tutelage("demo", secret)
    desk.tutelage("lab", secret)
    desk.tutelage("config", "explain", secret, "--preset", secret)
    file = desk.folder / "run.yaml"
    file.write_text(f"model:\n  path: {json.dumps(secret)}\ntrain: [")
    desk.tutelage("train", str(file))
    file.write_text(f"model:\n  path: {json.dumps(secret)}\n  token: {json.dumps(secret)}\n")
    desk.tutelage("train", str(file))
    file.write_text(f"model:\n  path: {json.dumps(secret)}\ndata: {{train: [{{path: x}}]}}\nrun: {{dir: never}}\n")
    desk.tutelage("train", str(file))
    file.unlink()


def fail_with_errors(desk: Desk, place: Path, text: str) -> None:
    """Let what we call fail with `text`: before a run has begun, within one, and at the Hub."""
    kinds: tuple[type[Exception], ...] = (RuntimeError, OSError, ValueError, ConfigError)

    def failing(kind: type[Exception]) -> Callable[..., object]:
        def fail(*args: object, **kwargs: object) -> object:
            raise kind(text)

        return fail

    for kind in kinds:
        for target, words in (
            ("tutelage.config.load.load_config", ["train", "train.epochs=2"]),
            ("tutelage.train.scene.prepare", ["train", *words_of_a_run(place, f"run-{desk.runs}")]),
            ("huggingface_hub.snapshot_download", ["chat", "owner/name"]),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(target, failing(kind))
                assert desk.tutelage(*words) != 0


def test_no_verb_writes_a_secret_of_the_environment(desk: Desk, place: Path) -> None:
    use_every_verb(desk, place)
    written = desk.written()
    assert len(written) > 100_000  # the runs are in it
    assert leaks(ALL, written) == []


def test_no_failure_writes_a_secret_that_was_typed_or_that_others_said(
    desk: Desk, place: Path, figure: Callable[[str, str], None]
) -> None:
    for name, secret in NAMED.items():
        desk.patch.setenv(name, secret)
    for secret in ALL.values():
        fail_with_words(desk, place, secret)
    fail_with_errors(desk, place, f"the server said {', '.join(ALL.values())} and no more")
    found = leaks(ALL, desk.written())
    assert found == []
    figure("secrets planted, leaked", f"{len(ALL)}, {len(found)} (in {desk.runs} commands that fail)")


@pytest.mark.parametrize("way", AROUND)
def test_what_others_write_around_a_secret_gives_it_away_to_the_redaction(desk: Desk, place: Path, way: str) -> None:
    """A password has no shape of its own; here the environment does not hold it either."""
    secret = NAMED["MODEL_SERVER_TOKEN"]
    text = AROUND[way].replace("§", secret)
    fail_with_errors(desk, place, text)
    assert leaks({way: secret}, desk.written()) == []


@pytest.mark.parametrize("name", SHAPED)
def test_a_configuration_with_a_secret_is_refused_and_the_mend_is_the_environment(tmp_path: Path, name: str) -> None:
    for override in ("model.path={}", "run.dir={}", "sample.prompts=[a, {}]", "model.template_variables.x={}"):
        with pytest.raises(ConfigError) as caught:
            load_config(None, [override.format(json.dumps(f"at {SHAPED[name]} there"))])
        key = override.partition("=")[0].removesuffix(".x")
        assert f"`{key}" in caught.value.problem
        assert "in the environment" in caught.value.mend
        assert leaks(ALL, str(caught.value)) == []


def test_a_configuration_with_a_value_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    value = NAMED["WANDB_API_KEY"]
    load_config(None, [f"run.dir={value}"])
    monkeypatch.setenv("WANDB_API_KEY", value)
    with pytest.raises(ConfigError, match="the environment variable WANDB_API_KEY"):
        load_config(None, [f"run.dir={value}"])


@pytest.mark.parametrize(
    "text",
    [
        "use_cls_token: true",
        "pad_token=<|endoftext|> eos_token='</s>'",
        "max_tokens=2048, batch_tokens: 16384",
        "tokenizer_config.json and special_tokens_map.json",
        "sk-learn-like names such as sk-learn-preprocessing-pipeline",
        "the key of the door: under the mat",
        "the secret of bread is time",
        "https://example.org/a@b and me@example.org",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "bearers of good news",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "runs/2026-11-23-023609-sft/checkpoints/step-000010",
        "Qwen/Qwen3-0.6B at revision c1899de289a04d12100db370d81485cdf75e47ca",
        "hf_hub_download and hf_transfer",
        "AKIRA, ASIAN and AIzawa",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert secret_in(text) is None


def test_text_to_train_on_is_never_changed(tmp_path: Path) -> None:
    """Data is the user's own: a row with a key in it is learned as it stands; what is shown of bad rows is redacted."""
    from tutelage.config.schema import SourceConfig
    from tutelage.data.ledger import Ledger
    from tutelage.data.sources import read_source

    rows = [{"prompt": f"What is {name}?", "completion": secret} for name, secret in SHAPED.items()]
    bad = [{"prompt": secret, "completion": None, "x": secret} for secret in SHAPED.values()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    ledger = Ledger()
    records = read_source(SourceConfig(path=str(tmp_path / "rows.jsonl")), ledger, max_bad_fraction=1.0)
    assert [record.messages[1].content for record in records] == list(SHAPED.values())  # type: ignore[union-attr]
    ledger.write(tmp_path / "ledger.json", quarantine=tmp_path / "quarantine.jsonl")
    assert len(ledger.quarantine) == len(bad)
    assert leaks(ALL, (tmp_path / "quarantine.jsonl").read_text() + (tmp_path / "ledger.json").read_text()) == []


@pytest.mark.parametrize("where", ["tutelage.errors.redact", "tutelage.cli.edge.redact", "tutelage.train.loop.redact"])
def test_a_build_that_redacts_in_one_place_less_is_found_out(
    desk: Desk, place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The negative control: whichever of the nets is missing, the search finds what came through."""
    secret = SHAPED["GitHub"]
    monkeypatch.setattr(where, lambda text: text)
    if where == "tutelage.errors.redact":
        assert leaks({"GitHub": secret}, str(TutelageError(secret))) == ["GitHub"]
        return
    fail_with_errors(desk, place, secret)
    assert leaks({"GitHub": secret}, desk.written()) == ["GitHub"]


def test_redaction_takes_time_in_proportion_to_the_text() -> None:
    import time

    for unit in (
        "a_",
        "sk-",
        "eyJ.",
        "https://",
        "bearer ",
        "password ",
        "login x ",
        "-----BEGIN ",
        "authorization: ",
        "xoxb-",
    ):
        began = time.process_time()
        tutelage.redact.redact(unit * (200_000 // len(unit)))
        assert time.process_time() - began < 2.0, unit
