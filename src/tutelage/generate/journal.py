"""Every request of a build, once, in a file that a kill at any moment cannot harm.

A request is `planned`, `sent`, `received`, `parsed`, and in the end `accepted` or `rejected` with a reason. Nothing is ever changed
or deleted: each step is an event of its own (the database refuses anything else), and where a request stands is its last event.
What was accepted or rejected stays so, and is never asked again. A request that was sent when the process died is asked again, and
what it may have cost at most is booked as spent, so that the sum is never less than what was paid.

Money is reserved before a request is sent: what is spent and what is out never exceed the cap together.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from tutelage.data.conversation import Json, content_hash
from tutelage.errors import RunDirError, TutelageError
from tutelage.files.database import open_database
from tutelage.files.encode import encode_json
from tutelage.generate.sampler import NANODOLLARS, Reply, ReplyError, Request, Sampler, read_reply
from tutelage.redact import redact

MOST_ATTEMPTS = 5
"""Attempts that a request has before it is rejected; being turned away by a server that is busy is none."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, endpoint TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES requests, state TEXT NOT NULL, seconds REAL NOT NULL,
  held INTEGER NOT NULL, spent INTEGER NOT NULL, reason TEXT, raw TEXT, reply_hash TEXT
);
CREATE INDEX IF NOT EXISTS events_of ON events (key, number);
CREATE TRIGGER IF NOT EXISTS requests_stay BEFORE UPDATE ON requests BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS requests_remain BEFORE DELETE ON requests BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


class State(StrEnum):
    """Where a request stands."""

    PLANNED = "planned"
    SENT = "sent"
    RECEIVED = "received"
    PARSED = "parsed"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


FINAL = (State.ACCEPTED, State.REJECTED)


class CapReachedError(TutelageError, RuntimeError):
    """There is no money left for another request."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended: its reply where there is one, and why it was rejected where it was."""

    state: State
    reason: str | None
    reply: Reply | None


@dataclass(frozen=True)
class Totals:
    """Requests by where they stand, the rejected ones also by reason, and money in billionths of a dollar."""

    states: Mapping[str, int]
    rejected: Mapping[str, int]
    spent: int
    held: int

    def to_json(self) -> dict[str, Json]:
        """Return every figure, money in dollars."""
        return {
            "requests": sum(self.states.values()),
            "states": dict(self.states),
            "rejected": dict(self.rejected),
            "spent_dollars": self.spent / NANODOLLARS,
        }


