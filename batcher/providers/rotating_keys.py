"""The keys of one account as one provider: they take turns, and one that is refused for good is left out."""

from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack

from batcher.errors import KeyDoubted, KeyRefused
from batcher.events import Emit, KeyDisabled
from batcher.providers.base import Provider
from batcher.types import ModelInfo, Reply, Request

DOUBT_S = 1.0
"""The wait before a doubted key is tried again where no other one lives."""

_NO_CREDIT = frozenset({"insufficient_quota", "payment_required"})


class KeyRing:
    """Whose turn it is among `size` keys, which are numbered from 0.

    A key is dead once it has been refused for good, or twice in a row with no answer in between: the second
    time by a call that was sent when the key was doubted already, as one short fault may refuse many at once.
    """

    def __init__(self, size: int) -> None:
        self._turns = deque(range(size))
        self._doubted: set[int] = set()

    def __repr__(self) -> str:
        return f"<KeyRing live={sorted(self._turns)} doubted={sorted(self._doubted)}>"

    @property
    def live(self) -> frozenset[int]:
        """The keys that may still be used."""
        return frozenset(self._turns)

    def take(self) -> int | None:
        """Return the key whose turn it is, None if all are dead."""
        if not self._turns:
            return None
        self._turns.rotate(-1)
        return self._turns[-1]

    def answered(self, key: int) -> None:
        """A call with `key` brought an answer."""
        self._doubted.discard(key)

    def is_doubted(self, key: int) -> bool:
        """Tell whether the last that was heard of `key` is a refusal."""
        return key in self._doubted

    def refused(self, key: int, *, sure: bool) -> bool:
        """A call with `key` was refused; return whether the key died of it, which it does once.

        Args:
            key: the key.
            sure: there is no doubt: it has no credit, or it was doubted already when the call was sent.
        """
        if key not in self._turns:
            return False  # the call was already out when the key died
        if not sure:
            self._doubted.add(key)
            return False
        self._doubted.discard(key)
        self._turns.remove(key)
        return True


class RotatingKeys:
    """One account with one or more keys.

    Args:
        account: its name in messages and events.
        keys: for each key the name of the variable that holds it, and a provider that calls with it.
        emit: is told of a key that is left out from now on.

    Raises:
        ValueError: there is no key.
    """

    def __init__(self, account: str, keys: Sequence[tuple[str, Provider]], emit: Emit) -> None:
        if not keys:
            raise ValueError("an account has one key at least")
        self._account = account
        self._keys = tuple(keys)
        self._emit = emit
        self._ring = KeyRing(len(keys))
        self._last_refusal = ("", "")  # code and message

    def __repr__(self) -> str:
        labels = [label for label, _ in self._keys]
        return f"<RotatingKeys {self._account!r} {labels} {self._ring!r}>"

    @property
    def name(self) -> str:
        """The provider's name, as it stands in result lines."""
        return self._keys[0][1].name

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Make one HTTP call with the next key, bounded by `timeout_s` from its start to the last byte.

        Raises:
            KeyDoubted: the key was refused, but another one lives, or the refusal is not yet sure.
            KeyRefused: no key is left; unless the call itself found that out, none was made.
            CallError: the call did not bring an answer.
        """
        key = self._ring.take()
        if key is None:
            raise self._none_left()
        doubted = self._ring.is_doubted(key)
        try:
            reply = await self._keys[key][1].send(request, timeout_s=timeout_s)
        except KeyRefused as error:
            self._refused(key, error, confirmed=doubted)
            if not self._ring.live:
                raise
            raise _doubted(error, wait=self._ring.live == {key}) from error
        self._ring.answered(key)
        return reply

    async def models(self) -> list[ModelInfo]:
        """List the models that the account can use; what becomes of the call says nothing about its key.

        Raises:
            KeyRefused: no key is left, or the first one was refused.
            CallError: the call did not bring an answer.
        """
        live = self._ring.live
        if not live:
            raise self._none_left()
        return await self._keys[min(live)][1].models()

    async def aclose(self) -> None:
        """Release what the providers of all keys hold, even if one of them fails to; the pool stays open."""
        async with AsyncExitStack() as stack:
            for _, provider in self._keys:
                stack.push_async_callback(provider.aclose)

    def _refused(self, key: int, error: KeyRefused, *, confirmed: bool) -> None:
        no_credit = error.status == 402 or error.code in _NO_CREDIT
        if not self._ring.refused(key, sure=no_credit or confirmed):
            return
        self._last_refusal = (error.code, str(error))
        why = "has no credit" if no_credit else "was refused twice in a row"
        left = len(self._ring.live)
        keys_left = f"{left} keys are left" if left > 1 else "1 key is left" if left else "no key is left"
        message = f"{self._keys[key][0]} {why} and is not used any more: {error}; {keys_left}"
        self._emit(KeyDisabled(account=self._account, message=message))

    def _none_left(self) -> KeyRefused:
        code, message = self._last_refusal
        return KeyRefused(f"no key is left, the last one was refused: {message}", code=code, sent=False)


def _doubted(error: KeyRefused, *, wait: bool) -> KeyDoubted:
    """Return `error` as one after which the job is tried again, after `DOUBT_S` if it is to `wait`."""
    asked_s = error.retry_after_s
    return KeyDoubted(
        str(error),
        code=error.code,
        status=error.status,
        body=error.body,
        request_id=error.request_id,
        retry_after_s=max(asked_s or 0.0, DOUBT_S) if wait else asked_s,
        limits=error.limits,
        sent=error.sent,
    )
