"""The two clocks of a run: one to wait by, one to write down."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime


def monotonic() -> float:
    """Return the running loop's time in seconds, so that a test loop can jump ahead."""
    return asyncio.get_running_loop().time()


def loop_clock() -> Callable[[], float]:
    """Return what `monotonic` asks: for who asks often, as finding the running loop takes a system call."""
    return asyncio.get_running_loop().time


def utcnow() -> datetime:
    """Return the wall-clock time in UTC: for records only, never to wait by."""
    return datetime.now(UTC)
