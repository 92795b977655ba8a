"""An OpenAI-compatible server on loopback that goes wrong in every way a server can, and counts what it would charge for.

What it answers names the prompt and the seed that it was asked with, so that an answer in a wrong place shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

FAULTS = ("busy", "error", "silent", "cut", "torn", "malformed", "empty", "slow", "twice")
PROMPT_TOKENS, ANSWER_TOKENS = 7, 11


def answer_to(body: dict[str, Any]) -> str:
    """Return the only right answer to a request."""
    return f"answer to {body['messages'][-1]['content']} with {body['seed']}"


class FaultServer:
    """Counts in `faults` what went wrong, in `charged` how many replies it began; `asked` holds every body it was sent."""

    def __init__(self, faults: Sequence[str], share: float, *, delay_seconds: float = 0.0, seed: int = 0) -> None:
        self.faults: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.charged = 0
        self.port = 0
        self._kinds = tuple(faults)
        self._share = share
        self._delay = delay_seconds
        self._random = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the last: the server goes down
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        body = json.loads(await reader.readexactly(length))
        self.headers.append(head)
        self.asked.append(body)
        await asyncio.sleep(self._delay)
        fault = self._random.choice(self._kinds) if self._random.random() < self._share else ""
        self.faults[fault] += 1
        if fault == "busy":
            writer.write(response("429 Too Many Requests", b"{}", "Retry-After: 0.01\r\n"))
            return True
        if fault == "error":
            writer.write(response("500 Internal Server Error", b"oops"))
            return True
        self.charged += 1
        reply = self._reply(body, len(self.asked))
        if fault == "silent":
            await asyncio.sleep(1.0)
            return False
        if fault == "cut":
            return False
        if fault == "malformed":
            reply = reply[: len(reply) // 2]
        elif fault == "empty":
            reply = json.dumps({"id": f"empty-{self.charged}", "choices": []}).encode()
        whole = response("200 OK", reply)
        if fault == "torn":
            writer.write(whole[:-10])
            await writer.drain()
            return False
        if fault == "slow":
            for start in range(0, len(whole), 8):
                writer.write(whole[start : start + 8])
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        writer.write(whole * 2 if fault == "twice" else whole)
        await writer.drain()
        return True

    def _reply(self, body: dict[str, Any], number: int) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": answer_to(body)}, "finish_reason": "stop"}
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS}
        return json.dumps({"id": f"reply-{number}", "model": "tiny-1", "choices": [choice], "usage": usage}).encode()


def response(status: str, body: bytes, headers: str = "") -> bytes:
    """Return the bytes of a response."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextmanager
def fault_server(*faults: str, share: float = 0.3, delay_seconds: float = 0.0) -> Iterator[FaultServer]:
    """Serve in a thread of this process; of the requests, `share` go wrong in one of these ways."""
    server = FaultServer(faults or FAULTS, share, delay_seconds=delay_seconds)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    server.port = listening.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
