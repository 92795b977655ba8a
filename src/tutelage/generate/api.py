"""Answers from an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, a cloud.

As many requests are out at once as the server takes: one more with each answer until it says that it is busy; then a quarter fewer, after
a pause as long as it asks for, and one more after every 25 answers. A server that is away is waited for; what went wrong with one request
(cut off, too slow, not to be read) is tried again a few times. The key comes from an environment variable and is written nowhere.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from time import time
from typing import Any, TypeVar

import httpx2

from tutelage.data.conversation import Json, Message
from tutelage.data.reasons import RowError
from tutelage.data.strict_json import parse_json_bytes
from tutelage.errors import ConfigError, ModelError
from tutelage.files.encode import encode_json
from tutelage.generate.journal import CapReachedError
from tutelage.generate.sampler import NANODOLLARS, Books, Reply, Request, Sampling
from tutelage.redact import secret_in

_START_AT_ONCE = 8
_ANSWERS_FOR_ONE_MORE = 25
_LESS = 0.75
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0
_CONNECT_SECONDS = 30.0
_COMMIT_SECONDS = 0.002  # bookings of so long a time go to the disk together
_MOST_REPLY_BYTES = 1 << 24
_TEMPLATE_TOKENS = 64  # that a server's chat template may put around one message
_BUSY = (408, 425, 429, 503, 529)
_WRONG_REQUEST = (400, 413, 422)

Booked = TypeVar("Booked")


@dataclass(frozen=True)
class Server:
    """Where to ask, and what it takes and costs.

    `url` is the address that ends in `/v1`. Prices are dollars for a million tokens. `timeout_seconds` is for one whole answer;
    `patience_seconds` is how long a server may answer nothing at all before the build stops.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    most_at_once: int = 64
    timeout_seconds: float = 300.0
    patience_seconds: float = 600.0
    dollars_in: float = 0.0
    dollars_out: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for an address that is none, or that holds a secret."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is no address of a server", mend="such as http://127.0.0.1:8000/v1")
        if secret_in(self.url):
            raise ConfigError(
                "the address of the server holds a secret", mend=f"put the key into the variable {self.key_variable}"
            )


class _What(Enum):
    """What came of an attempt."""

    ANSWERED = "answered"
    BUSY = "busy"
    FAILED = "failed"
    REFUSED = "refused"
    HOPELESS = "hopeless"


@dataclass(frozen=True)
class _Attempt:
    """`charged` where it may have cost something; `wait` where the server may need a pause, of `wait_seconds` if it said so."""

    what: _What
    raw: Json = None
    reason: str = ""
    charged: bool = False
    wait: bool = False
    wait_seconds: float | None = None


