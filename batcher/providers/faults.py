"""What a call that broke on its way means, and whether its request may have been sent."""

import errno
import os
import socket

from batcher.errors import (
    AttemptTimeout,
    BadReply,
    CallError,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    LocalFault,
)
from batcher.providers.failures import scrub

LOCAL_ERRNOS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
        errno.ENETDOWN,
    }
)
"""What only this machine is to blame for."""


def cannot_connect(error: OSError, target: str) -> CallError:
    """Say what kept a connection from being made.

    Args:
        error: what the system or the resolver said; a `TimeoutError` if it took too long.
        target: `http://host:port`.
    """
    if isinstance(error, socket.gaierror):
        return no_such_host(scrub(error.strerror or str(error)), target)
    # Loops add words and addresses of their own to what the system says.
    reason = os.strerror(error.errno) if error.errno else scrub(str(error))
    if error.errno in LOCAL_ERRNOS:
        return short_of(reason, sent=False)
    if isinstance(error, TimeoutError):
        return not_connected("connect_timeout", target, "the time for it was up")
    return not_connected("connect_failed", target, reason)


def no_such_host(reason: str, target: str) -> CallError:
    """Say that a host's name has no address, if that is why."""
    if _out_of_descriptors():
        # The resolver reads files, and says "unknown host" when it cannot open them.
        return LocalFault("this machine has no file descriptor left", code="local_fault", sent=False)
    return not_connected("dns_failed", target, reason, what="cannot find the host")


def not_connected(code: str, target: str, reason: str, *, what: str = "cannot connect") -> ConnectFailed:
    """Say that no connection to `target` ("" if it is not known) was made."""
    place = f" ({target})" if target else ""
    return ConnectFailed(f"{what}{place}: {reason}", code=code, sent=False)


def short_of(reason: str, *, sent: bool) -> LocalFault:
    """Say that this machine has run out of something."""
    return LocalFault(f"this machine is short of something: {reason}", code="local_fault", sent=sent)


def time_is_up(*, sent: bool) -> AttemptTimeout:
    """Say that the time of a call is over."""
    missing = "the whole answer had come" if sent else "a connection was free"
    return AttemptTimeout(f"the time was up before {missing}", code="timeout", sent=sent)


def connection_lost(reason: str, *, unread: bool) -> ConnectionLost:
    """Say that a connection ended before an answer did, `unread` if before a byte of it came."""
    lost = ConnectionLost(
        f"the connection broke before the whole answer had come: {reason}", code="connection_lost"
    )
    lost.unread = unread
    return lost


def client_closed(*, sent: bool) -> ConnectionLost:
    """Say that our own side ended a call, or let it not begin."""
    lost = connection_lost("the client was closed", unread=False)
    lost.sent = sent
    return lost


def not_http(reason: str) -> BadReply:
    """Say that what came back cannot be read."""
    return BadReply(f"what came back is not HTTP: {reason}", code="bad_http")


def no_request(reason: str) -> InvalidRequest:
    """Say that the URL or the headers of a request cannot be sent."""
    return InvalidRequest(f"no request can be made of it: {reason}", code="bad_request", sent=False)


def _out_of_descriptors() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in LOCAL_ERRNOS
    return False
