"""SIGINT before there is anything to end properly, and after it has ended: leave, and say nothing."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types

__all__ = ["leave_quietly", "raise_again"]


def leave_quietly() -> None:
    """Let SIGINT end the process with code 130 at once, until `raise_again`.

    While modules load, and while the interpreter ends, nobody catches `KeyboardInterrupt`. Where SIGINT
    is ignored, as under `nohup`, or handled by the embedding program, that stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _install(_leave)


def raise_again() -> None:
    """Let SIGINT raise `KeyboardInterrupt`, as Python does."""
    if signal.getsignal(signal.SIGINT) is _leave:
        _install(signal.default_int_handler)


def _install(handler: signal._HANDLER) -> None:
    # Another thread than the main one may not set handlers, and gets no signals either.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, handler)


def _leave(number: int, frame: types.FrameType | None) -> None:
    os._exit(128 + number)
