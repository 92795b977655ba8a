"""The cache of prepared documents: the second run with the same data, template, tokenizer and options skips the work.

An entry is named by a hash of all that it depends on: the bytes of the data files, the template, the tokenizer's files,
the options of preparation, and the code and libraries that did it. It is written whole or not at all and checked against
its manifest before it is used; a damaged one is set aside. Whatever goes wrong here costs the cache, never the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tutelage
from tutelage.chat.render import Renderer
from tutelage.config.schema import Config, SourceConfig, TooLong
from tutelage.data.conversation import content_hash
from tutelage.data.sources import find_files, judge
from tutelage.data.tables import HUB_PREFIX, is_saved_data_set
from tutelage.errors import DataError, RunDirError
from tutelage.files.atomic import STAGING_PREFIX, new_folder, remove_folder, remove_staging, set_aside, write_json
from tutelage.files.manifest import sha256_file, verify_manifest, write_manifest
from tutelage.train.shards import Gathered, read_gathered, write_books

FORMAT = 2
AUTO, OFF = "auto", "off"
_LIBRARIES = ("bm25s", "jinja2", "numpy", "tokenizers", "transformers")
_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "additional_chat_templates/*")
_OF_THE_MIXTURE = {"weight", "share", "epochs"}  # of a source: how often it is drawn, not what it holds
_OF_THE_PROCESS = {"cache_gigabytes", "workers"}  # how it is prepared, not what
_SETTLED_SECONDS = 2.0  # a file written to within its clock's tick would keep its time of change

_ABANDONED_SECONDS = 86_400.0  # no process writes an entry for a day


@dataclass(frozen=True)
class Entry:
    """The place of one prepared data set in the cache; `files` are the SHA-256 of the data files that it is made from, `corpus` those
    of the texts that it has passages from."""

    folder: Path
    files: dict[str, str]
    corpus: dict[str, str]


def cache_folder(setting: str | None) -> Path | None:
    """Return the folder that `data.cache` means; None where the cache is off."""
    if setting is None or setting == OFF:
        return None
    if setting != AUTO:
        return Path(setting).expanduser()
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the standard asks to pass over a relative one
    try:
        return (home if home.is_absolute() else Path.home() / ".cache") / "tutelage"
    except RuntimeError:  # a user without a home
        return None


def find_entry(config: Config, renderer: Renderer) -> tuple[Entry | None, list[str]]:
    """Return where documents of this configuration are kept, and what there is to say of it.

    None where they are not kept: the cache is off, or rows come from elsewhere than data files.
    """
    root = cache_folder(config.data.cache)
    if root is None:
        return None, []
    sources = [*config.data.train, *config.data.held_out]
    try:
        files = [_files_of(source) for source in sources]
        texts = [] if config.data.retrieve.corpus is None else _files_of(SourceConfig(path=config.data.retrieve.corpus))
    except DataError:
        return None, []  # reading will say it, and better
    if not all(files) or texts is None:
        return None, ["not kept in the cache: only data files can be compared with what they were"]
    try:
        hashes = {str(file): _remembered_sha256(file, root) for found in files if found for file in found}
        corpus = {str(file): _remembered_sha256(file, root) for file in texts}
    except OSError:
        return None, []  # as above
    key = content_hash(
        {
            "format": FORMAT,
            "code": _code_digest(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "sources": [source.model_dump(mode="json", exclude=_OF_THE_MIXTURE) for source in sources],
            "train_sources": len(config.data.train),
            "files": [[[str(file), hashes[str(file)]] for file in found] for found in files if found],
            "corpus": corpus,
            "left_out": [sorted(map(str, find_files(source.path))) for source in sources],
            "options": _options(config),
            "template": _template_facts(renderer),
            "tokenizer": _tokenizer_facts(renderer),
        }
    )
    return Entry(root / "prepared" / key, hashes, corpus), []


def load(entry: Entry, config: Config) -> tuple[Gathered | None, list[str]]:
    """Return what the cache holds and what there is to say of it; None where it holds nothing that this run may use."""
    if not entry.folder.is_dir():
        return None, []
    try:
        problems = verify_manifest(entry.folder)
        gathered = None if problems else read_gathered(entry.folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        problems, gathered = [str(error)], None
    if gathered is None:
        return None, [f"{_set_aside(entry.folder)}: {problems[0]}"]
    with suppress(OSError):
        os.utime(entry.folder)  # used last: see `make_room`
    return (gathered if _allowed(gathered, config) else None), []


class Maker:
    """A cache entry in the making: a staging folder, which becomes the entry when `keep` says so and is removed else.

    `folder` is None where nothing is kept: there is no entry to make, or no place for one, and then `news` says why.
    """

    def __init__(self, entry: Entry | None) -> None:
        self.news: list[str] = []
        self.folder: Path | None = None
        self._entry = entry
        self._staging = ExitStack()
        if entry is None:
            return
        try:
            with suppress(OSError):
                remove_staging(entry.folder.parent, older_than_seconds=_ABANDONED_SECONDS)
            self.folder = self._staging.enter_context(new_folder(entry.folder))
        except RunDirError:
            pass  # another process kept the same documents meanwhile
        except OSError as error:
            self.news.append(f"not kept in the cache {entry.folder.parent}: {error.strerror or error}")

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def keep(self, gathered: Gathered, *, corpus: Mapping[str, str], problem: str = "") -> None:
        """Let the staging folder, which holds the documents, become the entry, unless there is a reason not to.

        `corpus` are the SHA-256 of the texts that passages were taken from, as they were read.

        What was mapped from the folder stays mapped, whatever becomes of it.
        """
        entry = self._entry
        if entry is None or self.folder is None:
            return
        read = {name: digest for account in gathered.ledger.sources.values() for name, digest in account.files.items()}
        if problem:
            self._say(problem)
        elif read != entry.files or corpus != entry.corpus:
            self.news.append("not kept in the cache: a data file changed while it was read")
        elif gathered.contract is None or gathered.contract.passed:
            try:
                write_books(self.folder, gathered)
                about = {"format": FORMAT, "tutelage": tutelage.__version__, "files": entry.files}
                write_manifest(self.folder, about=about)
                self._staging.close()
            except RunDirError:
                pass  # as above
            except OSError as error:
                if not entry.folder.is_dir():
                    self._say(error.strerror or str(error))
            except (TypeError, ValueError) as error:  # a tool described by what JSON cannot hold
                self._say(str(error))

    def _say(self, problem: str) -> None:
        assert self._entry is not None
        self.news.append(f"not kept in the cache {self._entry.folder.parent}: {problem}")

    def _give_up(self) -> None:
        """Let the staging folder see an error, upon which it is removed; one that is settled already sees nothing."""
        reason = GivenUpError()
        with suppress(GivenUpError):
            self._staging.__exit__(GivenUpError, reason, None)


class GivenUpError(Exception):
    """What was prepared is not kept."""


def make_room(entry: Entry, most_bytes: float) -> list[str]:
    """Remove the entries that were used longest ago, but not this one, until all have `most_bytes`; say how many.

    Other runs may go on reading what they have mapped of them.
    """
    removed, freed = 0, 0
    try:
        used = {folder: folder.stat().st_mtime_ns for folder in entry.folder.parent.iterdir() if folder.is_dir()}
        sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in used}
        for folder in sorted(used, key=used.__getitem__):
            if sum(sizes.values()) - freed <= most_bytes:
                break
            if folder != entry.folder and not folder.name.startswith(STAGING_PREFIX):
                remove_folder(folder)
                removed, freed = removed + 1, freed + sizes[folder]
    except OSError as error:  # another process does the same
        return [f"the cache {entry.folder.parent} could not be made smaller: {error.strerror or error}"]
    if not removed:
        return []
    return [
        f"removed from the cache: {removed} entries of {freed / 1e9:.1f} GB, used longest ago (data.cache_gigabytes)"
    ]


def _set_aside(folder: Path) -> str:
    try:
        place = set_aside(folder)
    except OSError as error:
        return f"the cache entry {folder} is damaged and could not be set aside ({error.strerror or error})"
    return f"a damaged cache entry was set aside as {place}"


def _allowed(gathered: Gathered, config: Config) -> bool:
    """Whether this run's rules let these books pass. Where they do not, preparation anew says so at the right moment."""
    if config.data.too_long is TooLong.ERROR and gathered.oversized:
        return False
    try:
        for account in gathered.ledger.sources.values():
            judge(account, gathered.ledger, config.data.max_bad_fraction)
    except DataError:
        return False
    return True


