"""The run's money: no call starts unless what it may cost is there."""

import asyncio
import math
from collections.abc import Callable

from batcher.errors import BadGeneration, BadReply, CallError, LaneParked, TooLarge
from batcher.limits.budget import Budget
from batcher.pricing import Price, Pricing
from batcher.text.tokens import (
    ANSWERS_NEEDED,
    BYTES_PER_TOKEN,
    DEFAULT_OUTPUT_TOKENS,
    LEAST_FACTOR,
    most_output,
)
from batcher.types import Request, Usage

TURNED_DOWN_IN_A_ROW = 256
"""So many calls that do not fit, one after the other, and the run does not look for one that does."""

TEMPLATE_TOKENS = 128
"""What a provider's chat template may add to a prompt, however short."""

DENSE_TOKENS_PER_BYTE = 0.5
LEAST_TOKENS_PER_BYTE = LEAST_FACTOR / BYTES_PER_TOKEN
TELLING_BYTES = 1024
"""Shorter prompts are mostly template, and say little of how dense text is."""


class MostTokens:
    """Learns from one model's answers how many tokens a call uses at most.

    A prompt counts as one token for two bytes until 30 prompts of a kilobyte are known, then as dense as the
    densest of them, plus 128 tokens. An answer without a maximum counts as the longest one so far, at least
    as 1,024 tokens.
    """

    def __init__(self) -> None:
        self._prompts = 0
        self._densest = LEAST_TOKENS_PER_BYTE
        self._open_answers = 0
        self._longest = DEFAULT_OUTPUT_TOKENS

    def __repr__(self) -> str:
        return f"<MostTokens {self._densest:.2f} a byte, answers of {self._longest}>"

    @property
    def knows_answers(self) -> bool:
        """Whether enough answers to requests without a maximum have come."""
        return self._open_answers >= ANSWERS_NEEDED

    def usage(self, sent_bytes: int, most: int | None, choices: int) -> Usage:
        """Return what a call may use.

        Args:
            sent_bytes: size of the request's body.
            most: the maximum of tokens that it sets for an answer, None if it sets none.
            choices: how many answers it asks for (>= 0).
        """
        learned = self._prompts >= ANSWERS_NEEDED
        density = self._densest if learned else max(self._densest, DENSE_TOKENS_PER_BYTE)
        return Usage(
            input_tokens=math.ceil(sent_bytes * density) + TEMPLATE_TOKENS,
            output_tokens=choices * (self._longest if most is None else most),
        )

    def learn(self, sent_bytes: int, most: int | None, choices: int, usage: Usage | None) -> None:
        """Take note of an answer; one without usage teaches nothing, but no other would teach more."""
        self._open_answers += most is None
        if usage is None:
            return
        if choices:
            self._longest = max(self._longest, math.ceil(usage.output_tokens / choices))
        if sent_bytes >= TELLING_BYTES and usage.input_tokens:
            self._prompts += 1
            self._densest = max(self._densest, usage.input_tokens / sent_bytes)


class Claim:
    """What one call may cost: first let through by the purse, then reserved, then settled or given up.

    Attributes:
        reserved_usd: held for the call, 0.0 until then.
    """

    __slots__ = ("_choices", "_most", "_price", "_sent_bytes", "_tokens", "model", "reserved_usd")

    def __init__(self, request: Request, price: Price, tokens: MostTokens) -> None:
        self.model = request.model
        self.reserved_usd = 0.0
        self._price = price
        self._tokens = tokens
        self._sent_bytes = len(request.body)
        answers = request.endpoint != "/v1/embeddings"
        self._most, self._choices = most_output(request.body) if answers else (0, 0)

    @property
    def most_usd(self) -> float:
        """What the call may cost, as far as is known by now."""
        return self._price.cost_usd(self._tokens.usage(self._sent_bytes, self._most, self._choices))

    @property
    def is_guess(self) -> bool:
        """Whether nobody knows yet how long such answers get."""
        return self._most is None and not self._tokens.knows_answers

    def cost_usd(self, usage: Usage | None) -> float:
        """Return what an answer cost, and learn from it; without usage, all that was reserved."""
        self._tokens.learn(self._sent_bytes, self._most, self._choices, usage)
        return self.reserved_usd if usage is None else self._price.cost_usd(usage)


