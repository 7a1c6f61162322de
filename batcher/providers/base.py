"""What a lane's attempts talk to."""

from typing import Protocol

from batcher.types import ModelInfo, Reply, Request


class Provider(Protocol):
    """One account at one API: a request goes in, a checked reply or one of our errors comes out."""

    @property
    def name(self) -> str:
        """The provider's name, as it stands in result lines."""

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Make one HTTP call, bounded by `timeout_s` from its start to the last byte.

        Raises:
            CallError: the call did not bring an answer.
        """

    async def models(self) -> list[ModelInfo]:
        """List the models that the account can use.

        Raises:
            CallError: the call did not bring an answer.
        """

    async def aclose(self) -> None:
        """Release what the provider holds; the shared pool stays open."""
