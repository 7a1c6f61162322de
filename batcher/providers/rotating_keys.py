"""The keys of one account as one provider: they take turns, and one that is refused for good is left out."""

from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

import msgspec

from batcher.clock import loop_clock
from batcher.errors import CallError, KeyDoubted, KeyRefused, ModelUnavailable
from batcher.events import Emit, KeyDisabled
from batcher.providers.base import Provider
from batcher.types import ModelInfo, Reply, Request

DOUBT_S = 1.0
"""The pause between two calls with a doubted key where no other one lives."""

CONFIRM_AFTER_S = 5.0
"""A doubt is confirmed by a call that was sent so much later: a gateway that restarts refuses good keys."""

SERVES_S = 60.0
"""A key that answered so recently is not dead."""

_MODELS = 100
"""So many models are remembered for each key."""

_NO_CREDIT = frozenset({"insufficient_quota", "payment_required"})

_Value = TypeVar("_Value")


class Turn(msgspec.Struct, frozen=True):
    """One call: its key's number, the model, and the loop time at which it was sent."""

    key: int
    model: str
    sent_at: float


class Verdict(Enum):
    """What a refusal means: not sure yet, the key is dead, or no key may use the model."""

    DOUBTED = auto()
    KEY_DEAD = auto()
    MODEL_REFUSED = auto()


@dataclass(slots=True)
class _Doubt:
    """Since when there is doubt, when it was last tested (both loop time), and whether that confirmed it."""

    since: float
    tried_at: float
    confirmed: bool = False


class _Standing:
    """What is known of one key.

    Attributes:
        doubt: of the key itself, None if there is none.
        doubts: of single models with this key.
    """

    def __init__(self) -> None:
        self.doubt: _Doubt | None = None
        self.doubts: dict[str, _Doubt] = {}
        self._served_at: dict[str, float] = {}  # answered, and not refused since
        self._out: dict[str, int] = {}

    def doubts_of(self, model: str) -> tuple[_Doubt, ...]:
        if self.doubt is None and not self.doubts:
            return ()
        return tuple(doubt for doubt in (self.doubt, self.doubts.get(model)) if doubt is not None)

    def sent(self, model: str, now: float) -> None:
        self._out[model] = self._out.get(model, 0) + 1
        for doubt in self.doubts_of(model):
            doubt.tried_at = now

    def ended(self, model: str) -> None:
        out = self._out[model] = self._out[model] - 1
        if not out:
            del self._out[model]

    def answered(self, turn: Turn, now: float) -> None:
        if (doubt := self.doubts.get(turn.model)) is not None:
            if turn.sent_at < doubt.since:
                return  # let in before the refusals began
            del self.doubts[turn.model]
        self.doubt = None
        self._served_at.pop(turn.model, None)
        _remember(self._served_at, turn.model, now)

    def refused(self, model: str, now: float) -> None:
        self._served_at.pop(model, None)
        if model not in self.doubts:
            _remember(self.doubts, model, _Doubt(now, now))
        if self.doubt is None and not self.serves_others(model, now):
            self.doubt = _Doubt(now, now)

    def serves_others(self, model: str, now: float) -> bool:
        """Tell whether a model other than `model` had an answer lately and no refusal since."""
        return any(now - at <= SERVES_S for other, at in self._served_at.items() if other != model)

    def may_serve_others(self, model: str) -> bool:
        """Tell whether calls for other models are out, none of which was refused yet."""
        return any(other != model and other not in self.doubts for other in self._out)


