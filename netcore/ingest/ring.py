"""One shard's ring: where an accepted event waits for its worker.

Who touches what:

- `entries += (ts, payload)` is done by producers on any thread without a lock: one C call, atomic
  under the interpreter lock. Everything else that changes a ring happens under `lock`: draining
  (the worker), eviction, withdrawal and waiting (producers that met a full or sealed ring).
- Producers reach a ring through its `gate`: below `gate.limit` they push without asking; after
  the push they look once at `gate.attention`. Whoever wants to be noticed (a worker going to
  sleep, a full ring, a sealed one) first sets `attention` and then looks at the entries: either
  the look finds the event, or its producer finds the flag.
- A ring whose slots move gets a new gate; the old one stays closed for good, so a producer that
  was preempted in mid-push always finds out.

Positions count what has left the ring at its old end (`drained + evicted`) and what is in it;
flush marks are such positions.

The entries are a flat list, two items an event. Keeping no object an event costs less than half
the memory, and memory is what a push into a filling ring waits for. What has left at the old end
is blanked first and cut off later, when the cut moves no more than it frees; so every event is
moved at most once on average. `gate.limit` is an index into that list.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from netcore.ingest.gate import NOTHING, Columns, Fence, FlushMark, Gate, Waiter

__all__ = ["NOTHING", "Columns", "Fence", "FlushMark", "Gate", "Ring", "Waiter"]

SOFT_MARGIN: Final = 64
"""Slots below the capacity in which every push takes the lock, so that capacity is exact for as
many threads as this caught between their look at the limit and their push."""

FILL_MARGIN: Final = 8
"""The same below the mark at which a worker asked to be woken: a miss would cost the batch's delay."""


CUT_ITEMS: Final = 8192
"""Moving so few items (64 KiB) costs less than blanking a batch."""


