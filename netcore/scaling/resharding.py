"""Adding and removing shards while events come in.

Everything that must happen together happens on the loop's thread without an await in between, so
no worker runs meanwhile. Producers on other threads may be anywhere in a push; what they find:

- Slots move by replacing the whole table. A producer that still holds an old route finds its gate
  closed for good (`Ring.renew_gate`, `Ring.seal`), before its push or right after it. Then its event is
  taken back out and enters again where its key lives now, unless a worker was faster.
- A key's order holds in the store: what a shard receives for moved keys waits behind a *fence* until
  the donors' events from before the move are settled. An event that a worker drained from the old
  shard too late for that (`moved_late`) puts up a fence of its own before its `ingest` returns.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from netcore.config import MAX_SHARDS, check_timeout
from netcore.contracts.policies import AddShards, NoChange, RemoveShards, ScalingDecision
from netcore.engine import Engine
from netcore.errors import NetcoreError, ScalingError
from netcore.ingest.ring import Ring
from netcore.ingest.router import MASK, add_shards, remove_shards
from netcore.ingest.shard import Shard
from netcore.runtime import GRACE_S
from netcore.stats import ScalingRecord

if TYPE_CHECKING:
    import anyio

__all__ = ["Resharding"]

_log = logging.getLogger("netcore.scaling")
T = TypeVar("T")
LATE_FENCE_S: Final = 30.0


class Resharding:
    """Changes the shards of one bus, one step at a time, each all or nothing.

    Args:
        engine: the bus's parts.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn: anyio.Lock | None = None

    @property
    def max_shards(self) -> int:
        """Most shards that this bus may have."""
        scaling = self._engine.config.scaling
        return MAX_SHARDS if scaling is None else scaling.max_shards

    async def add(self, count: int, *, timeout: float, reason: str) -> list[int]:
        """See `EventBus.add_shards`."""
        check_timeout(timeout)
        return await self._step(functools.partial(self._add, count, timeout, reason), reason)

    async def remove(self, shard_ids: Iterable[int], *, timeout: float, reason: str) -> list[int]:
        """See `EventBus.remove_shards`."""
        check_timeout(timeout)
        try:
            ids = list(shard_ids)
        except TypeError:
            raise ScalingError(f"remove_shards takes a list of shard ids, not {shard_ids!r}") from None
        return await self._step(functools.partial(self._remove, ids, timeout, reason), reason)

    async def apply(self, decision: ScalingDecision, *, timeout: float = 30.0) -> list[int]:
        """Carry out a decision; return the ids added or removed."""
        if isinstance(decision, AddShards):
            return await self.add(decision.count, timeout=timeout, reason=decision.reason)
        if isinstance(decision, RemoveShards):
            return await self.remove(decision.shard_ids, timeout=timeout, reason=decision.reason)
        if isinstance(decision, NoChange):
            return []
        raise ScalingError(f"not a scaling decision: {decision!r}")

    async def _step(self, work: Callable[[], Coroutine[Any, Any, T]], reason: str) -> T:
        """Do one step in a task of its own, so that a caller's cancellation leaves none half done."""
        engine = self._engine
        engine.lifecycle.require_open()
        task = engine.runtime.spawn(functools.partial(self._in_turn, work, reason), "netcore resharding")
        await task.join()
        done: T = task.result()
        return done

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, T]], reason: str) -> T:
        if self._turn is None:
            import anyio

            self._turn = anyio.Lock()
        async with self._turn:
            self._engine.lifecycle.require_open()
            try:
                return await work()
            except NetcoreError as error:
                self._record(reason=reason, error=str(error))
                raise

    def _record(
        self, *, added: Iterable[int] = (), removed: Iterable[int] = (), reason: str, error: str = ""
    ) -> None:
        record = ScalingRecord(
            at=time.time_ns(), added=tuple(added), removed=tuple(removed), reason=reason, error=error
        )
        self._engine.scaling.append(record)
        if not error:
            _log.info(
                "shards added %s, removed %s: %s", record.added, record.removed, reason or "by operator"
            )
            self._engine.observers.shards_changed(list(record.added), list(record.removed), reason)

    # -- adding ----------------------------------------------------------------------------------

    async def _add(self, count: int, timeout: float, reason: str) -> list[int]:
        engine = self._engine
        staying = [shard for shard in engine.shards.values() if not shard.leaving]
        if type(count) is not int or count < 1:
            raise ScalingError(f"add_shards takes a count of 1 or more, not {count!r}")
        if len(staying) + count > self.max_shards:
            raise ScalingError(
                f"{len(staying)} shards and {count} more would be over the maximum of {self.max_shards}"
            )
        engine.router.moved_late = self._moved_late
        new = self._start(count)
        deadline = time.monotonic() + timeout
        earlier = _Earlier(staying)
        for shard in new:
            shard.ring.put_fence(earlier.settled, deadline)
        for donor in staying:
            donor.ring.renew_gate()
        ids = [shard.id for shard in new]
        engine.router.install(add_shards(engine.router.table[1], ids), engine.rings())
        earlier.begin()
        self._record(added=ids, reason=reason)
        return ids

    def _start(self, count: int) -> list[Shard]:
        """Start workers and rings; none of them if one can't be started."""
        engine = self._engine
        new: list[Shard] = []
        try:
            for _ in range(count):
                new.append(engine.start_shard())
        except Exception as error:
            for shard in new:
                shard.ring.seal()
                engine.workers[shard.id].cancel()
                engine.retire(shard)
            raise ScalingError(f"a worker could not be started ({error}); nothing was changed") from error
        return new

    def _moved_late(self, donor: Ring, route: int) -> None:
        """Hold back the key's next events until what its old worker has is settled; any thread."""
        shard = self._engine.shards.get(donor.shard)
        home = self._engine.router.routes[route & MASK].ring
        if shard is not None and shard.ring is donor and home is not donor and not home.sealed:
            drained = donor.drained
            home.put_fence(lambda: shard.settled >= drained, time.monotonic() + LATE_FENCE_S)

    # -- removing --------------------------------------------------------------------------------

    async def _remove(self, ids: list[int], timeout: float, reason: str) -> list[int]:
        engine = self._engine
        leaving = self._check_removal(ids)
        engine.router.moved_late = self._moved_late
        deadline = time.monotonic() + timeout
        for shard in leaving:
            shard.leaving = True
        rings = engine.rings()
        for ring in rings.values():
            ring.put_fence(lambda: not any(shard.outstanding for shard in leaving), deadline)
        engine.router.install(remove_shards(engine.router.table[1], ids), rings)
        for shard in leaving:
            shard.ring.seal()
        for shard in leaving:
            await engine.workers[shard.id].join(max(0.0, deadline - time.monotonic()))
        # A worker may also have ended with work left: a shutdown that ran out of time cancelled it.
        late = [shard for shard in leaving if shard.outstanding or not engine.workers[shard.id].done]
        in_time = time.monotonic() < deadline
        cause = "its worker was cancelled by a shutdown" if in_time else f"not drained after {timeout:g} s"
        lost = await self._give_up(late, cause)
        for shard in leaving:
            engine.retire(shard)
        engine.progress.notify()
        told = [reason, f"{lost} events lost" if lost else ""]
        self._record(removed=ids, reason="; ".join(filter(None, told)))
        return ids

    def _check_removal(self, ids: list[int]) -> list[Shard]:
        shards = self._engine.shards
        staying = [shard.id for shard in shards.values() if not shard.leaving]
        if not ids:
            raise ScalingError("remove_shards was given no shard ids")
        unknown = [shard for shard in ids if type(shard) is not int or shard not in staying]
        if unknown:
            raise ScalingError(f"no such shards, or already leaving: {unknown}; present: {staying}")
        if len(set(ids)) != len(ids):
            raise ScalingError(f"remove_shards was given an id twice: {ids}")
        if len(ids) >= len(staying):
            raise ScalingError(f"removing {ids} would leave no shard")
        return [shards[shard] for shard in ids]

    async def _give_up(self, late: list[Shard], cause: str) -> int:
        """Stop workers that ran out of time, and count what they leave as lost."""
        engine = self._engine
        for shard in late:
            engine.workers[shard.id].cancel()
        lost = 0
        patience = time.monotonic() + GRACE_S  # for all of them together
        for shard in late:
            await engine.workers[shard.id].join(max(0.0, patience - time.monotonic()))
            count = shard.give_up()
            lost += count
            if count:  # the shutdown may have been first to count and to tell
                _log.error(
                    "shard %d: %s; %d events are lost: %s",
                    shard.id,
                    cause,
                    count,
                    shard.last_error or "its adapter call did not return",
                )
        return lost


class _Earlier:
    """What the donors accepted before their slots moved.

    Args:
        donors: the shards that give slots away.
    """

    def __init__(self, donors: list[Shard]) -> None:
        self._donors = donors
        self._marks: list[tuple[Shard, Any]] | None = None

    def begin(self) -> None:
        """Draw the line: the slots have just moved."""
        self._marks = [(donor, donor.ring.mark()) for donor in self._donors]
        for donor in self._donors:
            donor.signal.set()  # a batch that waits for its delay need not hold the newcomers up

    def settled(self) -> bool:
        """Tell whether all of it is settled."""
        if self._marks is None:
            return False
        waiting = []
        for donor, mark in self._marks:
            if donor.reached(mark):
                donor.ring.unmark(mark)
            else:
                waiting.append((donor, mark))
        self._marks = waiting
        return not waiting
