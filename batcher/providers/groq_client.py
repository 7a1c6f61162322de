"""Groq's own client on the pool, for all of its API but the calls of jobs; only those who need it load it."""

import logging

import httpx
from asyncio_throttle.throttler import Throttler
from groq import APIConnectionError, APIStatusError, AsyncGroq, Omit

from batcher.errors import CallError, ConnectionLost
from batcher.providers.calls import Calls
from batcher.providers.groq import HEADERS
from batcher.providers.keys import Secret
from batcher.providers.replies import parse_models
from batcher.providers.transport import Pool
from batcher.types import ModelInfo

_CONTROL_TIMEOUT_S = 60.0
_CONTROL_CALLS_PER_S = 2
# Its debug lines show the headers of replies, in which a server may repeat the key.
logging.getLogger("groq._base_client").addFilter(lambda record: record.levelno >= logging.WARNING)


class GroqClient:
    """Groq's client for one account.

    Args:
        pool: shared with others; it stays open.
        key: of the account.
        base_url: without Groq's `/openai/v1`, which its client adds.
    """

    def __init__(self, pool: Pool, key: Secret, base_url: str) -> None:
        self._client = _QuietGroq(
            api_key=key.reveal(),
            base_url=base_url,
            max_retries=0,
            http_client=httpx.AsyncClient(
                transport=_PoolTransport(pool), trust_env=False, follow_redirects=False
            ),
        )
        self._throttle = Throttler(rate_limit=_CONTROL_CALLS_PER_S)

    async def models(self, calls: Calls) -> list[ModelInfo]:
        """List the models that the account can use; `calls` reads what comes back.

        Raises:
            CallError: the call did not bring an answer.
        """
        async with self._throttle:
            try:
                reply = await self._client.models.with_raw_response.list()
                return parse_models(*calls.blotted(reply.status_code, reply.headers, await reply.read()))
            except APIStatusError as error:
                failed = error.response
                raise calls.failure(failed.status_code, failed.headers, failed.content) from None
            except APIConnectionError as error:
                raise _fault_under(error) from None

    async def aclose(self) -> None:
        """Close the client; the shared pool stays open."""
        await self._client.close()


class _QuietGroq(AsyncGroq):
    """Groq's client with these headers only: none from GROQ_CUSTOM_HEADERS, none about this machine."""

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        return {**HEADERS, "authorization": self.auth_headers["Authorization"]}


class _PoolTransport(httpx.AsyncBaseTransport):
    """Lets Groq's client call through the pool, under its caps and one deadline."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, headers = str(request.url), request.headers.multi_items()
        if request.method == "GET":
            reply = await self._pool.get(url, headers, timeout_s=_CONTROL_TIMEOUT_S)
        else:
            body = await request.aread()
            reply = await self._pool.post(url, headers, body, timeout_s=_CONTROL_TIMEOUT_S)
        # The body is decoded already.
        kept = {name: value for name, value in reply.headers.items() if name != "content-encoding"}
        return httpx.Response(reply.status, headers=kept, content=reply.body, request=request)


def _fault_under(error: BaseException) -> CallError:
    """Find the pool's own fault under the layers that were laid over it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CallError):
        cause = cause.__cause__
    return cause or ConnectionLost(str(error), code="connection_lost")