class Purse:
    """Prices each call before it starts, and lets it wait while calls in flight may give money back.

    A call may cost its prompt and the longest answer that it allows; of those that set no maximum, one at a
    time and for each model goes out until 30 answers are known, then each may cost as much as the longest so
    far. What a call did cost is known from its usage; a call whose usage nobody knows, but that may have been
    charged, cost all that was reserved.

    So the budget can still be exceeded by calls in flight whose prompts are denser, or whose answers are
    longer and without a maximum, than any that came before, by as much as they are, and by prices that are
    wrong. The next call counts with what they taught.

    Args:
        budget: what there is.
        pricing: what tokens cost.
        on_exhausted: told once that so many calls in a row do not fit that none is likely to.
    """

    def __init__(self, budget: Budget, pricing: Pricing, on_exhausted: Callable[[Budget], None]) -> None:
        self._budget = budget
        self._pricing = pricing
        self._on_exhausted = on_exhausted
        self._tokens: dict[str, MostTokens] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._let_through = 0  # claims that wait for their permits and may be reserved
        self._guesses: dict[str, Claim] = {}  # by model, from `room` to the end of the call
        self._turned_down = 0  # in a row
        self._exhausted = False

    def __repr__(self) -> str:
        return f"<Purse {self._budget!r} waiting={len(self._waiting)}>"

    async def room(self, request: Request) -> Claim:
        """Wait until a call fits; `reserve` or `give_up` must follow.

        Raises:
            LaneParked: it never will.
            TooLarge: nobody knows its model's price.
        """
        claim = self._claim(request)
        while True:
            most_usd = claim.most_usd
            if not self._budget.can_fit(most_usd):
                if self._turned_down < TURNED_DOWN_IN_A_ROW or self._idle:
                    self._turn_down(most_usd)
                    raise LaneParked(self._budget.reached)
            elif self._budget.fits(most_usd) and not (claim.is_guess and claim.model in self._guesses):
                break
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(settled)
            await settled
        self._let_through += 1
        if claim.is_guess:
            self._guesses[claim.model] = claim
        return claim

    def reserve(self, claim: Claim) -> bool:
        """Hold the money for a call that starts now, at its price of now; give it up if it is not there."""
        most_usd = claim.most_usd
        if not self._budget.fits(most_usd):
            self.give_up(claim)
            return False
        self._let_through -= 1
        self._turned_down = 0
        claim.reserved_usd = most_usd
        self._budget.reserve(most_usd)
        return True

    def give_up(self, claim: Claim) -> None:
        """Make room for others, as the call does not start."""
        self._let_through -= 1
        self._release(claim)

    def take_back(self, claim: Claim) -> None:
        """Hold no money any more for a call that did not go out."""
        self._budget.settle(claim.reserved_usd, 0.0)
        self._release(claim)

    def answered(self, claim: Claim, usage: Usage | None) -> None:
        """Pay for a call that brought a reply."""
        self._budget.settle(claim.reserved_usd, claim.cost_usd(usage))
        self._release(claim)

    def failed(self, claim: Claim, error: CallError) -> None:
        """Pay for a call that failed, if it may have been charged."""
        unanswered = error.sent and not error.status
        charged = unanswered or isinstance(error, BadReply | BadGeneration)
        self._budget.settle(claim.reserved_usd, claim.reserved_usd if charged else 0.0)
        self._release(claim)

    @property
    def _idle(self) -> bool:
        """Whether nothing is under way that might still fit, or give money back."""
        return self._budget.idle and not self._let_through

    def _claim(self, request: Request) -> Claim:
        price = self._pricing.price(request.model)
        if price is None:
            raise TooLarge(
                f"{request.model}: its price is unknown, so the cost budget lets no call through; name it in "
                "the configuration: prices: {MODEL: {input_usd: 0.10, output_usd: 0.40}}, per million tokens",
                code="price_unknown",
                sent=False,
            )
        return Claim(request, price, self._tokens.setdefault(request.model, MostTokens()))

    def _turn_down(self, most_usd: float) -> None:
        self._budget.turn_down(most_usd)
        self._turned_down += 1
        if self._turned_down >= TURNED_DOWN_IN_A_ROW and self._idle and not self._exhausted:
            self._exhausted = True
            self._on_exhausted(self._budget)

    def _release(self, claim: Claim) -> None:
        if self._guesses.get(claim.model) is claim:
            del self._guesses[claim.model]
        waiting, self._waiting = self._waiting, []
        for settled in waiting:
            if not settled.done():
                settled.set_result(None)