def _files_of(source: SourceConfig) -> list[Path] | None:
    if source.path.startswith(HUB_PREFIX) or is_saved_data_set(Path(source.path)):
        return None
    return find_files(source.path, split=source.split)


def _options(config: Config) -> dict[str, Any]:
    """Return the options that decide what is prepared. Rules that only stop a run are asked anew: see `_allowed`."""
    options = config.data.model_dump(
        mode="json", exclude={"train", "held_out", "cache", "max_bad_fraction", *_OF_THE_PROCESS}
    )
    if config.data.too_long is TooLong.ERROR:
        options["too_long"] = TooLong.DROP.value
    seed = config.train.seed if config.data.held_out_fraction else None
    return {**options, "seed": seed}


def _template_facts(renderer: Renderer) -> dict[str, Any]:
    template = renderer.template
    own = (renderer.tokenizer.template_for(tools=tools) or "" for tools in (False, True))
    tells_date = any("strftime_now" in source for source in (template.source if template else "", *own))
    return {
        "name": template.name if template else None,
        "source": template.source if template else None,
        "variables": renderer.variables,
        "date": date.today().isoformat() if tells_date else None,
    }


def _tokenizer_facts(renderer: Renderer) -> dict[str, Any]:
    folder = Path(renderer.tokenizer.hf.name_or_path)
    files = sorted(file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file())
    return {
        "files": [[file.relative_to(folder).as_posix(), sha256_file(file)] for file in files],
        "new_ids": renderer.tokenizer.new_ids,
        "vocab_size": renderer.tokenizer.vocab_size,
    }


