"""Runs of a user on this machine that draw on one account: each keeps to its share of the limits."""

import asyncio
import hashlib
import math
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from batcher.clock import utcnow
from batcher.events import AttemptFinished, Emit, LaneChanged
from batcher.ledger import Ledger

LOOK_EVERY_S = 0.4
"""Until the others see that a run has joined, both spend: a second run may be half of the limit too much.

The slack that lanes leave in a minute, 0.25 s worth of the limit, makes up for half a second of that.
"""

USED_TOGETHER = 0.98
"""Part of the limits that several runs use: each rounds to whole calls, and none sees the others' bursts."""

_USUAL_PORTS = {"http": 80, "https": 443}
_FRACTIONS = {1: "all", 2: "a half", 3: "a third", 4: "a quarter"}


class SharedLane(Protocol):
    """A lane, as far as sharing concerns it."""

    @property
    def model(self) -> str:
        """The model whose limits it keeps."""

    @property
    def day_limits(self) -> tuple[int | None, int | None]:
        """Requests and tokens a day, None where no limit is known."""

    def set_share(self, share: float) -> None:
        """Keep to a share (above 0, at most 1) of the minute limits from now on."""

    def used_elsewhere(self, requests: int, tokens: int) -> None:
        """Count against the day limits what others have used (both >= 0)."""


class SharedAccount:
    """One account as all runs on this machine use it, between `join` and `leave`.

    Minute limits are split equally among the runs that are alive, whatever models they use; of the day limits
    each run is told what all others use. A call counts as one request and as its tokens; one that was let in
    and whose usage nobody knows (broken off, or an endpoint that does not tell) as a request without tokens.

    Args:
        account: the account's name in events, "" if there is only one.
        ledger: the account's shared books.
        lanes: those that draw on the account now.
        emit: told when the share changes.
        cached_tokens_count: input tokens from the provider's cache count towards limits (not on Groq).
        now: the wall clock.
    """

    def __init__(
        self,
        account: str,
        ledger: Ledger,
        lanes: Callable[[], Iterable[SharedLane]],
        *,
        emit: Emit,
        cached_tokens_count: bool = True,
        now: Callable[[], datetime] = utcnow,
    ) -> None:
        self._account = account
        self._ledger = ledger
        self._lanes = lanes
        self._emit = emit
        self._cached_tokens_count = cached_tokens_count
        self._now = now
        self._runs = 1
        self._used: dict[str, list[int]] = {}  # requests and tokens by model, not yet entered
        self._books = threading.Lock()

    def __repr__(self) -> str:
        return f"<SharedAccount {self._account!r} runs={self._runs}>"

    def join(self) -> None:
        """Let the others know of this run, and learn of them; before the first lane is prepared."""
        with self._books:
            self._ledger.join(self._now())
        self._share_among(self._exchange())

    def leave(self) -> None:
        """Write down what this run has used, and give its share back; a second call does nothing."""
        with self._books:
            self._enter_used()
            self._ledger.leave(self._now())

    def prepare(self, lane: SharedLane) -> None:
        """Tell a lane that was just made what the day has used so far, and its share."""
        per_day = lane.day_limits
        with self._books:
            today = self._ledger.used_today(lane.model, self._now())
            self._ledger.take_elsewhere(lane.model)  # since the start, which is part of that
        requests = today.requests_level(per_day[0]) if per_day[0] else 0.0
        tokens = today.tokens_level(per_day[1]) if per_day[1] else 0.0
        if requests or tokens:
            lane.used_elsewhere(math.ceil(requests), math.ceil(tokens))
        if self._runs > 1:
            lane.set_share(_share(self._runs))

    def watch(self, event: AttemptFinished) -> None:
        """Count a call that ended, if this account let it in."""
        if event.account != self._account or not event.admitted:
            return
        used = self._used.get(event.route)
        if used is None:
            used = self._used[event.route] = [0, 0]
        used[0] += 1
        if (usage := event.usage) is not None:
            used[1] += usage.input_tokens + usage.output_tokens
            if not self._cached_tokens_count:
                used[1] -= usage.cached_tokens

    async def share_forever(self) -> None:
        """Keep the lanes to this run's share, as runs come and go, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Exchange with the other runs, and tell the lanes what is new."""
        with self._books:
            self._enter_used()
        # In a thread: a home directory on a slow network must not hold up answers.
        runs = await asyncio.to_thread(self._exchange)
        self._share_among(runs)
        with self._books:
            models = self._ledger.models_elsewhere
        # There may be thousands of lanes, and mostly nobody else.
        for lane in self._lanes() if models else ():
            with self._books:
                elsewhere = self._ledger.take_elsewhere(lane.model)
            if any(elsewhere):
                lane.used_elsewhere(elsewhere.requests, elsewhere.tokens)

    def _exchange(self) -> int:
        with self._books:
            self._ledger.refresh(self._now())
            return self._ledger.runs_alive()

    def _enter_used(self) -> None:
        used, self._used = self._used, {}
        for model, (requests, tokens) in used.items():
            self._ledger.add(model, requests, max(0, tokens), self._now())

    def _share_among(self, runs: int) -> None:
        if runs == self._runs:
            return
        self._runs = runs
        for lane in self._lanes():
            lane.set_share(_share(runs))
        account = f"account {self._account}" if self._account else "this account"
        who = (
            f"{runs} runs use {account}: each keeps"
            if runs > 1
            else f"{account} is this run's alone: it keeps"
        )
        share = _FRACTIONS.get(runs, f"1/{runs}")
        self._emit(LaneChanged(route=self._account, message=f"{who} to {share} of its limits"))


def _share(runs: int) -> float:
    return 1.0 if runs == 1 else USED_TOGETHER / runs


def account_fingerprint(base_url: str, keys: Iterable[str]) -> str:
    """Return a name that is the same for all runs with an account, and from which no key can be read.

    An account is known by the whole set of its keys. Runs that name only some of them may or may not get the
    same name, as the hashes have it: runs that are to share an account must name the same keys.

    Args:
        base_url: the provider's address, of which the host and an unusual port count.
        keys: those of the account, in any order; none for a server that asks for none.
    """
    address = urlsplit(base_url)
    host = (address.hostname or "").rstrip(".")
    if address.port not in {None, _USUAL_PORTS.get(address.scheme)}:
        host += f":{address.port}"
    # The smallest, so that the order of the keys does not matter.
    hashes = (hashlib.sha256(f"batcher account\n{host}\n{key}".encode()).hexdigest() for key in keys)
    return f"{host} {min(hashes, default='')}".rstrip()
