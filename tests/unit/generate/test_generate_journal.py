"""The journal books every request once, keeps money under its cap, and forgets nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from tutelage.data.conversation import Json, Message, Role
from tutelage.errors import RunDirError
from tutelage.generate.journal import MOST_ATTEMPTS, CapReachedError, Journal, State
from tutelage.generate.sampler import Books, Reply, ReplyError, Request, read_reply


class Parrot:
    """Says its prompt again, for 10 billionths of a dollar of at most 30; `raws` come before, one for each attempt."""

    def __init__(self, *raws: Json) -> None:
        self.raws = list(raws)
        self.asked: list[str] = []

    def request(self, messages: Sequence[Message], *, seed: int) -> Request:
        return Request("parrot", {"text": messages[-1].content, "seed": seed})

    def most_cost(self, request: Request) -> int:
        return 30

    def cost(self, request: Request, reply: Reply) -> int:
        return 10

    def run(self, requests: Sequence[Request], books: Books) -> None:
        for request in requests:
            ended = False
            while not ended:
                books.sent(request)
                self.asked.append(request.key)
                ended = books.received(request, self.raws.pop(0) if self.raws else said(request.body["text"]))


def said(text: str, **more: Json) -> Json:
    return {"model": "parrot", "choices": [{"message": {"content": text}, "finish_reason": "stop"}], **more}


def requests_of(parrot: Parrot, *texts: str) -> list[Request]:
    return [parrot.request([Message(Role.USER, text)], seed=0) for text in texts]


def test_a_request_is_asked_once_over_all_runs(tmp_path: Path) -> None:
    parrot = Parrot()
    for _ in range(2):
        with Journal(tmp_path / "j", parrot) as journal:
            outcomes = journal.ask(requests_of(parrot, "a", "b", "a"))
    assert len(parrot.asked) == 2
    assert [outcome.reply.text for outcome in outcomes.values() if outcome.reply] == ["a", "b"]


def test_another_word_anywhere_is_another_request() -> None:
    one = Request("here", {"model": "m", "messages": [{"role": "system", "content": "Be brief."}], "seed": 0})
    others = [
        Request("there", one.body),
        Request("here", {**one.body, "seed": 1}),
        Request("here", {**one.body, "messages": [{"role": "system", "content": "Be brief!"}]}),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4


def test_what_was_rejected_stays_so_and_is_not_asked_again(tmp_path: Path) -> None:
    parrot = Parrot()
    with Journal(tmp_path / "j", parrot, judge=lambda reply: "too rude" if reply.text == "b" else None) as journal:
        journal.ask(requests_of(parrot, "a", "b"))
    with Journal(tmp_path / "j", parrot) as journal:
        outcomes = list(journal.ask(requests_of(parrot, "a", "b")).values())
        totals = journal.totals()
    assert [outcome.state for outcome in outcomes] == [State.ACCEPTED, State.REJECTED]
    assert totals.rejected == {"too rude": 1}
    assert len(parrot.asked) == 2


def test_what_cannot_be_read_is_asked_again_a_few_times(tmp_path: Path) -> None:
    parrot = Parrot({"choices": []}, [], {"choices": [{"message": {"content": None}}]})
    with Journal(tmp_path / "j", parrot) as journal:
        (outcome,) = journal.ask(requests_of(parrot, "a")).values()
        assert outcome.state is State.ACCEPTED
        assert journal.spent == 3 * 30 + 10  # nobody said what a reply without an answer cost
    parrot = Parrot(*[{"choices": []}] * MOST_ATTEMPTS)
    with Journal(tmp_path / "k", parrot) as journal:
        (outcome,) = journal.ask(requests_of(parrot, "a")).values()
    assert (outcome.state, outcome.reason, outcome.reply) == (State.REJECTED, "the reply has no choices", None)


def test_a_reply_that_another_request_had_is_not_taken(tmp_path: Path) -> None:
    twice = said("a", id="reply-1")
    parrot = Parrot(twice, twice)
    with Journal(tmp_path / "j", parrot) as journal:
        outcomes = journal.ask(requests_of(parrot, "a", "b"))
    assert [outcome.reply.text for outcome in outcomes.values() if outcome.reply] == ["a", "b"]


def test_money_is_held_before_a_request_is_sent(tmp_path: Path) -> None:
    parrot = Parrot()
    with Journal(tmp_path / "j", parrot, cap=55) as journal:
        with pytest.raises(CapReachedError, match="over the cap"):
            journal.ask(requests_of(parrot, *"abcdef"))
        assert len(parrot.asked) == 3  # 10 + 10 are spent when 30 are held, and then 30 + 30 would be too much
        assert journal.spent == 30


def test_what_was_out_when_the_process_died_is_booked_and_asked_again(tmp_path: Path) -> None:
    parrot = Parrot()
    (request,) = requests_of(parrot, "a")
    with Journal(tmp_path / "j", parrot) as journal:
        journal.plan([request])
        journal.sent(request)
    with Journal(tmp_path / "j", parrot) as journal:
        assert journal.spent == 30
        journal.ask([request])
        assert journal.spent == 40


def test_nothing_is_changed_or_deleted(tmp_path: Path) -> None:
    parrot = Parrot()
    with Journal(tmp_path / "j", parrot) as journal:
        journal.ask(requests_of(parrot, "a"))
    database = sqlite3.connect(tmp_path / "j")
    for statement in ("UPDATE events SET spent = 0", "DELETE FROM events", "DELETE FROM requests"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            database.execute(statement)
    states = [state for (state,) in database.execute("SELECT state FROM events ORDER BY number")]
    database.close()
    assert states == ["planned", "sent", "received", "parsed", "accepted"]


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(RunDirError, match="in use"):
        Journal(tmp_path / "j")
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(RunDirError, match="cannot be read as a database"):
        Journal(tmp_path / "text")


def test_a_reply_is_read_as_the_server_gives_it() -> None:
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -1.0}]}
    raw = said("x", usage={"prompt_tokens": 3, "completion_tokens": 2})
    raw["choices"][0]["logprobs"] = logprobs
    assert read_reply(json.loads(json.dumps(raw))) == Reply("x", "stop", "parrot", 3, 2, -1.5)
    logprobs["content"][0]["logprob"] = None
    assert read_reply(raw).log_probability is None
    for broken in (None, {}, {"choices": ["x"]}, {"choices": [{"message": {"content": 3}}]}):
        with pytest.raises(ReplyError):
            read_reply(broken)
