"""Anything that speaks OpenAI's API: OpenAI itself, vLLM, LiteLLM, a local server."""

from batcher.providers.calls import Calls
from batcher.providers.keys import Secret
from batcher.providers.replies import parse_models
from batcher.providers.transport import ACCEPT_ENCODING, Pool
from batcher.types import ENDPOINTS, ModelInfo

_CONTROL_TIMEOUT_S = 60.0


class OpenAICompatible:
    """One account at one address; `send` is what `Calls` makes of it.

    Args:
        pool: shared with others; it stays open.
        base_url: as `check_base_url` returned it; its path takes the place of an endpoint's `/v1`.
        key: None for a server that asks for none.
        name: as it shall stand in result lines.
    """

    def __init__(
        self, pool: Pool, base_url: str, key: Secret | None = None, *, name: str = "openai_compatible"
    ) -> None:
        self._name = name
        self._base_url = base_url
        headers = [
            ("content-type", "application/json"),
            ("accept", "application/json"),
            ("accept-encoding", ACCEPT_ENCODING),
        ]
        if key is not None:
            headers.append(("authorization", f"Bearer {key.reveal()}"))
        urls = {endpoint: base_url + endpoint.removeprefix("/v1") for endpoint in ENDPOINTS}
        self._calls = Calls(pool, urls=urls, headers=headers, key=key, dialect="openai")
        self.send = self._calls.send

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._base_url!r}, name={self._name!r})"

    @property
    def name(self) -> str:
        """The provider's name, as it stands in result lines."""
        return self._name

    async def models(self) -> list[ModelInfo]:
        """List the models that the account can use.

        Raises:
            CallError: the call did not bring an answer.
        """
        return parse_models(*await self._calls.get(f"{self._base_url}/models", timeout_s=_CONTROL_TIMEOUT_S))

    async def aclose(self) -> None:
        """Release what the provider holds, which is nothing; the shared pool stays open."""