class Ring:
    """A bounded queue of one shard's events.

    Args:
        shard: the shard's id.
        capacity: events it can hold, exact.
        wake: wakes the worker; any thread.
        moved: tells those who wait in a flush that an eviction passed their mark; any thread.
    """

    __slots__ = (
        "asleep",
        "capacity",
        "discarded",
        "drained",
        "entries",
        "evicted",
        "fences",
        "fill_mark",
        "finished",
        "full_hits",
        "gate",
        "lock",
        "marks",
        "moved",
        "rejected",
        "reserved",
        "sealed",
        "shard",
        "soft",
        "start",
        "waiters",
        "wake",
        "woken_at",
    )

    def __init__(
        self, shard: int, capacity: int, wake: Callable[[], object], moved: Callable[[], object]
    ) -> None:
        self.shard: Final = shard
        self.capacity: Final = capacity
        self.soft: Final = max(0, capacity - SOFT_MARGIN)
        self.entries: Final[list[Any]] = []
        self.start = 0
        self.lock: Final = threading.Lock()
        self.wake = wake
        self.moved = moved
        self.drained = self.evicted = self.rejected = self.discarded = self.full_hits = 0
        self.reserved = 0
        self.waiters: Final[deque[Waiter]] = deque()
        self.marks: Final[list[FlushMark]] = []
        self.fences: Final[deque[Fence]] = deque()
        self.sealed = False
        self.finished = False
        self.asleep = False
        self.fill_mark = capacity
        self.woken_at = 0.0
        self.gate = Gate(self)
        self.refresh()

    # What producers ask. All but `accepted` with the lock held.

    @property
    def accepted(self) -> int:
        """Events that were accepted so far.

        Nothing counts them on the way in: they have left, or they are here.
        """
        return self.drained + self.evicted + self.here

    @property
    def count(self) -> int:
        """Events here, late ones included. Read without the lock it may be off while others change it."""
        return max(0, len(self.entries) - self.start) >> 1

    @property
    def here(self) -> int:
        """Events that were accepted and are here: one beyond the capacity, or in a finished ring, is not."""
        return 0 if self.finished else min(self.count, self.capacity)

    @property
    def head(self) -> int:
        """How many events have left at the old end."""
        return self.drained + self.evicted

    @property
    def room(self) -> bool:
        """Whether a newcomer may enter: there is space, and nobody waits for it."""
        return not self.waiters and self.depth < self.capacity

    @property
    def depth(self) -> int:
        """Events here, and room set aside for waiting producers."""
        return (len(self.entries) - self.start >> 1) + self.reserved

    @property
    def wanted(self) -> bool:
        """Whether the worker waits for what is here now."""
        return self.asleep or len(self.entries) - self.start > 2 * self.fill_mark

    def refresh(self) -> None:
        """Set the gate by the ring's state."""
        gate = self.gate
        if self.sealed:
            gate.attention, gate.limit = True, 0
            return
        items = 2 * min(self.soft, self.fill_mark - FILL_MARGIN)
        if items <= 0 or self.waiters or self.reserved:
            # Attention too: whoever passed the limit before must not push into room that was set aside.
            gate.limit, gate.attention = 0, True
            return
        gate.limit = self.start + items
        gate.attention = self.asleep or len(self.entries) - self.start >= items

    def push(self, ts: int, payload: bytes) -> None:
        """Append with the lock held, and wake the worker if it waits for this."""
        self.entries.extend((ts, payload))
        if len(self.entries) >= self.gate.limit:
            self.gate.attention = True
        if self.wanted:
            self.rouse()

    def rouse(self) -> None:
        """Wake the worker, once."""
        # First the call: if a KeyboardInterrupt ends it, the next push makes it again.
        self.wake()
        if self.asleep:
            self.asleep = False
            self.woken_at = time.monotonic()
        self.fill_mark = self.capacity
        self.refresh()

    def evict(self) -> None:
        """Throw out the oldest event."""
        self._cut(1)
        self.evicted += 1
        if self.marks and self._pass_marks():
            self.moved()

    def _cut(self, count: int) -> None:
        """Forget the oldest events, with the lock held."""
        entries = self.entries
        begin = self.start
        end = begin + 2 * count
        left = len(entries) - end
        if left > end and (left > CUT_ITEMS or count == 1):
            entries[begin:end] = [None] * (end - begin)
            self.start = end
            return
        # First the limit: nobody may measure the shorter list by the longer one's.
        self.gate.limit = self.start = 0
        del entries[:end]
        self.refresh()

    def withdraw(self, ts: int) -> bool:
        """Take a producer's own event, known by its timestamp, back out; False if the worker has it.

        Searches from the newest end, where it just went in: concurrent appends do not shift
        indices counted from the old end, and everything that would holds the lock.
        """
        entries = self.entries
        for index in range(len(entries) - 2, self.start - 1, -2):
            if entries[index] == ts:
                del entries[index : index + 2]
                position = self.head + (index - self.start >> 1)
                for mark in self.marks:
                    if mark.target > position:
                        mark.target -= 1
                for fence in self.fences:
                    if fence.position > position:
                        fence.position -= 1
                if self._pass_marks():
                    self.moved()
                self.grant()
                return True
        return False

    # Waiting for room. All with the lock held.

    def enqueue(self, waiter: Waiter) -> None:
        """Let a producer wait its turn; from now on newcomers queue behind it."""
        self.waiters.append(waiter)
        self.refresh()

    def grant(self) -> None:
        """Set room aside for as many waiters as there is room for, oldest first."""
        while self.waiters and self.depth < self.capacity:
            waiter = self.waiters.popleft()
            waiter.granted = True
            self.reserved += 1
            waiter.notify()
        self.refresh()

    def leave(self, waiter: Waiter) -> bool:
        """End a producer's wait; True if it held room (now free again, for it to use at once)."""
        if waiter.granted:
            waiter.granted = False
            self.reserved -= 1
            return True
        if waiter in self.waiters:
            self.waiters.remove(waiter)
        return False

    # What the worker and the loop ask. These take the lock.

    def take(self, most: int) -> Columns:
        """Remove and return up to `most` events, oldest first: a few C calls, 50 M events/s."""
        with self.lock:
            count = min(self.count, most)
            if self.fences:
                count = max(0, min(count, self.fences[0].position - self.head))
            taken = self.entries[self.start : self.start + 2 * count]
            self._cut(count)
            self.drained += count
            if self.marks:
                self._pass_marks()
            if self.waiters:
                self.grant()
            else:
                self.refresh()
        return Columns(taken[::2], taken[1::2])

    def doze(self, fill_mark: int | None = None) -> bool:
        """Ask to be woken at the next push or, with `fill_mark`, once more than that many wait.

        False if there is cause to look again at once instead.
        """
        with self.lock:
            if fill_mark is None:
                self.asleep = True
            else:
                self.fill_mark = min(fill_mark, self.capacity - 1)
            self.refresh()
            ready = self.sealed or self.count > (0 if fill_mark is None else self.fill_mark)
            if ready:
                self.asleep, self.fill_mark = False, self.capacity
                self.refresh()
            return not ready

    def awake(self) -> None:
        """Say that the worker is up, however it was woken."""
        with self.lock:
            self.asleep, self.fill_mark = False, self.capacity
            self.refresh()

    def mark(self) -> FlushMark:
        """Put a barrier behind everything accepted so far; `settled_by` tells when it is reached."""
        with self.lock:
            mark = FlushMark(self.head + self.count)
            self.marks.append(mark)
            self._pass_marks()
            return mark

    def oldest(self) -> int | None:
        """Return the oldest event's timestamp, with the lock held; None if there is none."""
        return self.entries[self.start] if self.count else None

    def counts(self) -> tuple[int, int, int, int | None]:
        """Return (drained, evicted, here, the oldest event's timestamp) of one moment; any thread.

        Does without the lock if it cannot be had soon: a signal handler may have interrupted the
        very code that holds it.
        """
        held = self.lock.acquire(timeout=0.1)
        try:
            return self.drained, self.evicted, self.here, self.oldest()
        finally:
            if held:
                self.lock.release()

    def unmark(self, mark: FlushMark) -> None:
        """Forget a barrier."""
        with self.lock:
            if mark in self.marks:
                self.marks.remove(mark)

    def put_fence(self, passed: Callable[[], bool], deadline: float) -> None:
        """Let what is pushed from now on wait until `passed`, or until `deadline`; any thread."""
        with self.lock:
            self.fences.append(Fence(self.head + self.count, passed, deadline))

    def renew_gate(self) -> Gate:
        """Close the present gate for good and return its successor; waiting producers look again."""
        with self.lock:
            self.gate.limit, self.gate.attention = 0, True
            self.gate = Gate(self)
            while self.waiters:
                self.waiters.popleft().notify()
            self.refresh()
            return self.gate

    def seal(self) -> None:
        """Let nothing in any more; from now on the ring only shrinks. Waiting producers wake."""
        with self.lock:
            self.sealed = True
            self.asleep, self.fill_mark = False, self.capacity
            self.refresh()
            while self.waiters:
                self.waiters.popleft().notify()
        self.wake()

    def finish(self) -> bool:
        """Say that nothing more will be drained; False if the ring is not sealed and empty.

        What a producer that was held up in mid-push still appends is its own to take back out.
        """
        with self.lock:
            self.finished = self.finished or (self.sealed and not self.count)
            return self.finished

    def abandon(self) -> int:
        """Drain what is left into nothing, and finish; return how much it was."""
        with self.lock:
            count = 0 if self.finished else self.count
            self._cut(count)
            self.drained += count
            self.finished = True
            self._pass_marks()
            return count

    def _pass_marks(self) -> bool:
        """Note which marks have left the ring; True if any did just now."""
        position = self.head
        passed = False
        for mark in self.marks:
            if mark.settle_at is None and position >= mark.target:
                # What the last drain took beyond the mark need not be settled for it.
                mark.settle_at = self.drained - (position - mark.target)
                passed = True
        return passed