class ApiSampler:
    """Asks a server. With `log_probabilities` it is asked for those of its tokens, which not every server can give."""

    def __init__(self, server: Server, sampling: Sampling, *, log_probabilities: bool = False) -> None:
        self._server = server
        self._sampling = sampling
        self._log_probabilities = log_probabilities

    def request(self, messages: Sequence[Message], *, seed: int) -> Request:
        """Return a chat completion of one choice, with every setting spelled out."""
        body: dict[str, Json] = {
            "model": self._server.model,
            "messages": [{"role": str(message.role), "content": message.content} for message in messages],
            "max_tokens": self._sampling.max_new_tokens,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": seed,
        }
        if self._log_probabilities:
            body["logprobs"] = True
        return Request(self._server.url.rstrip("/"), body)

    def most_cost(self, request: Request) -> int:
        """Return the cost of the longest answer, with a token for every byte of the prompt and room for the template."""
        messages = request.body["messages"]
        prompt_tokens = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in messages)
        return self._price(prompt_tokens, request.body["max_tokens"])

    def cost(self, request: Request, reply: Reply) -> int:
        """Return what the tokens cost that the server counted; the most it may have been where it did not count."""
        if reply.prompt_tokens is None or reply.answer_tokens is None:
            return self.most_cost(request)
        return self._price(reply.prompt_tokens, reply.answer_tokens)

    def run(self, requests: Sequence[Request], books: Books) -> None:
        """Ask every request; what is out when something makes it stop is waited for.

        Raises: CapReachedError when the money is gone; ModelError when the server turns everything away, or answers nothing.
        """
        asyncio.run(_Session(self._server, requests, books).run())

    def _price(self, prompt_tokens: int, answer_tokens: int) -> int:
        dollars = prompt_tokens * self._server.dollars_in + answer_tokens * self._server.dollars_out
        return -int(-dollars * NANODOLLARS // 1_000_000)


class _Session:
    """The requests of one `run`, each seen to by one of `most_at_once` workers."""

    def __init__(self, server: Server, requests: Sequence[Request], books: Books) -> None:
        self._server = server
        self._left: Iterator[Request] = iter(requests)
        self._num_workers = min(server.most_at_once, len(requests))
        self._writer = _Writer(books)
        self._gate = _Gate(server.most_at_once)
        self._stop: Exception | None = None
        self._answered_at = time()
        self._answers = 0
        self._out = 0
        self._landed = asyncio.Event()

    async def run(self) -> None:
        context = httpx2.create_ssl_context()  # slow to make, and the same for all
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._num_workers):
                workers.create_task(self._work(_Line(self._server, context)))
        if self._stop is not None:
            raise self._stop

    async def _work(self, line: _Line) -> None:
        try:
            for request in self._left:
                while self._stop is None and not await self._is_settled(line, request):
                    pass
                if self._stop is not None:
                    return
        finally:
            await line.close()

    async def _is_settled(self, line: _Line, request: Request) -> bool:
        """Ask once; return whether the request has ended."""
        async with self._gate:
            if self._stop is not None:
                return False
            try:
                await self._writer.write(lambda books: books.sent(request))
            except CapReachedError as error:
                await self._wait_for_room(error)
                return False
            self._out += 1
            answers_before = self._answers
            try:
                attempt = await line.ask(request)
                if attempt.what is _What.FAILED and attempt.wait and self._answers == answers_before:
                    attempt = replace(attempt, what=_What.BUSY)  # nobody else had better luck: it is the server
                ended = await self._book(request, attempt)
                if attempt.what is not _What.ANSWERED or not ended:
                    await line.renew()
                return ended
            finally:
                self._out -= 1
                self._landed.set()
                self._landed = asyncio.Event()

    async def _wait_for_room(self, error: CapReachedError) -> None:
        """Wait until a request that is out has come back, as it may have cost less than was held for it; stop where none is."""
        if self._out:
            await self._landed.wait()
        else:
            self._stop = self._stop or error

    async def _book(self, request: Request, attempt: _Attempt) -> bool:
        match attempt.what:
            case _What.ANSWERED:
                self._answered_at = time()
                self._answers += 1
                self._gate.went_well()
                return await self._writer.write(lambda books: books.received(request, attempt.raw))
            case _What.REFUSED:
                await self._writer.write(lambda books: books.refused(request, attempt.reason))
                return True
            case _What.HOPELESS:
                self._stop = self._stop or ModelError(
                    f"{self._server.url}: {attempt.reason}",
                    mend=f"check address and model, and that {self._server.key_variable} holds the key",
                )
        counts = attempt.what is _What.FAILED
        again = await self._writer.write(
            lambda books: books.returned(request, attempt.reason, charged=attempt.charged, counts=counts)
        )
        if attempt.what is _What.BUSY:
            self._gate.slow_down(attempt.wait_seconds)
            waited = time() - self._answered_at + (attempt.wait_seconds or 0.0)
            if waited > self._server.patience_seconds:
                self._stop = self._stop or ModelError(
                    f"{self._server.url} has answered nothing for {self._server.patience_seconds:.0f} seconds: {attempt.reason}",
                    mend="the same command goes on where it stopped",
                )
        return not again


