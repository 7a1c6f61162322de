"""The run's money: no call starts unless what it may cost is there."""

import asyncio
from collections.abc import Callable

from batcher.errors import BadGeneration, BadReply, CallError, LaneParked
from batcher.limits.budget import Budget
from batcher.pricing import Pricing
from batcher.text.tokens import TokenEstimator
from batcher.types import Request, Usage


class Purse:
    """Prices each call before it starts, and lets it wait while calls in flight may give money back.

    A call may cost its prompt, as estimated, and the longest answer that it allows. What it did cost is known
    from its usage; a call whose usage nobody knows, but that may have been charged, cost all of it.

    Args:
        budget: what there is.
        pricing: what tokens cost.
        on_exhausted: told once that a call does not fit and no money can come back.
    """

    def __init__(self, budget: Budget, pricing: Pricing, on_exhausted: Callable[[Budget], None]) -> None:
        self._budget = budget
        self._pricing = pricing
        self._on_exhausted = on_exhausted
        self._estimators: dict[str, TokenEstimator] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._exhausted = False

    def __repr__(self) -> str:
        return f"<Purse {self._budget!r} waiting={len(self._waiting)}>"

    def most_usd(self, request: Request) -> float | None:
        """Return what a request may cost, None where nobody knows its model's price."""
        price = self._pricing.price(request.model)
        if price is None:
            return None
        answers = request.endpoint != "/v1/embeddings"
        tokens = self._estimator(request.model).estimate(request.body, answers=answers)
        return price.cost_usd(Usage(input_tokens=tokens[0], output_tokens=tokens[1]))

    async def room(self, amount_usd: float) -> None:
        """Wait until a call that may cost `amount_usd` fits.

        Raises:
            LaneParked: it never will.
        """
        while not self._budget.fits(amount_usd):
            if self._budget.idle:
                if not self._exhausted:
                    self._exhausted = True
                    self._on_exhausted(self._budget)
                raise LaneParked("the cost budget is reached")
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(settled)
            await settled

    def reserve(self, amount_usd: float) -> bool:
        """Hold the money for a call that starts now; return whether it was there."""
        if not self._budget.fits(amount_usd):
            return False
        self._budget.reserve(amount_usd)
        return True

    def answered(self, reserved_usd: float, request: Request, usage: Usage | None) -> None:
        """Pay for a call that brought a reply."""
        cost_usd = self._pricing.cost_usd(request.model, usage)
        if usage is not None:
            self._estimator(request.model).learn(len(request.body), usage)
        self._settle(reserved_usd, reserved_usd if cost_usd is None else cost_usd)

    def failed(self, reserved_usd: float, error: CallError) -> None:
        """Pay for a call that failed, if it may have been charged."""
        unanswered = error.sent and not error.status
        charged = unanswered or isinstance(error, BadReply | BadGeneration)
        self._settle(reserved_usd, reserved_usd if charged else 0.0)

    def _settle(self, reserved_usd: float, cost_usd: float) -> None:
        self._budget.settle(reserved_usd, cost_usd)
        waiting, self._waiting = self._waiting, []
        for settled in waiting:
            if not settled.done():
                settled.set_result(None)

    def _estimator(self, model: str) -> TokenEstimator:
        estimator = self._estimators.get(model)
        if estimator is None:
            # The whole maximum counts, as the budget is a hard stop.
            estimator = self._estimators[model] = TokenEstimator(mirrors_admission=True)
        return estimator
