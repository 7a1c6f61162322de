"""How long a whole lane holds back after a refusal (429)."""

import math

from batcher.text.durations import in_words

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 60.0


class Pause:
    """The pause of a lane: as long as the provider asks, else 5 s, 10 s, ... 60 s.

    Refusals that come while a pause without a given length is on belong to the same episode: the calls in
    flight were refused together. When it is over one call asks for all, and then twice as many each time:
    else every slot would be refused again. Where the refusal named a quota, which paces the calls anyway,
    that is so only after a pause that has brought no answer.

    Attributes:
        until: its end (loop time).
        most_at_once: calls that may be in flight.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.most_at_once = math.inf
        self._unexplained_in_a_row = 0
        self._in_vain = False

    def __repr__(self) -> str:
        return f"<Pause until={self.until:g}>"

    def answered(self, granted_at: float, enough: int) -> None:
        """Take note that a call got through.

        Args:
            granted_at: when it started; one from before the pause tells nothing.
            enough: calls at once from which on nothing is held back any more.
        """
        if granted_at >= self.until:
            self._unexplained_in_a_row = 0
            self._in_vain = False
            self.most_at_once = self.most_at_once + 1 if self.most_at_once < enough else math.inf

    def refused(
        self, retry_after_s: float | None, now: float, random: float, *, names_quota: bool = False
    ) -> str:
        """Take note of a refusal.

        Args:
            retry_after_s: how long the provider asks to wait, None if it does not say.
            now: when it came.
            random: in [0, 1), spreads the end of the pause.
            names_quota: it says which limit is used up.

        Returns:
            What begins now, in words, or "" if a pause is on already.
        """
        going_on = self.until > now
        if not names_quota or (self._in_vain and not going_on):
            self.most_at_once = 1
        self._in_vain = True
        if retry_after_s is None:
            if going_on:
                return ""
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._unexplained_in_a_row, 8))
            self._unexplained_in_a_row += 1
            words = f"the provider refuses calls and does not say for how long: waiting {in_words(wait)}"
        else:
            wait = retry_after_s
            words = f"the provider asks to wait {in_words(wait)}"
        self.until = max(self.until, now + wait * (1 + 0.1 * random) + 0.05 * random)
        return "" if going_on else words