class _Line:
    """One connection, for one request after another.

    A server or proxy that answers twice leaves the second answer for whatever is asked next on that connection. So no two workers share
    one, the next request waits until the reply is booked (the journal knows a reply that was given before), and after anything but a
    good reply the line is renewed.
    """

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context
        key = os.environ.get(server.key_variable, "")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = self._open()

    def _open(self) -> httpx2.AsyncClient:
        seconds = self._server.timeout_seconds
        return httpx2.AsyncClient(
            headers=self._headers,
            limits=httpx2.Limits(max_connections=1),
            timeout=httpx2.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds)),
            verify=self._context,
        )

    async def renew(self) -> None:
        """Hang up; the next request gets a new connection."""
        await self._client.aclose()
        self._client = self._open()

    async def close(self) -> None:
        """Hang up for good."""
        await self._client.aclose()

    async def ask(self, request: Request) -> _Attempt:
        """Send a request and read the whole reply."""
        seconds = self._server.timeout_seconds
        url, body = f"{request.endpoint}/chat/completions", encode_json(request.body).encode()
        try:
            async with asyncio.timeout(seconds):  # a reply that drips has no end of its own
                async with self._client.stream("POST", url, content=body) as response:
                    content = await _content(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return _Attempt(_What.BUSY, reason=f"the server cannot be reached: {error}", wait=True)
        except (TimeoutError, httpx2.TimeoutException):
            return _Attempt(_What.FAILED, reason=f"no answer in {seconds:g} seconds", charged=True)
        except httpx2.HTTPError as error:
            return _Attempt(_What.FAILED, reason=f"the connection was cut: {type(error).__name__}", charged=True)
        return _read(response, content)


async def _content(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _MOST_REPLY_BYTES:
            raise httpx2.DecodingError("the reply is too long", request=response.request)
    return bytes(body)


def _read(response: httpx2.Response, body: bytes) -> _Attempt:
    status = response.status_code
    if status == 200:
        try:
            return _Attempt(_What.ANSWERED, raw=parse_json_bytes(body))
        except RowError as error:
            return _Attempt(_What.FAILED, reason=f"the reply is no JSON: {error}", charged=True)
    reason = f"status {status}: {_said(body)}"
    if status in _BUSY:
        return _Attempt(_What.BUSY, reason=reason, wait=True, wait_seconds=_retry_after(response))
    if status in _WRONG_REQUEST:
        return _Attempt(_What.REFUSED, reason=reason)
    if status >= 500:
        return _Attempt(_What.FAILED, reason=reason, wait=True)
    return _Attempt(_What.HOPELESS, reason=reason)


def _said(body: bytes) -> str:
    return " ".join(body[:200].decode(errors="replace").split())


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds that a server asks for, as a number or as a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


class _Gate:
    """Lets in as many at once as the server takes, and none during a pause."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = float(min(most, _START_AT_ONCE))
        self._well = 0
        self._was_busy = False
        self._pauses = 0
        self._closed_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._inside = 0

    async def __aenter__(self) -> None:
        """Wait for a place."""
        while True:
            pause = self._closed_until - time()
            if pause > 0:
                await asyncio.sleep(pause)
            elif self._inside < int(self._room):
                self._inside += 1
                return
            else:
                place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(place)
                await place

    async def __aexit__(self, *_: object) -> None:
        """Give the place back."""
        self._inside -= 1
        self._let_in()

    def went_well(self) -> None:
        """Count an answer: each makes room for one more until the server has been busy once, and then every 25th."""
        self._pauses = 0
        self._well += 1
        if not self._was_busy or self._well % _ANSWERS_FOR_ONE_MORE == 0:
            self._room = min(self._most, self._room + 1)
            self._let_in()

    def slow_down(self, seconds: float | None) -> None:
        """Make less room and close for a while: as long as the server said, else longer each time. Once for each pause."""
        if time() < self._closed_until and seconds is None:
            return
        self._was_busy = True
        if time() >= self._closed_until:
            self._room = max(1.0, self._room * _LESS)
            self._pauses += 1
        own = min(_FIRST_PAUSE_SECONDS * 2.0 ** (self._pauses - 1), _LONGEST_PAUSE_SECONDS)
        self._closed_until = max(self._closed_until, time() + (own if seconds is None else seconds))

    def _let_in(self) -> None:
        for _ in range(min(len(self._waiting), int(self._room) - self._inside)):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)


class _Writer:
    """Writes bookings of many requests to the disk together: flushing each alone would take longer than the answers."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._pending: list[tuple[Callable[[Books], Any], asyncio.Future[Any]]] = []

    async def write(self, booking: Callable[[Books], Booked]) -> Booked:
        """Return what `booking` returns, or raise that there is no money, once it is on the disk."""
        booked: asyncio.Future[Booked] = asyncio.get_running_loop().create_future()
        self._pending.append((booking, booked))
        if len(self._pending) == 1:
            await asyncio.sleep(_COMMIT_SECONDS)
            self._commit()
        return await booked

    def _commit(self) -> None:
        pending, self._pending = self._pending, []
        refused, made = [], []
        with self._books.together():
            for booking, booked in pending:
                try:
                    made.append((booked, booking(self._books)))
                except CapReachedError as error:  # it has written nothing
                    refused.append((booked, error))
        for booked, result in made:
            if not booked.done():
                booked.set_result(result)
        for booked, refusal in refused:
            if not booked.done():
                booked.set_exception(refusal)
