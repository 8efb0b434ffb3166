"""Who holds the conversation of `flow`: plainly, or with await."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from .. import forking
from ..exceptions import KeyNotFoundError, LockTimeoutError
from ..interruption import interruption, let_through
from ..namespace import NamespaceView
from ..protocol import TAGS_NAMESPACE
from ..rules import MISSING, NO_EXPIRY
from .flights import Chain, Flight, Outcome, chain
from .flow import Flow, Steps

__all__ = ["AsyncDriver", "PlainDriver"]

# How many refreshes run in the background at a time, over all functions. One more is put off to
# the next call that finds its value stale.
_refreshing = threading.BoundedSemaphore(16)


def _after_fork() -> None:
    # The parent's refreshes are not the child's: their threads are not there to give back.
    global _refreshing
    _refreshing = threading.BoundedSemaphore(16)


forking.after_in_child(_after_fork)


class _InterruptedError(BaseException):
    """What a conversation is told where a signal's handler raised: nothing that it could handle."""


def _is_over(steps: Any) -> bool:
    return steps.gi_frame is None


class PlainDriver:
    """Does the steps of a flow on the caller's thread."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._store, self._namespace = flow.store, flow.namespace
        self.read: Callable[[str], Any] = flow.store.reader(flow.namespace)

    def drive(self, steps: Steps) -> Any:
        """Run a conversation to its end."""
        try:
            return self._drive(steps, None)
        except BaseException as error:
            if _is_over(steps):
                raise
            came = error
        # A signal's handler raised between two steps: the conversation ends as within one.
        try:
            return self._drive(steps, came)
        finally:
            del came  # here as below: no frame holds an error whose traceback holds the frame

    def _drive(self, steps: Steps, came: Optional[BaseException]) -> Any:
        arguments: Tuple[Any, ...]
        reply: Any = None
        interrupted: Optional[BaseException] = None
        try:
            do, arguments = next(steps) if came is None else steps.throw(came)
            while True:
                try:
                    reply = getattr(self, do)(*arguments)
                except BaseException as error:  # the conversation decides what it means
                    # Asked out here, where all frames that run are linked. CPython 3.9 does not
                    # link those of a generator that something is thrown into.
                    interrupted = interruption(error) or interrupted
                    do, arguments = steps.throw(
                        error if interrupted is None else _InterruptedError()
                    )
                else:
                    do, arguments = steps.send(reply)
        except StopIteration as done:
            return done.value
        except _InterruptedError:
            pass
        finally:
            came = reply = None
            arguments = ()
        try:
            raise interrupted or AssertionError("nothing was interrupted")
        finally:
            del interrupted

    def run(self, values: Tuple[Any, ...], inside: Chain) -> Outcome:
        """Call the function."""
        token = chain.set(inside)
        try:
            return Outcome(self._flow.binding.call(self._flow.function, values))
        except BaseException as error:  # the function's own; the conversation goes on to its end
            return Outcome(error=error)
        finally:
            chain.reset(token)
            inside = ()  # the flight will hold the error, whose traceback holds this frame

    def write(self, key: str, value: Any, ttl: Any, inside: Chain) -> None:
        """Store a result."""
        token = chain.set(inside)  # a serializer may call cached functions, too
        try:
            self._store.set(key, value, self._namespace, ttl)
        finally:
            chain.reset(token)

    def read_many(self, keys: List[str]) -> Dict[str, Any]:
        """What is stored of these, in one round trip."""
        return self._store.get_many(keys, self._namespace)

    def write_many(self, results: Dict[str, Any], ttl: Any) -> None:
        """Store results, in one round trip."""
        self._store.set_many(results, self._namespace, ttl)

    def drop(self, key: str) -> None:
        """Delete a result."""
        self._store.delete(key, self._namespace)

    def drop_many(self, keys: List[str]) -> None:
        """Delete results, in one round trip."""
        self._store.delete_many(keys, self._namespace)

    def wait(self, flight: Flight, timeout: float) -> bool:
        """Wait for another thread's computation; ``False``: it takes too long."""
        # A lock of this caller's own: an Event is shared, and its lock stays locked for ever where
        # a signal's handler raises in the wrong moment of a wait.
        gate = threading.Lock()
        gate.acquire()

        def tell() -> None:
            if gate.locked():
                gate.release()

        self._flow.board.when_landed(flight, tell)
        gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        if not flight.landed:
            with contextlib.suppress(ValueError):
                flight.callbacks.remove(tell)
        return flight.landed

    def lock(self, key: str, patience: float) -> Any:
        """The store's lock, or ``None`` where it can't be had in time."""
        held = self._store.lock(
            key, self._namespace, ttl=self._flow.options.lock_ttl, timeout=patience
        )
        try:
            held.__enter__()
        except LockTimeoutError:
            return None
        return held

    def unlock(self, held: Any) -> None:
        """Give the store's lock back."""
        held.__exit__(None, None, None)

    def tokens(self, names: List[str]) -> Dict[str, str]:
        """The tokens of those tags that have one."""
        return self._store.get_many(names, TAGS_NAMESPACE)

    def add_token(self, name: str, token: str) -> None:
        """Give a tag a token, unless it has one."""
        # A tag lives as long as the longest result, whatever the default ttl of a view.
        if isinstance(self._store, NamespaceView):
            self._store.add(name, token, TAGS_NAMESPACE, ttl=NO_EXPIRY)
        else:
            self._store.add(name, token, TAGS_NAMESPACE)

    def start(self, conversation: Callable[..., Steps], arguments: Tuple[Any, ...]) -> None:
        """Hold a conversation in the background, on a thread of its own."""
        place = _refreshing
        if not place.acquire(blocking=False):
            return

        def work() -> None:
            try:
                self.drive(conversation(*arguments))
            finally:
                place.release()

        # A daemon: a refresh that hangs must not keep the program from ending.
        thread = threading.Thread(target=work, name=f"refresh {self._flow.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            place.release()

    # ------------------------------------------------------------------ what handles do

    def call(
        self,
        values: Tuple[Any, ...],
        trouble: Optional[Exception] = None,
        key: Optional[str] = None,
    ) -> Any:
        """A call of the function."""
        if trouble is not None:
            let_through(trouble)
        return self.drive(self._flow.call(values, trouble, key)).unwrap()

    def refresh(self, values: Tuple[Any, ...]) -> Any:
        """Compute now and replace what is stored."""
        return self.drive(self._flow.refresh(values)).unwrap()

    def peek(self, values: Tuple[Any, ...]) -> Any:
        """What is stored, without computing."""
        value = self.drive(self._flow.peek(values))
        if value is MISSING:
            raise KeyNotFoundError(self._flow.key(values), self._flow.namespace)
        return value

    def bypass(self, values: Tuple[Any, ...]) -> Any:
        """Call the function itself."""
        return self._flow.binding.call(self._flow.function, values)

    def invalidate(self, values: Tuple[Any, ...]) -> bool:
        """Drop one result; was there one?"""
        keys = self._flow.keys(values)
        for key in keys:
            self._flow.board.doom(key)
        return self._store.delete_many(keys, self._namespace) > 0

    def clear(self) -> None:
        """Drop all results."""
        self._flow.board.doom(None)
        self._store.clear_namespace(self._namespace)
        self._flow.tally.reset()


def _leave(token: Any) -> None:
    # A coroutine that the garbage collector closes ends in another context than it began in, which
    # is over.
    with contextlib.suppress(ValueError):
        chain.reset(token)


class AsyncDriver:
    """Does the steps of a flow with await. Nothing runs on the loop's thread that may wait."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._namespace = flow.namespace
        self._plain = None if flow.store.waits else PlainDriver(flow)
        # asyncio keeps only weak references to tasks.
        self._tasks: Set[Any] = set()

    @property
    def _aio(self) -> Any:
        # Asked for each time: which client serves may depend on the running loop.
        return self._flow.store.aio

    async def drive(self, steps: Steps) -> Any:
        """Run a conversation to its end."""
        try:
            return await self._drive(steps, None)
        except GeneratorExit:
            raise  # this coroutine is being closed: nothing can be awaited any more
        except BaseException as error:
            if _is_over(steps):
                raise
            came = error
        # As in PlainDriver.
        try:
            return await self._drive(steps, came)
        finally:
            del came

    async def _drive(self, steps: Steps, came: Optional[BaseException]) -> Any:
        arguments: Tuple[Any, ...]
        reply: Any = None
        interrupted: Optional[BaseException] = None
        try:
            do, arguments = next(steps) if came is None else steps.throw(came)
            while True:
                try:
                    reply = await getattr(self, do)(*arguments)
                except BaseException as error:  # the conversation decides, cancellation included
                    interrupted = interruption(error) or interrupted
                    do, arguments = steps.throw(
                        error if interrupted is None else _InterruptedError()
                    )
                else:
                    do, arguments = steps.send(reply)
        except StopIteration as done:
            return done.value
        except _InterruptedError:
            pass
        finally:
            came = reply = None
            arguments = ()
        try:
            raise interrupted or AssertionError("nothing was interrupted")
        finally:
            del interrupted

    async def read(self, key: str) -> Any:
        """What is stored, or `MISSING`."""
        if self._plain is not None:
            return self._plain.read(key)
        try:
            return await self._aio.get(key, self._namespace)
        except KeyNotFoundError:
            return MISSING

    async def run(self, values: Tuple[Any, ...], inside: Chain) -> Outcome:
        """Await the function."""
        token = chain.set(inside)
        try:
            return Outcome(await self._flow.binding.call(self._flow.function, values))
        except GeneratorExit:
            raise  # this coroutine is being closed: nothing can be awaited any more
        except BaseException as error:  # the function's own, or a cancellation; see above
            return Outcome(error=error)
        finally:
            _leave(token)
            inside = ()  # as in PlainDriver

    async def write(self, key: str, value: Any, ttl: Any, inside: Chain) -> None:
        """Store a result."""
        token = chain.set(inside)  # a serializer may call cached functions, too
        try:
            await self._aio.set(key, value, self._namespace, ttl)
        finally:
            _leave(token)

    async def read_many(self, keys: List[str]) -> Any:
        """What is stored of these, in one round trip."""
        return await self._aio.get_many(keys, self._namespace)

    async def write_many(self, results: Dict[str, Any], ttl: Any) -> None:
        """Store results, in one round trip."""
        await self._aio.set_many(results, self._namespace, ttl)

    async def drop(self, key: str) -> None:
        """Delete a result."""
        await self._aio.delete(key, self._namespace)

    async def drop_many(self, keys: List[str]) -> None:
        """Delete results, in one round trip."""
        await self._aio.delete_many(keys, self._namespace)

    async def wait(self, flight: Flight, timeout: float) -> bool:
        """Wait for another task's computation, on this loop or another one."""
        import asyncio

        loop = asyncio.get_running_loop()
        landed: asyncio.Future[None] = loop.create_future()
        mine = threading.get_ident()

        def tell() -> None:
            if not landed.done():
                landed.set_result(None)

        def call_back() -> None:
            if threading.get_ident() == mine:
                tell()
                return
            try:
                loop.call_soon_threadsafe(tell)
            except RuntimeError:
                pass  # the loop was closed: nobody waits any more

        self._flow.board.when_landed(flight, call_back)
        timer = loop.call_later(timeout, tell)
        try:
            await landed
        finally:
            timer.cancel()
        return flight.landed

    async def lock(self, key: str, patience: float) -> Any:
        """The store's lock, or ``None`` where it can't be had in time."""
        held = self._aio.lock(
            key, self._namespace, ttl=self._flow.options.lock_ttl, timeout=patience
        )
        try:
            await held.__aenter__()
        except LockTimeoutError:
            return None
        return held

    async def unlock(self, held: Any) -> None:
        """Give the store's lock back."""
        await held.__aexit__(None, None, None)

    async def tokens(self, names: List[str]) -> Any:
        """The tokens of those tags that have one."""
        return await self._aio.get_many(names, TAGS_NAMESPACE)

    async def add_token(self, name: str, token: str) -> None:
        """Give a tag a token, unless it has one."""
        ttl = NO_EXPIRY if isinstance(self._flow.store, NamespaceView) else None
        await self._aio.add(name, token, TAGS_NAMESPACE, ttl=ttl)

    async def start(self, conversation: Callable[..., Steps], arguments: Tuple[Any, ...]) -> None:
        """Hold a conversation in the background, in a task of its own."""
        import asyncio

        # Those of loops that were closed meanwhile never end.
        for each in [t for t in list(self._tasks) if t.get_loop().is_closed()]:
            self._tasks.discard(each)
        task = asyncio.ensure_future(self.drive(conversation(*arguments)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ what handles do

    async def call(
        self,
        values: Tuple[Any, ...],
        trouble: Optional[Exception] = None,
        key: Optional[str] = None,
    ) -> Any:
        """A call of the function."""
        if trouble is not None:
            let_through(trouble)
        return (await self.drive(self._flow.call(values, trouble, key))).unwrap()

    async def refresh(self, values: Tuple[Any, ...]) -> Any:
        """Compute now and replace what is stored."""
        return (await self.drive(self._flow.refresh(values))).unwrap()

    async def peek(self, values: Tuple[Any, ...]) -> Any:
        """What is stored, without computing."""
        value = await self.drive(self._flow.peek(values))
        if value is MISSING:
            raise KeyNotFoundError(self._flow.key(values), self._flow.namespace)
        return value

    async def bypass(self, values: Tuple[Any, ...]) -> Any:
        """Await the function itself."""
        return await self._flow.binding.call(self._flow.function, values)

    async def invalidate(self, values: Tuple[Any, ...]) -> bool:
        """Drop one result; was there one?"""
        keys = self._flow.keys(values)
        for key in keys:
            self._flow.board.doom(key)
        gone: int = await self._aio.delete_many(keys, self._namespace)
        return gone > 0

    async def clear(self) -> None:
        """Drop all results."""
        self._flow.board.doom(None)
        await self._aio.clear_namespace(self._namespace)
        self._flow.tally.reset()
