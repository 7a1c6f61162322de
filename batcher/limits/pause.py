"""How long a whole lane holds back after a refusal (429)."""

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 60.0


class Pause:
    """The pause of a lane: as long as the provider asks, else 5 s, 10 s, ... 60 s.

    Refusals that come while a pause without a given length is on belong to the same episode: the calls in
    flight were refused together.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._unexplained_in_a_row = 0

    def __repr__(self) -> str:
        return f"<Pause until={self.until:g}>"

    def answered(self) -> None:
        """Take note that a call got through."""
        self._unexplained_in_a_row = 0

    def refused(self, retry_after_s: float | None, now: float, random: float) -> str:
        """Take note of a refusal at `now`; `random` in [0, 1) spreads the end of the pause.

        Returns:
            What begins now, in words, or "" if a pause is on already.
        """
        going_on = self.until > now
        if retry_after_s is None:
            if going_on:
                return ""
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._unexplained_in_a_row, 8))
            self._unexplained_in_a_row += 1
            words = f"the provider refuses calls and does not say for how long: waiting {wait:.0f} s"
        else:
            wait = retry_after_s
            words = f"the provider asks to wait {wait:.1f} s"
        self.until = max(self.until, now + wait * (1 + 0.1 * random) + 0.05 * random)
        return "" if going_on else words
