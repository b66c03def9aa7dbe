"""The door to asyncio and trio: signals, tasks, bounded calls, the way in from other threads."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest

from netcore.runtime import CallCancelledError, CallTimeoutError, Progress, current_runtime

pytestmark = pytest.mark.anyio


async def test_signal_set_before_the_wait_is_remembered_once() -> None:
    """A latch: the first wait takes it, the second waits."""
    signal = current_runtime().signal()
    signal.set()
    signal.set()
    assert await signal.wait(5) is True
    assert await signal.wait(0.01) is False


async def test_signal_set_during_the_wait_wakes_it() -> None:
    """From this thread and from another."""
    runtime = current_runtime()
    signal = runtime.signal()
    async with anyio.create_task_group() as group:
        group.start_soon(signal.wait, 5)
        await anyio.wait_all_tasks_blocked()
        signal.set()
    threading.Timer(0.01, lambda: runtime.call_soon_threadsafe(signal.set)).start()
    assert await signal.wait(5) is True


async def test_signal_wait_cancelled_keeps_what_was_set() -> None:
    """A cancelled wait takes nothing."""
    signal = current_runtime().signal()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await signal.wait()
    signal.set()
    assert await signal.wait(0) is True


async def test_task_result_is_what_it_returned_or_raised() -> None:
    """Its exception stays with it until asked for."""
    runtime = current_runtime()

    async def work(fail: bool) -> int:
        await runtime.checkpoint()
        if fail:
            raise LookupError("in the task")
        return 5

    good, bad = runtime.spawn(lambda: work(False), "good"), runtime.spawn(lambda: work(True), "bad")
    assert not good.done
    assert await good.join(5)
    assert await bad.join(5)
    assert good.result() == 5
    with pytest.raises(LookupError, match="in the task"):
        bad.result()


async def test_task_cancelled_raises_its_own_kind_of_error() -> None:
    """Not a `CancelledError`, which would be taken for the caller's own."""
    runtime = current_runtime()
    task = runtime.spawn(lambda: runtime.sleep(60), "sleeper")
    assert await task.join(0.01) is False
    task.cancel()
    assert await task.join(5)
    task.cancel()
    with pytest.raises(CallCancelledError):
        task.result()


async def test_join_cancelled_leaves_the_task_running() -> None:
    """Who waits may go; the task goes on."""
    runtime = current_runtime()
    done: list[int] = []

    async def work() -> None:
        await runtime.sleep(0.05)
        done.append(1)

    task = runtime.spawn(work, "worker")
    with anyio.move_on_after(0.01):
        await task.join()
    assert not done
    assert await task.join(5)
    assert done


async def test_bounded_call_that_hangs_is_cancelled() -> None:
    """And says how long it was given."""
    runtime = current_runtime()
    with pytest.raises(CallTimeoutError, match=r"no answer within 0\.02 s and was cancelled") as caught:
        await runtime.bounded(lambda: runtime.sleep(60), 0.02, "hangs")
    assert caught.value.task is None


async def test_bounded_call_that_ignores_cancellation_is_left_behind() -> None:
    """After a second of grace; the error holds the task."""
    runtime = current_runtime()
    ended = anyio.Event()

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            while not ended.is_set():
                try:
                    await ended.wait()
                except BaseException:  # a broken driver, played
                    continue

    begun = time.monotonic()
    with pytest.raises(CallTimeoutError, match="ignores its cancellation") as caught:
        await runtime.bounded(stubborn, 0.02, "stubborn")
    assert 0.9 < time.monotonic() - begun < 3
    ended.set()
    assert caught.value.task is not None
    assert await caught.value.task.join(5)


async def test_bounded_call_passes_its_own_error_and_value() -> None:
    """Nothing is wrapped."""
    runtime = current_runtime()

    async def value(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 7

    assert await runtime.bounded(lambda: value(None), 1, "ok") == 7
    with pytest.raises(OSError, match="its own"):
        await runtime.bounded(lambda: value(OSError("its own")), 1, "bad")


async def test_within_times_out_in_the_callers_task() -> None:
    """A value that comes despite the cancellation is a value."""
    runtime = current_runtime()
    with pytest.raises(TimeoutError):
        await runtime.within(runtime.sleep(60), 0.02)

    async def swallows() -> str:
        try:
            await runtime.sleep(60)
        except BaseException:
            return "late"
        return "early"

    assert await runtime.within(swallows(), 0.02) == "late"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_within_tells_its_own_cancellation_from_the_callers() -> None:
    """A call that cancels itself is an error; a caller that is cancelled is cancelled."""
    runtime = current_runtime()

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CallCancelledError, match="cancelled itself"):
        await runtime.within(cancels_itself(), 5)
    task = asyncio.ensure_future(runtime.within(runtime.sleep(60), 50))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_progress_wakes_all_present_waiters() -> None:
    """And none that comes later."""
    progress = Progress(current_runtime())
    woken: list[Any] = []

    async def wait() -> None:
        woken.append(await progress.wait(5))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        progress.notify()
    assert woken == [True] * 3
    assert await progress.wait(0.01) is False


def test_threadsafe_call_into_a_loop_that_is_gone_says_so() -> None:
    """It neither raises nor runs."""
    for backend in ("asyncio", "trio"):
        made: list[Any] = []

        async def main() -> None:
            made.append(current_runtime())  # noqa: B023
            assert made[0].here  # noqa: B023
            assert not made[0].gone  # noqa: B023

        anyio.run(main, backend=backend)
        assert made[0].gone
        assert made[0].call_soon_threadsafe(lambda: 1 / 0) is False
        assert not made[0].here


def test_current_runtime_without_a_loop_names_the_blocking_front() -> None:
    """There is a bus for code without one."""
    with pytest.raises(RuntimeError, match=r"netcore\.blocking"):
        current_runtime()


async def test_every_repeats_until_ended() -> None:
    """The function runs again and again, at the pace asked for; not once after its end."""
    runtime = current_runtime()
    third, count = anyio.Event(), 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == 3:
            end()
            third.set()

    began = time.monotonic()
    end = runtime.every(0.01, tick)
    with anyio.fail_after(10):
        await third.wait()
    assert time.monotonic() - began >= 0.03
    await anyio.sleep(0.03)  # what must not happen has no event
    assert count == 3
