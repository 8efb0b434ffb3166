"""What is no Redis at all, or one gone mad: every operation is a typed error or an answer, soon."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from breakable import EVERY_OPERATION, outcomes
from proxy import Impostor

from kv_store_adapter import KVStoreError, RedisKVStore, StoreUnavailableError, cached

PATIENCE, AT_MOST = 0.15, 6.0

# No answer that any command of a Redis has, at least not whole.
NO_REDIS: Dict[str, Optional[bytes]] = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "smtp": b"220 mail.example.org ESMTP\r\n500 Command unrecognized\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "zeros": b"\x00" * 4096,
    "half a text": b"$100\r\nabc",
    "a text of two exabytes": b"$2305843009213693952\r\nabc",
    "a number too long": b"$99999999999999999999999999\r\n",
    "a list without end": b"*9223372036854775807\r\n",
    "a list of negative length": b"*-7\r\n",
    "a list in a list in a list": b"*1\r\n" * 20000,
    "an empty line": b"\r\n",
    "never a word": None,
}

# Whole answers of a Redis, but hardly ever to the command that was given.
WRONG_KINDS: Dict[str, bytes] = {
    "OK": b"+OK\r\n",
    "a number": b":1\r\n",
    "nil": b"$-1\r\n",
    "null": b"_\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "a text": b"$3\r\nabc\r\n",
    "a list of numbers": b"*2\r\n:1\r\n:2\r\n",
    "a page that is none": b"*2\r\n$1\r\n0\r\n*1\r\n:5\r\n",
    "a page of lists": b"*2\r\n$1\r\n0\r\n*1\r\n*0\r\n",
    "a list of lists": b"*2\r\n*0\r\n*0\r\n",
    "true": b"#t\r\n",
    "a fraction": b",1.5\r\n",
    "a dictionary": b"%1\r\n+a\r\n+b\r\n",
    "a set": b"~1\r\n:1\r\n",
    "an error in a list": b"*1\r\n-ERR x\r\n",
    "a push, and a number": b">2\r\n+a\r\n+b\r\n:1\r\n",
}


def came_of(port: int, *, awaited: bool) -> List[Tuple[str, float, Any]]:
    """Each operation's name, seconds, and what it returned or raised."""

    def one(name: str) -> Tuple[str, float, Any]:
        # A store for each, so that none finds what is left of another one's answer.
        store = RedisKVStore(port=port, socket_timeout=PATIENCE)
        call: Callable[[Any], Any] = EVERY_OPERATION[name]

        async def await_it() -> Any:
            try:
                return await call(store.aio)
            finally:
                await store.aio.close()

        began = time.monotonic()
        try:
            came = asyncio.run(await_it()) if awaited else call(store)
        except Exception as error:
            came = error
        store.close()
        return name, time.monotonic() - began, came

    return outcomes(one, EVERY_OPERATION)


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
@pytest.mark.parametrize("greets", [False, True], ids=["at once", "after the greeting"])
def test_no_redis(greets: bool, awaited: bool, count: Any) -> None:
    """Answers of other protocols, garbage and silence are a `StoreUnavailableError`, soon."""
    for kind, answer in NO_REDIS.items():
        with Impostor(answer, greets=greets) as impostor:
            for name, took, came in came_of(impostor.port, awaited=awaited):
                assert type(came) is StoreUnavailableError, (kind, name, came)
                assert took < AT_MOST, (kind, name, took)
                count("impostor's answers")


def _judge(kind: str, port: int, count: Any, *, awaited: bool) -> None:
    for name, took, came in came_of(port, awaited=awaited):
        if isinstance(came, Exception):
            assert isinstance(came, KVStoreError), (kind, name, came)
        assert took < AT_MOST, (kind, name, took)
        count("impostor's answers")


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_answers_of_the_wrong_kind(awaited: bool, count: Any) -> None:
    """An answer that the command can't have is an error of the tree, never a bare TypeError."""
    for kind, answer in WRONG_KINDS.items():
        with Impostor(answer) as impostor:
            _judge(kind, impostor.port, count, awaited=awaited)


@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "aio"])
def test_a_scan_without_end(awaited: bool, count: Any) -> None:
    """A server that answers each SCAN with the same cursor, for ever, is told so, and left."""
    with Impostor(b"*2\r\n$1\r\n7\r\n*0\r\n") as impostor:
        _judge("a page without end", impostor.port, count, awaited=awaited)


def test_random_answers(seed: int, rounds: Any, count: Any) -> None:
    """Answers put together at random are an error of the tree or an answer, never anything else."""
    chance = random.Random(seed)

    def piece(depth: int) -> bytes:
        kinds = b"+-:$" if depth > 2 else b"+-:$*%~"
        kind = chance.choice(kinds)
        head = bytes([kind])
        if kind in b"+-":
            return head + chance.choice((b"OK", b"ERR x", b"WRONGTYPE y", b"", b"\xff")) + b"\r\n"
        if kind == ord(":"):
            return b":%d\r\n" % chance.randint(-3, 3)
        if kind == ord("$"):
            return b"$3\r\n" + bytes(chance.randrange(256) for _ in range(3)) + b"\r\n"
        number = chance.randint(0, 3)
        inside = b"".join(piece(depth + 1) for _ in range(number * (2 if kind == ord("%") else 1)))
        return head + b"%d\r\n" % number + inside

    for _ in range(rounds(12, 150)):
        answer = piece(0)
        if chance.random() < 0.2:
            answer = answer[: chance.randint(1, len(answer))]  # the rest never comes
        with Impostor(answer) as impostor:
            _judge(repr(answer), impostor.port, count, awaited=False)


@pytest.mark.parametrize("kind", ["http", "zeros", "never a word", "half a text"])
def test_a_cached_function_answers(kind: str, count: Any) -> None:
    """A function cached in what is no Redis answers every call, at the price of a wait or two."""
    for on_aio in (False, True):
        with Impostor(NO_REDIS[kind]) as impostor:
            store = RedisKVStore(port=impostor.port, socket_timeout=PATIENCE)
            began = time.monotonic()
            if on_aio:
                assert asyncio.run(_awaited_calls(store)) == list(range(100))
            else:
                double = cached(store, namespace="double")(lambda x: x)
                assert [double(x) for x in range(100)] == list(range(100))
            # A hundred waits would be fifteen seconds. A few tries are the breaker's.
            assert time.monotonic() - began < AT_MOST
            assert impostor.connections < 20
            count("calls answered without a store", 100)
            store.close()


async def _awaited_calls(store: RedisKVStore) -> List[int]:
    @cached(store, namespace="double")
    async def double(x: int) -> int:
        return x

    answers = [await double(x) for x in range(100)]
    await store.aio.close()
    return answers


def test_a_cached_function_answers_among_wrong_kinds(count: Any) -> None:
    """A function cached in a server that answers nonsense, batches too, answers every call."""
    from kv_store_adapter import cached_many

    for answer in WRONG_KINDS.values():
        with Impostor(answer) as impostor:
            store = RedisKVStore(port=impostor.port, socket_timeout=PATIENCE)
            many = cached_many(store, namespace="many")(lambda ids: {i: -i for i in ids})
            assert [many([1, 2]), many([2, 3])] == [{1: -1, 2: -2}, {2: -2, 3: -3}]
            one = cached(store, namespace="one", tags=["t"])(lambda x: -x)
            assert [one(x) for x in range(5)] == [0, -1, -2, -3, -4]
            count("calls answered without a store", 7)
            store.close()
