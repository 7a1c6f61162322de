"""One account's calls: what every provider that speaks this API does with a request."""

from collections.abc import Mapping, Sequence

from batcher.errors import CallError
from batcher.providers.blotting import Blotter
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
        self._blotter = Blotter(key)
        self._dialect = dialect

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Make one HTTP call, bounded by `timeout_s` from its start to the last byte, and check the reply.

        Raises:
            CallError: the call did not bring an answer.
        """
        status, headers, body = await self._pool.post(
            self._urls[request.endpoint], self._headers, request.body, timeout_s=timeout_s
        )
        if not 200 <= status < 300:
            raise self.failure(status, headers, body)
        headers = self._blotter.headers(headers)
        try:
            answer = self._blotter.answer(body)
            return parse_reply(request.endpoint, status, headers, answer, dialect=self._dialect)
        except CallError:
            # It is a failure after all, and those may name the key by its start.
            body = self._blotter.failure(body)
        return parse_reply(request.endpoint, status, headers, body, dialect=self._dialect)

    async def get(self, url: str, *, timeout_s: float) -> HttpReply:
        """Fetch `url` for a control-plane call; raises as `Provider.models` does."""
        status, headers, body = await self._pool.get(url, self._headers, timeout_s=timeout_s)
        if 200 <= status < 300:
            return self.blotted(status, headers, body)
        raise self.failure(status, headers, body)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
        """Say what a reply means that is not 2xx, without the key that it may repeat."""
        return classify(*self.blotted(status, headers, body), dialect=self._dialect)

    def blotted(self, status: int, headers: Mapping[str, str], body: bytes) -> HttpReply:
        """Return a reply that holds no answer of a model without the key that it may repeat, or its start."""
        return HttpReply(status, self._blotter.headers(headers), self._blotter.failure(body))
