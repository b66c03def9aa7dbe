"""What an adapter's calls hand back, looked at before anybody relies on it.

Adapters are written by others, and Python lets them return anything. Whoever calls one goes
through `ask`: a call that is not async, or an answer of another shape than `Adapter` says, is
named by class and method there, and is no bare `TypeError` somewhere in the merger.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Awaitable, Callable, Iterable
from types import CoroutineType
from typing import Any, Final, TypeVar

from netcore.contracts.adapter import Adapter, Gap, Health, ShardPage, Stream
from netcore.errors import AdapterRefusedError
from netcore.events import StoredEvent

__all__ = ["ASYNC_CALLS", "MAX_SHARD", "FaultyAdapterError", "ask", "awaitable", "fault", "identity_of"]

T = TypeVar("T")

ASYNC_CALLS: Final = (
    "open", "append", "streams", "read", "bounds", "snapshot", "read_many", "read_listed", "seek",
    "enter", "retired", "wait", "flush", "close", "health",
)  # fmt: skip
"""The calls that are awaited."""

MAX_SHARD: Final = 65_535
"""The greatest id that a cursor can name."""

_SHOWN: Final = reprlib.Repr()
_SHOWN.maxother = _SHOWN.maxstring = 80


class FaultyAdapterError(AdapterRefusedError):
    """The adapter's own code is at fault: only its author can mend it, and retries change nothing.

    Attributes:
        method: the call.
    """

    def __init__(self, adapter: Adapter[Any], method: str, text: str) -> None:
        cls = type(adapter)
        super().__init__(f"{cls.__module__}.{cls.__qualname__}.{method} {text}")
        self.method = method


def fault(adapter: Adapter[Any], method: str, expected: str, came: object) -> FaultyAdapterError:
    """Word the error for an answer of the wrong shape."""
    return FaultyAdapterError(adapter, method, f"must return {expected}, not {_SHOWN.repr(came)}")


async def ask(adapter: Adapter[Any], method: str, *args: Any) -> Any:
    """Make a call and look at its answer.

    Raises:
        FaultyAdapterError: it is not async, or its answer has not the shape that `Adapter` says.
        Exception: what the call raised.
    """
    call = getattr(adapter, method)(*args)
    if type(call) is not CoroutineType:
        call = awaitable(adapter, method, call)
    answer = await call
    check = _CHECKS.get(method)
    return answer if check is None else check(adapter, method, answer, args)


def awaitable(adapter: Adapter[Any], method: str, returned: Awaitable[T]) -> Awaitable[T]:
    """Return what a call returned, if it can be awaited: whatever that is, and whoever made it.

    Only the result tells: a decorated call, a partial or a mock may be a plain function and right.

    Raises:
        FaultyAdapterError: it cannot be awaited.
    """
    if not inspect.isawaitable(returned):
        advice = "make it `async def`"
        if inspect.isgenerator(returned) or inspect.isasyncgen(returned):
            advice += " without `yield`"
        raise FaultyAdapterError(
            adapter, method, f"returned {_SHOWN.repr(returned)}, which cannot be awaited: {advice}"
        )
    if hasattr(returned, "__await__"):
        return returned
    return _rest_of(returned)


async def _rest_of(steps: Awaitable[T]) -> T:
    """Await a generator that `types.coroutine` made awaitable: it has no `__await__` of its own."""
    return await steps


def identity_of(adapter: Adapter[Any]) -> str:
    """Return the store's name.

    Raises:
        FaultyAdapterError: it is no text.
    """
    name: object = adapter.identity()
    if not isinstance(name, str):
        if isinstance(name, CoroutineType):
            name.close()  # it is not to be awaited, and must not complain of that
        raise fault(adapter, "identity", "a str (in a plain def)", name)
    return name


def _position(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    raise fault(adapter, method, "a position, a str, or None", answer)


def _bounds(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> tuple[str, str]:
    if isinstance(answer, tuple | list) and len(answer) == 2:
        earliest, tail = answer
        if isinstance(earliest, str) and isinstance(tail, str):
            return earliest, tail
    raise fault(adapter, method, "two positions (earliest, tail), both str", answer)


def _streams(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> list[Stream]:
    if not isinstance(answer, Iterable):
        raise fault(adapter, method, "a list of Stream", answer)
    streams = list(answer)
    for each in streams:
        if not isinstance(each, Stream):
            raise fault(adapter, method, "a list of Stream", answer)
        if not isinstance(each.shard, int) or not 0 <= each.shard <= MAX_SHARD:
            raise fault(adapter, method, f"streams whose shard is an int from 0 to {MAX_SHARD:,}", each)
        if not isinstance(each.origin, str):
            raise fault(adapter, method, "streams whose origin is a str", each)
    return streams


def _retired(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> set[Stream]:
    return set(_streams(adapter, method, answer, args))


def _page(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> ShardPage:
    if (wrong := _page_fault(answer)) is not None:
        raise fault(adapter, method, *wrong)
    page: ShardPage = answer
    return page


def _page_fault(page: Any) -> tuple[str, object] | None:
    """Return what was expected of a page, and what came instead; None: it is sound.

    Of its events only the first and the last are looked at, since pages are large; what is wrong
    in between is found when the merger takes them.
    """
    if not isinstance(page, ShardPage):
        return "a ShardPage", page
    events: Any = page.events
    if not isinstance(events, list):
        return "a ShardPage whose events are a list", events
    if not isinstance(page.position, str):
        return "a ShardPage whose position is a str", page.position
    if not isinstance(page.has_more, int):
        return "a ShardPage whose has_more is a bool", page.has_more
    if page.gap is not None and not isinstance(page.gap, Gap):
        return "a ShardPage whose gap is a Gap or None", page.gap
    if not isinstance(page.undecodable, int):
        return "a ShardPage whose undecodable is an int", page.undecodable
    for event in (events[0], events[-1]) if events else ():
        if not isinstance(event, StoredEvent):
            return "a ShardPage whose events are StoredEvents", event
        if not isinstance(event.ts, int) or not isinstance(event.raw, bytes) or not isinstance(event.id, str):
            return "StoredEvents with an int as ts, bytes as raw and a str as id", event
    return None


def _many(
    adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]
) -> list[ShardPage | Exception]:
    """Check a page a request; a wrong one is an exception in its place, and harms no other."""
    requests = args[0]
    if not isinstance(answer, list) or len(answer) != len(requests):
        raise fault(adapter, method, f"a list of {len(requests)} pages, one a request", answer)
    pages: list[ShardPage | Exception] = []
    for page in answer:
        if isinstance(page, Exception) or (wrong := _page_fault(page)) is None:
            pages.append(page)
        else:
            pages.append(fault(adapter, method, f"for each request {wrong[0]}, or an exception", wrong[1]))
    return pages


def _listed(
    adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]
) -> tuple[list[ShardPage | Exception], list[Stream]]:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise fault(adapter, method, "a pair, a list of pages and one of streams", answer)
    pages, streams = answer
    return _many(adapter, method, pages, args), _streams(adapter, method, streams, args)


def _health(adapter: Adapter[Any], method: str, answer: Any, args: tuple[Any, ...]) -> Health:
    if not isinstance(answer, Health):
        raise fault(adapter, method, "a Health", answer)
    return answer


_CHECKS: Final[dict[str, Callable[[Adapter[Any], str, Any, tuple[Any, ...]], Any]]] = {
    "streams": _streams,
    "read": _page,
    "bounds": _bounds,
    "read_many": _many,
    "read_listed": _listed,
    "seek": _position,
    "enter": _position,
    "retired": _retired,
    "health": _health,
}
