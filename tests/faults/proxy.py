"""What stands between a store and its server: a TCP proxy that delays and cuts, and impostors.

Both run in a thread with an event loop of their own, on a loopback port of their own.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import threading
import time
from typing import Any, Awaitable, Callable, Counter, List, Optional, Set, Tuple

#: What a `Proxy` does with the next request that has a given word in it, or with its answer.
LOSE_REQUEST = "the request never arrives, and the connection is cut"
LOSE_ANSWER = "the server answers, and the connection is cut before that arrives"
HALF_ANSWER = "half of the answer arrives, then the connection is cut"
GARBLE = "something else arrives in place of the answer"
HOLD = "the answer never arrives, and the connection stays open"


class _Listener:
    """A listening socket in a thread of its own, until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: Set[Any] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server: Any = self._loop.run_until_complete(
            asyncio.start_server(self._welcome, "127.0.0.1", 0, backlog=500)
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # transports close a step later
        self._loop.close()

    async def _welcome(self, reader: Any, writer: Any) -> None:
        task = asyncio.ensure_future(self._guarded(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, reader: Any, writer: Any) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: Any, writer: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Proxy(_Listener):
    """Passes everything on to a server, but for the faults that it is armed with.

    Attributes:
        delay: Called for the seconds that each piece of an answer waits.
        torn: Whether answers arrive in two pieces.
        chance: Called for the fault that each request meets, ``None``: for none.
        passed: How many requests with a watched word were passed on to the server.
        faults: How many requests met a fault.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._armed: List[Tuple[bytes, str]] = []
        self.delay: Optional[Callable[[], float]] = None
        self.torn = False
        self.chance: Optional[Callable[[], Optional[str]]] = None
        self.passed: Counter[str] = collections.Counter()
        self.faults = 0
        super().__init__()

    def arm(self, word: str, fault: str, times: int = 1) -> None:
        """Meet the next requests that have `word` in them with `fault`."""
        self.passed.clear()
        self.passed[word] = 0
        self._armed = [(_as_word(word), fault)] * times

    def refuse_new(self) -> None:
        """Listen no longer. What is connected stays connected."""
        self._loop.call_soon_threadsafe(self._server.close)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
            except ConnectionRefusedError:
                return
            except OSError:
                pass  # on its way out of the queue of those who knocked before
            time.sleep(0.005)
        raise AssertionError("still listening")

    async def _serve(self, reader: Any, writer: Any) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        pending: List[str] = []
        ways = [
            asyncio.ensure_future(self._requests(reader, behind_writer, pending)),
            asyncio.ensure_future(self._answers(behind_reader, writer, pending)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            behind_writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self, reader: Any, behind: Any, pending: List[str]) -> None:
        while True:
            request = await reader.read(1 << 16)
            if not request:
                return
            fault = self.chance() if self.chance is not None else None
            if self._armed and self._armed[0][0] in request:
                _, fault = self._armed.pop(0)
            if fault is not None:
                self.faults += 1
                if fault is LOSE_REQUEST:
                    return
                pending.append(fault)
            for word in list(self.passed):
                self.passed[word] += request.count(_as_word(word))
            behind.write(request)
            await behind.drain()

    async def _answers(self, behind: Any, writer: Any, pending: List[str]) -> None:
        while True:
            answer = await behind.read(1 << 16)
            fault = pending.pop() if pending else None
            if not answer or fault is LOSE_ANSWER:
                return
            if fault is HALF_ANSWER:
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                return
            if fault is GARBLE:
                answer = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
            if fault is HOLD:
                await asyncio.Event().wait()
            half = len(answer) // 2 if self.torn else 0
            for piece in filter(None, (answer[:half], answer[half:])):
                if self.delay is not None:
                    await asyncio.sleep(self.delay())
                writer.write(piece)
                await writer.drain()


class Impostor(_Listener):
    """Speaks enough of Redis to be connected to, then answers every command as it is told.

    Args:
        answer: The bytes to answer with; ``None``: never a word.
        greets: Whether it lets a client connect properly before it starts.
    """

    def __init__(self, answer: Optional[bytes], *, greets: bool = True) -> None:
        self._answer = answer
        self._greets = greets
        self.connections = 0
        super().__init__()

    async def _serve(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        while True:
            words = await _command(reader.readline, reader.readexactly)
            if self._greets and words[0].upper() == b"HELLO":
                writer.write(b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n")
            elif self._greets and words[0].upper() in (b"CLIENT", b"AUTH", b"SELECT"):
                writer.write(b"+OK\r\n")
            elif self._answer is not None:
                writer.write(self._answer)
            await writer.drain()


async def _command(
    line: Callable[[], Awaitable[bytes]], exactly: Callable[[int], Awaitable[bytes]]
) -> List[bytes]:
    """The words of one command, which is an array of bulk strings."""
    head = await line()
    if not head.startswith(b"*"):
        raise EOFError
    words = []
    for _ in range(int(head[1:])):
        length = int((await line())[1:])
        words.append((await exactly(length + 2))[:-2])
    return words


def _as_word(word: str) -> bytes:
    return f"\r\n{word}\r\n".encode()
