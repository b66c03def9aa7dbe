"""Disk space for a file that another writer is about to need."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["reserve"]


def reserve(path: Path, begin: int, end: int) -> bool:
    """Allocate `begin` to `end` of a file, whose content stays; what is new reads as zeros.

    Not by `os.posix_fallocate`: where the file system cannot allocate, that writes to each block,
    which would destroy what somebody else writes there meanwhile. Linux only.

    Returns:
        Whether it is allocated. If not, nothing was done.

    Source: fallocate(2)
    """
    try:
        allocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError, TypeError):
        return False
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    try:
        with path.open("r+b") as file:
            free = os.fstatvfs(file.fileno())
            if free.f_bavail * free.f_frsize < 4 * (end - begin):
                return False  # the disk is nearly full: leave it to what has to be written
            return bool(allocate(file.fileno(), 0, begin, end - begin) == 0)
    except OSError:
        return False
