"""Which redis-py this adapter is known to work with, and what is said of one that it can't use.

It takes over redis-py's connections (see `inlet`), and how those look inside is nobody's promise.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final

from netcore import AdapterRefusedError

__all__ = ["KNOWN", "unfit_driver"]

KNOWN: Final = ("5.2", "8.1")
"""The oldest and the newest version that the tests have passed with."""


def unfit_driver(error: Exception) -> AdapterRefusedError:
    """Return the error to raise, `from` the original, when something of redis-py's is missing."""
    try:
        found = f"redis-py {metadata.version('redis')}"
    except metadata.PackageNotFoundError:
        found = "the redis-py that is installed"
    oldest, newest = KNOWN
    return AdapterRefusedError(
        f"open: {found} lacks something that the redis adapter uses ({error}); versions {oldest} to {newest} "
        f"are known to work: pip install 'redis[hiredis]=={newest}.*'"
    )
