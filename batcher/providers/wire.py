"""What the clients under the pool have in common: how connections are kept, and what a call brings back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Headers = Sequence[tuple[str, str]]

Received = tuple[int, dict[str, str], bytes | None]
"""Status, headers and body, as they came.

Header names are in lower case; of a repeated header the first counts, and one that is not ASCII is left out.
The body is None if it is above the cap, and then its rest was not read.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How connections are made and kept.

    Attributes:
        max_connections: calls at a time of the client that has a thread; above the run's concurrency, so that
            the pool is never the queue. On the loop there are as many as calls.
        connect_timeout_s: for name, TCP and TLS together (seconds, > 0).
        idle_timeout_s: after which an unused connection is closed (seconds, > 0). Common servers close theirs
            after 5 s; being first avoids sending into a connection that is just being closed.
        max_body_bytes: largest body, on the wire and decoded.
        proxy: URL of a proxy for everything; those of the environment are never obeyed.
        ca_file: PEM file with further certificate authorities to trust.
        plain_on_loop: make calls over plain http on the loop's own thread; else they take the client that
            has a thread, as all others do.
    """

    max_connections: int = 128
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 4.0
    max_body_bytes: int = 8 * 1024 * 1024
    proxy: str | None = None
    ca_file: str | Path | None = None
    plain_on_loop: bool = True


def announced_above(cap_bytes: int, headers: Mapping[str, str]) -> bool:
    """Tell whether a body says of itself that it is larger than `cap_bytes`."""
    length = headers.get("content-length", "").lstrip("0")
    return length.isdigit() and (len(length) > 20 or int(length) > cap_bytes)
