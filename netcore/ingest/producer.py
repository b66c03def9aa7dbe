"""The ingest calls: route, stamp, push; and what happens when that is not enough.

The fast path is the body of `ingest_raw`: hash, slot, a length against a limit, clock, append,
one look at `attention`. No lock, no system call, no await. `_settle_push` and `_enter` below are
the slow path: a sleeping worker, a full ring, a ring that was sealed or whose slots moved.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from operator import call
from typing import Any, Final

from netcore.contracts.policies import BackpressurePolicy, FullShard, Verdict
from netcore.errors import BackpressureError, ClosedError, PayloadError
from netcore.events import Event, RawEvent
from netcore.ingest.payloads import (
    ENCODE_ERRORS,
    Accepted,
    Key,
    Summary,
    encode,
    encoded,
    key_hash,
    normalise,
    route_hash,
)
from netcore.ingest.ring import Gate, Ring, Waiter
from netcore.ingest.router import MASK, Router
from netcore.runtime import Runtime, current_runtime
from netcore.stats import IngestSummary

__all__ = ["Producer"]

_log = logging.getLogger("netcore.ingest")
CHUNK: Final = 1024
LOOK_S: Final = 1.0
LOOK_HITS: Final = 256
"""How often those who wait for room, and newcomers to a full ring, look whether the loop is there."""


class Producer:
    """What `EventBus` inherits its `ingest*` and `put` from.

    Args:
        router: slot table and clock.
        policy: decides at a full ring.
        refusal: makes the `ClosedError` that says why ingest is refused now.
    """

    __slots__ = ("_clock", "_complaints", "_find_gone", "_policy", "_refusal", "_router", "_runtime")

    def __init__(
        self, router: Router, policy: BackpressurePolicy, refusal: Callable[[], ClosedError]
    ) -> None:
        self._router = router
        self._clock = router.clock
        self._policy = policy
        self._refusal = refusal
        self._runtime: Runtime | None = None
        self._find_gone: Callable[[], object] = int  # see `Engine.find_gone`
        self._complaints: set[type[BaseException]] = set()

    # -- the fast path ---------------------------------------------------------------------------

    def ingest_raw(self, event: bytes | RawEvent | Event, key: Key = None) -> Accepted | None:
        """Ingest a payload as it is: no parse. Non-blocking, any thread.

        Amortised cost: a few C calls; no lock, no system call while the ring has room.

        Args:
            event: the payload, or a `RawEvent` that may carry its route hash.
            key: events of one key meet one shard, in order; default: the payload routes itself.

        Returns:
            `(shard, ts)`; or None if the backpressure policy discarded the event.

        Raises:
            PayloadError: not bytes (text: `Event.from_str`, objects: `ingest`).
            BackpressureError: the ring is full and the policy refused.
            ClosedError: the bus is not open.
        """
        data: Any = event
        if data.__class__ is bytes:
            route = route_hash(data) if key is None else key_hash(key)
        else:
            data, route = normalise(data, key)
        gate = self._router.routes[route & MASK]
        entries = gate.entries
        if len(entries) < gate.limit:
            ts = next(self._clock.counter)
            entries += (ts, data)
            if gate.attention:
                return self._settle_push(gate, ts, data, route)
            return gate.shard, ts
        return self._enter(data, route)

    def ingest(self, event: Any, key: Key = None) -> Accepted | None:
        """Ingest an event: an `Event`, or anything msgspec encodes as JSON, encoded once.

        dict, list, str, numbers, Struct, dataclass, attrs, datetime, UUID, Enum, ... NaN and
        infinities become `null`, as msgspec writes them. Bytes are refused, since JSON has none.

        Args:
            event: the event.
            key: as for `ingest_raw`.

        Returns:
            `(shard, ts)`; or None if the backpressure policy discarded the event.

        Raises:
            PayloadError: it cannot be encoded; the message names the type.
            BackpressureError: the ring is full and the policy refused.
            ClosedError: the bus is not open.
        """
        if event.__class__ is dict:  # the same as below, without the detours
            try:
                data = encode(event)
            except ENCODE_ERRORS:
                data = encoded(event)  # says what is wrong
            route = route_hash(data) if key is None else key_hash(key)
            gate = self._router.routes[route & MASK]
            entries = gate.entries
            if len(entries) < gate.limit:
                ts = next(self._clock.counter)
                entries += (ts, data)
                return self._settle_push(gate, ts, data, route) if gate.attention else (gate.shard, ts)
            return self.ingest_raw(data, key)
        if isinstance(event, Event | RawEvent):
            return self.ingest_raw(event, key)
        return self.ingest_raw(encoded(event), key)

    def ingest_raw_many(self, events: Iterable[bytes | RawEvent | Event]) -> IngestSummary:
        """Ingest many payloads; each is routed by its own hash, order is kept in each shard.

        Never raises midway: what was refused is listed, the rest is accepted.

        Returns:
            `IngestSummary(accepted, rejected, discarded, error)`: indices into `events`.

        Raises:
            PayloadError: `events` is no iterable of payloads but a single one; nothing accepted.
        """
        if isinstance(events, bytes | bytearray | memoryview | str | RawEvent | Event):
            raise PayloadError("ingest_raw_many takes a sequence of payloads; use ingest_raw for one")
        items: list[Any] = events if isinstance(events, list) else list(events)
        summary = Summary()
        for first in range(0, len(items), CHUNK):
            chunk = items if len(items) <= CHUNK else items[first : first + CHUNK]
            if set(map(type, chunk)) != {bytes} or not self._push_chunk(chunk, first, summary):
                for index, item in enumerate(chunk, first):
                    summary.add(index, self.ingest_raw, item)
        return summary.finish()

    def ingest_many(self, events: Iterable[Any]) -> IngestSummary:
        """Ingest many events; what `ingest` takes, and what `ingest_raw_many` says of many.

        Returns:
            `IngestSummary(accepted, rejected, discarded, error)`: indices into `events`.

        Raises:
            PayloadError: `events` is a single event (a dict, text, bytes); nothing was accepted.
        """
        if isinstance(events, dict | str | bytes | bytearray | memoryview | RawEvent | Event):
            raise PayloadError("ingest_many takes a sequence of events; use ingest for one")
        # Listed first: an iterable that raises midway raises before anything is accepted.
        items: list[Any] = events if isinstance(events, list) else list(events)
        summary = Summary()
        for first in range(0, len(items), CHUNK):
            chunk = items[first : first + CHUNK]
            try:
                payloads = list(map(encode, chunk)) if set(map(type, chunk)) == {dict} else None
            except ENCODE_ERRORS:
                payloads = None
            if payloads is None or not self._push_chunk(payloads, first, summary):
                for index, event in enumerate(chunk, first):
                    summary.add(index, self.ingest, event)
        return summary.finish()

    async def put(self, event: Any, key: Key = None) -> Accepted | None:
        """Ingest, waiting for room if the policy says so; takes all that `ingest` takes, and bytes.

        On any event loop. Waits without a deadline (the caller's own choice of `block`). Cancelled
        while it waits, it has not accepted the event. Under other policies it acts as `ingest`.

        Returns:
            `(shard, ts)`; or None if the policy discarded the event.

        Raises:
            PayloadError, BackpressureError, ClosedError: as `ingest`.
        """
        data, route = normalise(event if isinstance(event, bytes | Event | RawEvent) else encoded(event), key)
        while True:
            outcome = self._try_enter(data, route, may_wait=True)
            if not isinstance(outcome, Ring):
                return outcome
            # On the caller's loop, which may be another than the bus's and outlive it.
            runtime = self._runtime if self._runtime and self._runtime.here else current_runtime()
            signal = runtime.signal()
            waiter = Waiter(lambda: runtime.call_soon_threadsafe(signal.set))  # noqa: B023
            if not self._queue(outcome, waiter):
                continue
            try:
                while not await signal.wait(None if runtime is self._runtime else LOOK_S):
                    self._find_gone()
            except BaseException:
                self._give_up(outcome, waiter)
                raise
            if accepted := self._claim(outcome, waiter, data, route):
                return accepted

    # -- the slow path ---------------------------------------------------------------------------

    def _settle_push(self, gate: Gate, ts: int, data: bytes, route: int) -> Accepted | None:
        """Decide on a pushed event whose gate asked for attention."""
        ring = gate.ring
        with ring.lock:
            moved = gate is not ring.gate and self._router.routes[route & MASK].ring is not ring
            if ring.depth <= ring.capacity and not moved and not ring.sealed:
                if ring.wanted:
                    ring.rouse()
                return ring.shard, ts
            withdrawn = ring.withdraw(ts)
            moved = moved or ring.sealed
        if withdrawn:
            return self._enter(data, route)
        if moved:
            self._router.moved_late(ring, route)
        return ring.shard, ts  # the worker has it, so it counts as accepted

    def _enter(self, data: bytes, route: int) -> Accepted | None:
        """Get an event in, asking the policy if the ring is full; blocks a thread if it says so."""
        while True:
            outcome = self._try_enter(data, route, may_wait=False)
            if not isinstance(outcome, Ring):
                return outcome
            granted = threading.Event()
            waiter = Waiter(granted.set)
            if not self._queue(outcome, waiter):
                continue
            try:
                while not granted.wait(LOOK_S):
                    self._find_gone()
            except BaseException:
                self._give_up(outcome, waiter)
                raise
            if accepted := self._claim(outcome, waiter, data, route):
                return accepted

    def _try_enter(self, data: bytes, route: int, *, may_wait: bool) -> Accepted | Ring | None:
        """Push, or do what the policy says; the ring to wait for if it says to wait."""
        while True:
            ring = self._router.routes[route & MASK].ring
            with ring.lock:
                if self._router.routes[route & MASK].ring is not ring:
                    continue
                if ring.sealed:
                    raise self._refusal()
                if ring.room:
                    return self._push(ring, data)
                ring.full_hits += 1
                full = FullShard(ring.shard, min(ring.count, ring.capacity), ring.capacity, data)
            if ring.full_hits % LOOK_HITS == 0:  # nobody drains it: perhaps its loop is gone
                self._find_gone()
            verdict = self._ask(full)
            if verdict is Verdict.WAIT:
                if may_wait or self._runtime is None or self._runtime.thread_id != threading.get_ident():
                    return ring
                with ring.lock:
                    ring.rejected += 1
                raise BackpressureError(
                    ring.shard,
                    ring.capacity,
                    "ingest would block the bus's own event loop; use `await bus.put(...)` there",
                )
            with ring.lock:
                if ring.sealed or self._router.routes[route & MASK].ring is not ring:
                    continue
                if verdict is Verdict.EVICT:
                    if ring.depth >= ring.capacity and ring.count:
                        ring.evict()
                    return self._push(ring, data)
                if verdict is Verdict.DISCARD:
                    ring.discarded += 1
                    return None
                ring.rejected += 1
            raise BackpressureError(
                ring.shard, ring.capacity, "the policy refused the event; retry later, or scale out"
            )

    def _push(self, ring: Ring, data: bytes) -> Accepted:
        """Stamp and append with the ring's lock held."""
        ts = self._clock.tick()
        ring.push(ts, data)
        return ring.shard, ts

    def _ask(self, shard: FullShard) -> Verdict:
        """Ask the policy, with no lock held; a raising or babbling policy refuses."""
        try:
            verdict = self._policy.on_full(shard)
            if isinstance(verdict, Verdict):
                return verdict
            raise TypeError(f"on_full must return a Verdict, not {verdict!r}")
        except Exception as error:
            if type(error) not in self._complaints:
                self._complaints.add(type(error))
                _log.exception("backpressure policy %s failed; it refuses", type(self._policy).__name__)
            return Verdict.REFUSE

    def _queue(self, ring: Ring, waiter: Waiter) -> bool:
        """Join the ring's queue; False if there is no longer cause to wait."""
        with ring.lock:
            if ring.sealed or ring.room:
                return False
            ring.enqueue(waiter)
            return True

    def _claim(self, ring: Ring, waiter: Waiter, data: bytes, route: int) -> Accepted | None:
        """Use the room that was granted; None if there is none: the ring is sealed, or the key moved."""
        with ring.lock:
            here = self._router.routes[route & MASK].ring is ring and not ring.sealed
            accepted = None
            if ring.leave(waiter) and here:
                if ring.depth >= ring.capacity:  # an evicting newcomer found nothing to evict but this room
                    ring.evict()
                accepted = self._push(ring, data)
            ring.grant()
            return accepted

    def _give_up(self, ring: Ring, waiter: Waiter) -> None:
        """End a wait that was interrupted; room that was granted goes to the next."""
        with ring.lock:
            ring.leave(waiter)
            ring.grant()

    # -- many ------------------------------------------------------------------------------------

    def _push_chunk(self, chunk: Sequence[bytes], first: int, summary: Summary) -> bool:
        """Push a chunk of bytes, each routed by its own hash; False if some ring may lack room.

        The same look at the limit (here: for all rings at once) and at `attention` (once a ring
        and chunk) as in `ingest_raw`, with the work between them done by C loops.
        """
        gates, shards = self._router.table
        for gate in gates.values():
            # Not the limit: a worker that gathers a batch lowers it to be woken at the ceiling.
            if gate.limit == 0 or gate.ring.soft - gate.ring.count < len(chunk):
                return False
        homes = [shards[route & MASK] for route in map(route_hash, chunk)]
        # One look-up of the counter serves this chunk; see the margins of `Clock`.
        stamps = list(islice(self._clock.counter, len(chunk)))
        extends = {shard: gate.ring.entries.extend for shard, gate in gates.items()}
        deque(map(call, map(extends.__getitem__, homes), zip(stamps, chunk, strict=True)), 0)
        summary.accepted += len(chunk)
        for shard, gate in gates.items():
            if gate.attention or len(gate.ring.entries) > gate.limit:
                self._settle_chunk(gate, shard, homes, stamps, chunk, first, summary)
        return True

    def _settle_chunk(
        self,
        gate: Gate,
        shard: int,
        homes: list[int],
        stamps: list[int],
        chunk: Sequence[bytes],
        first: int,
        summary: Summary,
    ) -> None:
        """Decide on a chunk's events in a ring whose gate asked for attention, keeping their order.

        If any may not stay, all that are still there are taken back out and enter one by one.
        """
        ring = gate.ring
        again: list[int] = []
        late: list[int] = []
        with ring.lock:
            if gate is ring.gate and not ring.sealed and ring.depth <= ring.capacity:
                if ring.count and ring.wanted:
                    ring.rouse()
                return
            mine = [index for index, home in enumerate(homes) if home == shard]
            moved = gate is not ring.gate or ring.sealed
            while mine and ring.withdraw(stamps[mine[-1]]):
                again.append(mine.pop())
            # The worker has the others; a fence a receiver, not one an event.
            if moved and mine:
                routes = self._router.routes
                late = list(
                    {routes[r & MASK].shard: r for r in (route_hash(chunk[i]) for i in mine)}.values()
                )
        for route in late:
            self._router.moved_late(ring, route)
        summary.accepted -= len(again)
        for index in reversed(again):
            summary.add(first + index, self.ingest_raw, chunk[index])
