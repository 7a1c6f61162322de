"""One account's calls: what every provider that speaks this API does with a request."""

from collections.abc import Mapping, Sequence

from batcher.errors import CallError
from batcher.providers.failures import classify
from batcher.providers.keys import Secret
from batcher.providers.limit_headers import Dialect
from batcher.providers.replies import parse_reply
from batcher.providers.transport import HttpReply, Pool
from batcher.types import Endpoint, Reply, Request


class Calls:
    """Sends requests of one account through the pool, with URLs and headers that are made once.

    Args:
        pool: shared with others.
        urls: where each endpoint lives.
        headers: for every call, the authorization among them.
        key: blotted out wherever a reply repeats it.
        dialect: how the provider's limit headers are to be read.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        urls: Mapping[Endpoint, str],
        headers: Sequence[tuple[str, str]],
        key: Secret | None,
        dialect: Dialect,
    ) -> None:
        self._pool = pool
        self._urls = urls
        self._headers = headers
        self._key = key.reveal().encode() if key else None
        self._dialect = dialect

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Make one call and check what comes back; raises as `Provider.send` does."""
        status, headers, body = await self._pool.post(
            self._urls[request.endpoint], self._headers, request.body, timeout_s=timeout_s
        )
        if 200 <= status < 300:
            return parse_reply(request.endpoint, status, headers, self.blotted(body), dialect=self._dialect)
        raise self.failure(status, headers, body)

    async def get(self, url: str, *, timeout_s: float) -> HttpReply:
        """Fetch `url` for a control-plane call; raises as `Provider.models` does."""
        reply = await self._pool.get(url, self._headers, timeout_s=timeout_s)
        if 200 <= reply.status < 300:
            return reply._replace(body=self.blotted(reply.body))
        raise self.failure(*reply)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
        """Say what a reply means that is not 2xx, without the key wherever the reply repeats it."""
        return classify(status, headers, self.blotted(body), dialect=self._dialect)

    def blotted(self, body: bytes) -> bytes:
        """Blot out the key in a reply's body."""
        if self._key is not None and self._key in body:
            return body.replace(self._key, b"***")
        return body
