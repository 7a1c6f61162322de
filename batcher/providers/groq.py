"""Groq: chat goes straight through the pool, the rest of its API through its own client on the same pool."""

from typing import TYPE_CHECKING

from batcher.providers.calls import Calls
from batcher.providers.keys import Secret
from batcher.providers.transport import ACCEPT_ENCODING, Pool
from batcher.types import ENDPOINTS, ModelInfo

if TYPE_CHECKING:
    from batcher.providers.groq_client import GroqClient

HEADERS = {
    "accept": "application/json",
    "accept-encoding": ACCEPT_ENCODING,
    "content-type": "application/json",
    "user-agent": "batcher",
}
"""Of every call, beside the authorization."""

_PREFIX = "/openai"


class Groq:
    """One Groq account; `send` is what `Calls` makes of it.

    Args:
        pool: shared with others; it stays open.
        key: of the account.
        base_url: as `check_base_url` returned it, with or without the `/openai/v1` of Groq's paths.
    """

    name = "groq"

    def __init__(self, pool: Pool, key: Secret, base_url: str) -> None:
        self._pool = pool
        self._key = key
        self._base_url = base_url.removesuffix("/v1").removesuffix(_PREFIX).rstrip("/")
        self._calls = Calls(
            pool,
            urls={endpoint: self._base_url + _PREFIX + endpoint for endpoint in ENDPOINTS},
            headers=[*HEADERS.items(), ("authorization", f"Bearer {key.reveal()}")],
            key=key,
            dialect="groq",
        )
        self.send = self._calls.send
        self._client: GroqClient | None = None

    def __repr__(self) -> str:
        return f"Groq({self._base_url!r})"

    async def models(self) -> list[ModelInfo]:
        """List the models that the account can use.

        Raises:
            CallError: the call did not bring an answer.
        """
        return await self._own_client().models(self._calls)

    async def aclose(self) -> None:
        """Close Groq's client; the shared pool stays open."""
        if self._client is not None:
            await self._client.aclose()

    def _own_client(self) -> "GroqClient":
        from batcher.providers.groq_client import GroqClient  # noqa: PLC0415 - takes 0.15 s to import

        if self._client is None:
            self._client = GroqClient(self._pool, self._key, self._base_url)
        return self._client
