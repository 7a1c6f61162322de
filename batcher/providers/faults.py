"""What a call that broke in the transport means, and whether the request may have been sent."""

import errno
import os
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

_LOCAL_ERRNOS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EADDRNOTAVAIL,
    errno.ENETDOWN,
}
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
    if number and int(number[1]) in _LOCAL_ERRNOS:
        return LocalFault(
            f"this machine is short of something: {reason}", code="local_fault", sent=not connecting
        )
    if connecting:
        return _connect_failed(error, chain, reason)
    match error:
        case PoolTimeoutError():
            return AttemptTimeout("the time was up before a connection was free", code="timeout", sent=False)
        case RequestTimeoutError():
            return AttemptTimeout("the time was up before the whole answer had come", code="timeout")
        case BuilderError():
            return InvalidRequest(f"no request can be made of it: {reason}", code="bad_request", sent=False)
        case DecodeError() if not isinstance(error, BodyDecodeError):
            return BadReply(f"what came back is not HTTP: {reason}", code="bad_http")
    lost = ConnectionLost(
        f"the connection broke before the whole answer had come: {reason}", code="connection_lost"
    )
    lost.unread = not isinstance(error, BodyDecodeError)
    return lost


def _causes(error: PyreqwestError) -> list[str]:
    details = error.details["causes"] if isinstance(error, DetailedPyreqwestError) else None
    return [cause["message"] for cause in details or ()]


def _connect_failed(error: PyreqwestError, chain: str, reason: str) -> CallError:
    code, what = "connect_failed", "cannot connect"
    if "resolving" in chain:
        if _out_of_descriptors():
            # The resolver reads files, and says "unknown host" when it cannot open them.
            return LocalFault("this machine has no file descriptor left", code="local_fault", sent=False)
        code, what = "dns_failed", "cannot find the host"
    elif isinstance(error, RequestTimeoutError):
        code = "connect_timeout"
    elif "tunnel" in chain or "socks" in chain:
        code, what = "proxy_failed", "the proxy does not connect"
    elif _TLS.search(chain):
        code, what = "tls", "the certificate or the TLS handshake is not accepted"
        reason += "; check the address and this machine's clock, or name your own authority with ca_file"
    target = _TARGET.search(chain)
    place = f" ({target[1]})" if target else ""
    return ConnectFailed(f"{what}{place}: {reason}", code=code, sent=False)


def _out_of_descriptors() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in _LOCAL_ERRNOS
    return False