def _remembered_sha256(file: Path, root: Path) -> str:
    """Return the SHA-256 of a data file; one that has not been touched since it was last hashed is not read again."""
    path = file.resolve()
    facts = _facts_of(path)
    note = root / "hashes" / f"{content_hash(str(path))}.json"
    try:
        remembered = json.loads(note.read_bytes())
        if remembered["facts"] == facts:
            return str(remembered["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # never hashed, or the note is no note: hash it
    began = time.time()
    digest = sha256_file(path)
    if facts == _facts_of(path) and began - max(facts[1:3]) / 1e9 > _SETTLED_SECONDS:
        with suppress(OSError):  # `store` will say that the cache cannot be written
            write_json(note, {"facts": facts, "sha256": digest})
    return digest


def _facts_of(path: Path) -> list[int]:
    """Return size, times of change of content and of the entry itself (ns; the second cannot be set), and number."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]


@cache
def _code_digest() -> str:
    """Hash the sources of the rooms that prepare: a changed line may change a token."""
    digest = hashlib.sha256(tutelage.__version__.encode())
    for file in _code_files():
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _code_files() -> Iterator[Path]:
    package = Path(tutelage.__file__).parent
    for room in ("chat", "data"):
        yield from sorted(file for file in (package / room).rglob("*") if file.suffix in (".py", ".jinja"))
    yield from (package / "train" / name for name in ("prepare.py", "chunks.py", "shards.py"))


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
