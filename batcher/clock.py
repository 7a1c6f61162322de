"""The two clocks of a run: one to wait by, one to write down."""

import asyncio
from datetime import UTC, datetime


def monotonic() -> float:
    """Return the running loop's time in seconds, so that a test loop can jump ahead."""
    return asyncio.get_running_loop().time()


def utcnow() -> datetime:
    """Return the wall-clock time in UTC: for records only, never to wait by."""
    return datetime.now(UTC)