class Journal:
    """The requests of one build. `judge` says of a reply why it is rejected, or None where it is accepted."""

    def __init__(
        self,
        path: str | Path,
        sampler: Sampler | None = None,
        *,
        judge: Callable[[Reply], str | None] = lambda reply: None,
        cap: int | None = None,
        on_end: Callable[[Journal], None] = lambda journal: None,
    ) -> None:
        """Open the journal at `path`; `cap` is in billionths of a dollar, `on_end` is called whenever a request ends."""
        self.path = Path(path)
        self._database = open_database(path, _SCHEMA)
        self._sampler = sampler
        self._judge = judge
        self._cap = cap
        self._on_end = on_end
        self._last: dict[str, tuple[State, int]] = {}  # state and money held
        self._attempts: Counter[str] = Counter()
        self._ended: Counter[State] = Counter()
        self._replies: dict[str, str] = {}
        self._spent = self._held = 0
        for key, state, held, spent, reply_hash in self._database.execute(
            "SELECT key, state, held, spent, reply_hash FROM events ORDER BY number"
        ):
            self._remember(key, State(state), held, spent, reply_hash)
        self._close_lost()

    @property
    def accepted(self) -> int:
        """Requests that were accepted."""
        return self._ended[State.ACCEPTED]

    @property
    def rejected(self) -> int:
        """Requests that were rejected."""
        return self._ended[State.REJECTED]

    @property
    def spent_dollars(self) -> float:
        """Money spent, in dollars."""
        return self._spent / NANODOLLARS

    @property
    def spent(self) -> int:
        """Money spent, in billionths of a dollar."""
        return self._spent

    def ask(self, requests: Sequence[Request], *, offline: bool = False) -> dict[str, Outcome]:
        """See that every request has ended, and return how, by key. What has ended before is not asked again.

        Raises: RunDirError when something has not been asked and `offline` forbids it; CapReachedError when the money is gone.
        """
        self.plan(requests)
        wanted = {request.key: request for request in requests}
        missing = [request for key, request in wanted.items() if self._last[key][0] not in FINAL]
        if missing and (offline or self._sampler is None):
            raise RunDirError(
                f"{len(missing)} of {len(wanted)} requests have no answer in {self.path}",
                mend="without --offline they are asked",
            )
        if missing and self._sampler is not None:
            self._sampler.run(missing, self)
        outcomes = {key: outcome for key, outcome in self.outcomes() if key in wanted}
        self._require_balance(wanted, outcomes)
        return outcomes

    def plan(self, requests: Sequence[Request]) -> None:
        """Book requests that are to be asked; one that is known already stays as it is."""
        with self.together():
            for request in requests:
                if request.key not in self._last:
                    self._database.execute(
                        "INSERT INTO requests VALUES (?, ?, ?)",
                        (request.key, request.endpoint, encode_json(request.body)),
                    )
                    self._write(request.key, State.PLANNED)

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        """Yield key and outcome of every request that has ended."""
        ended = "SELECT key, state, reason FROM events WHERE state IN ('accepted', 'rejected') ORDER BY number"
        for key, state, reason in self._database.execute(ended).fetchall():
            yield key, Outcome(State(state), reason, self._reply_of(key))

    def totals(self) -> Totals:
        """Return the sums over all requests."""
        states = Counter(str(state) for state, _ in self._last.values())
        reasons = self._database.execute("SELECT reason, count(*) FROM events WHERE state = 'rejected' GROUP BY reason")
        return Totals(states, dict(reasons), self._spent, self._held)

    # What a sampler writes down (see `sampler.Books`).

    def sent(self, request: Request) -> None:
        """Book that `request` is about to be sent, with what it may cost at most."""
        held = self._require_sampler().most_cost(request)
        if self._cap is not None and self._spent + self._held + held > self._cap:
            raise CapReachedError(
                f"{self._spent / NANODOLLARS:.4f} dollars are spent and {self._held / NANODOLLARS:.4f} out, and another request may "
                f"cost {held / NANODOLLARS:.4f}: over the cap of {self._cap / NANODOLLARS:.4f}",
                mend="raise --max-cost; the same command goes on where it stopped",
            )
        self._write(request.key, State.SENT, held=held)

    def received(self, request: Request, raw: Json) -> bool:
        """Book a reply, read it and judge it; return whether the request has ended."""
        reply_hash = content_hash(raw)
        if self._replies.get(reply_hash, request.key) != request.key and isinstance(raw, Mapping) and raw.get("id"):
            return not self.returned(request, "the reply is one that another request had", charged=True)
        try:
            reply = read_reply(raw)
        except ReplyError as error:
            return not self.returned(request, str(error), charged=True)
        with self.together():
            self._write(
                request.key,
                State.RECEIVED,
                spent=self._require_sampler().cost(request, reply),
                raw=encode_json(raw),
                reply_hash=reply_hash,
            )
            self._write(request.key, State.PARSED)
            reason = self._judge(reply)
            self._write(request.key, State.ACCEPTED if reason is None else State.REJECTED, reason=reason)
        self._on_end(self)
        return True

    def returned(self, request: Request, reason: str, *, charged: bool, counts: bool = True) -> bool:
        """Book an attempt that brought nothing; True where the request is to be asked again."""
        spent = self._last[request.key][1] if charged else 0
        self._attempts[request.key] += counts
        if self._attempts[request.key] >= MOST_ATTEMPTS:
            self._write(request.key, State.REJECTED, spent=spent, reason=redact(reason))
            self._on_end(self)
            return False
        self._write(request.key, State.PLANNED, spent=spent, reason=redact(reason))
        return True

    def refused(self, request: Request, reason: str) -> None:
        """Book that `request` will never be answered; nothing was charged."""
        self._write(request.key, State.REJECTED, reason=redact(reason))
        self._on_end(self)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write everything inside the block to the disk at once."""
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(
        self,
        key: str,
        state: State,
        *,
        held: int = 0,
        spent: int = 0,
        reason: str | None = None,
        raw: str | None = None,
        reply_hash: str | None = None,
    ) -> None:
        self._database.execute(
            "INSERT INTO events (key, state, seconds, held, spent, reason, raw, reply_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, state, time.time(), held, spent, reason, raw, reply_hash),
        )
        self._remember(key, state, held, spent, reply_hash)

    def _remember(self, key: str, state: State, held: int, spent: int, reply_hash: str | None) -> None:
        before = self._last.get(key)
        self._held += held - (before[1] if before is not None else 0)
        self._spent += spent
        self._ended[state] += state in FINAL
        self._last[key] = (state, held)
        if reply_hash is not None:
            self._replies[reply_hash] = key

    def _close_lost(self) -> None:
        """Book what was out when an earlier process died: it may have been charged, and is to be asked again."""
        with self.together():
            for key, (state, held) in list(self._last.items()):
                if state is State.SENT:
                    self._write(key, State.PLANNED, spent=held, reason="the process died while it was out")

    def _reply_of(self, key: str) -> Reply | None:
        row = self._database.execute(
            "SELECT raw FROM events WHERE key = ? AND raw IS NOT NULL ORDER BY number DESC LIMIT 1", (key,)
        ).fetchone()
        return None if row is None else read_reply(json.loads(row[0]))

    def _require_sampler(self) -> Sampler:
        if self._sampler is None:
            raise RunDirError(f"{self.path} was opened without anything that answers", mend="give a model")
        return self._sampler

    def _require_balance(self, wanted: Mapping[str, Request], outcomes: Mapping[str, Outcome]) -> None:
        """Raise RunDirError unless every request that went in came out, once, accepted or rejected for a reason."""
        once = sum(state in FINAL for state, _ in self._last.values())
        if wanted.keys() != outcomes.keys() or self.accepted + self.rejected != once:
            raise RunDirError(
                f"{len(wanted)} requests went in, {len(outcomes)} came out of {self.path}, and {once} of its requests have "
                f"{self.accepted + self.rejected} ends",
                mend="the journal was changed from outside; begin anew in another folder",
            )
