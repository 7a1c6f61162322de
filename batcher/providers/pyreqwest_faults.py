"""Pyreqwest's errors in our words."""

import re

# The Rust side imports this module when it first raises, and where no descriptor is left for that, the whole
# process aborts: so it is loaded here, while there still are some.
from pyreqwest.exceptions import (
    BodyDecodeError,
    BuilderError,
    DecodeError,
    DetailedPyreqwestError,
    PoolTimeoutError,
    PyreqwestError,
    RequestTimeoutError,
)

from batcher.errors import CallError
from batcher.providers.failures import scrub
from batcher.providers.faults import (
    LOCAL_ERRNOS,
    connection_lost,
    no_request,
    no_such_host,
    not_connected,
    not_http,
    short_of,
    time_is_up,
)

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_TARGET = re.compile(r"for url \((https?://[^/)\s]+)")
_TLS = re.compile(r"certificate|fatal alert|corrupt message|peer is incompatible|peer misbehaved")


def fault_of(error: PyreqwestError) -> CallError:
    """Say what a call that broke means, by its class and its chain of causes."""
    causes = _causes(error)
    chain = "\n".join(causes)
    reason = scrub(causes[-1] if causes else error.message)
    connecting = "(Connect)" in chain
    number = _OS_ERROR.search(chain)
    if number and int(number[1]) in LOCAL_ERRNOS:
        return short_of(reason, sent=not connecting)
    if connecting:
        return _connect_failed(error, chain, reason)
    match error:
        case PoolTimeoutError():
            return time_is_up(sent=False)
        case RequestTimeoutError():
            return time_is_up(sent=True)
        case BuilderError():
            return no_request(reason)
        case DecodeError() if not isinstance(error, BodyDecodeError):
            return not_http(reason)
    return connection_lost(reason, unread="(SendRequest)" in chain)


def _causes(error: PyreqwestError) -> list[str]:
    details = error.details["causes"] if isinstance(error, DetailedPyreqwestError) else None
    return [cause["message"] for cause in details or ()]


def _connect_failed(error: PyreqwestError, chain: str, reason: str) -> CallError:
    found = _TARGET.search(chain)
    target = found[1] if found else ""
    if "resolving" in chain:
        return no_such_host(reason, target)
    if isinstance(error, RequestTimeoutError):
        return not_connected("connect_timeout", target, reason)
    if "tunnel" in chain or "socks" in chain:
        return not_connected("proxy_failed", target, reason, what="the proxy does not connect")
    if _TLS.search(chain):
        advice = "check the address and this machine's clock, or name your own authority with ca_file"
        what = "the certificate or the TLS handshake is not accepted"
        return not_connected("tls", target, f"{reason}; {advice}", what=what)
    return not_connected("connect_failed", target, reason)