class KeyRing:
    """Whose turn it is among `size` keys, which are numbered from 0.

    A refusal puts a key in doubt, or only the model with that key if it serves others. A doubted key is used
    where there is no better one, and then only once in `DOUBT_S`; or to find out, `CONFIRM_AFTER_S` after the
    doubt arose. A key is dead once it is refused for good, or still refused that long after the doubt arose,
    with no answer since. All times are loop times, and `now` never goes back.
    """

    def __init__(self, size: int) -> None:
        self._turns = deque(range(size))
        self._standings = [_Standing() for _ in range(size)]

    def __repr__(self) -> str:
        doubted = [key for key in self.live if self._standings[key].doubt is not None]
        return f"<KeyRing live={sorted(self._turns)} doubted={sorted(doubted)}>"

    @property
    def live(self) -> frozenset[int]:
        """The keys that may still be used."""
        return frozenset(self._turns)

    def take(self, model: str, now: float) -> Turn | None:
        """Begin a call for `model` with the key whose turn it is, None if none may be used now."""
        key = self._next(model, now)
        if key is None:
            return None
        if key == self._turns[0]:
            self._turns.rotate(-1)
        else:
            self._turns.remove(key)
            self._turns.append(key)
        self._standings[key].sent(model, now)
        return Turn(key, model, now)

    def ended(self, turn: Turn) -> None:
        """The call is over; every turn ends once, after what became of it has been told."""
        self._standings[turn.key].ended(turn.model)

    def is_ready(self, model: str, now: float) -> bool:
        """Tell whether a key may be used for `model` now."""
        return self._next(model, now) is not None

    def is_doubted(self, key: int, model: str) -> bool:
        """Tell whether the last that was heard of `key`, or of `model` with it, is a refusal."""
        return bool(self._standings[key].doubts_of(model))

    def answered(self, turn: Turn, now: float) -> None:
        """The call brought an answer."""
        self._standings[turn.key].answered(turn, now)

    def refused(self, turn: Turn, now: float, *, for_good: bool) -> Verdict:
        """The call was refused, `for_good` if no wait can help; return what that means.

        A key dies once: a call that was out when it did is `DOUBTED`.
        """
        if turn.key not in self._turns:
            return Verdict.DOUBTED
        standing = self._standings[turn.key]
        standing.refused(turn.model, now)
        if not for_good:
            doubt = standing.doubt or standing.doubts[turn.model]
            if turn.sent_at < doubt.since + CONFIRM_AFTER_S:
                return Verdict.DOUBTED
            if standing.doubt is None or self._untried_otherwise(turn, now):
                standing.doubts[turn.model].confirmed = True
                return self._verdict_on(turn.model)
            if standing.may_serve_others(turn.model):
                return Verdict.DOUBTED
        self._turns.remove(turn.key)
        return Verdict.KEY_DEAD

    def _untried_otherwise(self, turn: Turn, now: float) -> bool:
        """Tell whether the key was refused for this model only, while other keys get others."""
        others = [self._standings[key] for key in self._turns if key != turn.key]
        return len(self._standings[turn.key].doubts) == 1 and any(
            other.serves_others(turn.model, now) or other.may_serve_others(turn.model) for other in others
        )

    def _verdict_on(self, model: str) -> Verdict:
        doubts = [self._standings[key].doubts.get(model) for key in self._turns]
        refused = all(doubt is not None and doubt.confirmed for doubt in doubts)
        return Verdict.MODEL_REFUSED if refused else Verdict.DOUBTED

    def _next(self, model: str, now: float) -> int | None:
        if self._turns and not self._standings[self._turns[0]].doubts_of(model):
            return self._turns[0]
        others = any(not self.is_doubted(key, model) for key in self._turns)
        for key in self._turns:
            doubts = self._standings[key].doubts_of(model)
            if all(now >= doubt.tried_at + _pause_s(doubt, others) for doubt in doubts):
                return key
        return None


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
        self._now = loop_clock()
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
            KeyDoubted: the key was refused, but another one lives, or the refusal is not yet sure; without a
                call if a doubted key was tried a moment ago.
            ModelUnavailable: the keys are refused for this model, while they serve others.
            KeyRefused: no key is left; unless the call itself found that out, none was made.
            CallError: the call did not bring an answer.
        """
        turn = self._ring.take(request.model, self._now())
        if turn is None:
            raise self._no_key_now()
        try:
            reply = await self._keys[turn.key][1].send(request, timeout_s=timeout_s)
            self._ring.answered(turn, self._now())
        except KeyRefused as error:
            meant = self._refused(turn, error)
            if meant is error:
                raise
            raise meant from error
        finally:
            self._ring.ended(turn)
        return reply

    async def models(self) -> list[ModelInfo]:
        """List the models that the account can use; what becomes of the call says nothing about its key.

        Raises:
            KeyRefused: no key is left, or the first one was refused.
            CallError: the call did not bring an answer.
        """
        live = self._ring.live
        if not live:
            raise self._no_key_now()
        return await self._keys[min(live)][1].models()

    async def aclose(self) -> None:
        """Release what the providers of all keys hold, even if one of them fails to; the pool stays open."""
        async with AsyncExitStack() as stack:
            for _, provider in self._keys:
                stack.push_async_callback(provider.aclose)

    def _refused(self, turn: Turn, error: KeyRefused) -> CallError:
        """Return what the refusal means for the job, `error` itself if no key is left."""
        now = self._now()
        self._last_refusal = (error.code, str(error))
        no_credit = error.status == 402 or error.code in _NO_CREDIT
        verdict = self._ring.refused(turn, now, for_good=no_credit)
        if verdict is Verdict.MODEL_REFUSED:
            return error.as_a(ModelUnavailable, message=f"{error}, while the key serves other models")
        if verdict is Verdict.KEY_DEAD:
            why = "has no credit" if no_credit else "was refused twice in a row"
            label = self._keys[turn.key][0]
            message = f"{label} {why} and is not used any more: {error}; {self._keys_left()}"
            self._emit(KeyDisabled(account=self._account, message=message))
        if not self._ring.live:
            return error
        if self._ring.is_ready(turn.model, now):
            return error.as_a(KeyDoubted)
        return error.as_a(KeyDoubted, retry_after_s=max(error.retry_after_s or 0.0, DOUBT_S))

    def _keys_left(self) -> str:
        left = len(self._ring.live)
        if left:
            return f"{left} keys are left" if left > 1 else "1 key is left"
        return f"account {self._account} has no key left" if self._account else "no key is left"

    def _no_key_now(self) -> CallError:
        code, message = self._last_refusal
        if self._ring.live:
            waits = f"not sent, as the key was refused a moment ago: {message}"
            return KeyDoubted(waits, code=code, sent=False, retry_after_s=DOUBT_S)
        return KeyRefused(f"{self._keys_left()}, the last one was refused: {message}", code=code, sent=False)


def _pause_s(doubt: _Doubt, others: bool) -> float:
    """Return the pause before a doubt is put to the test again, where `others` are undoubted or none is."""
    if not others:
        return DOUBT_S
    return SERVES_S if doubt.confirmed else CONFIRM_AFTER_S


def _remember(memory: dict[str, _Value], model: str, value: _Value) -> None:
    memory[model] = value
    if len(memory) > _MODELS:
        del memory[next(iter(memory))]
