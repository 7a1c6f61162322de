"""Which prefixes a provider's prompt cache still holds."""

WARM_S = 300.0
PREFIXES_KEPT = 4096


class WarmPrefixes:
    """Remembers when each prefix was last used; the oldest are forgotten, which costs a wait at most."""

    def __init__(self) -> None:
        self._used_at: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"<WarmPrefixes {len(self._used_at)}>"

    def holds(self, group: int, now: float) -> bool:
        """Tell whether a prefix was used within the last 5 minutes."""
        used_at = self._used_at.get(group)
        return used_at is not None and now - used_at < WARM_S

    def add(self, group: int, now: float) -> None:
        """Take note that a prefix was used just now."""
        self._used_at.pop(group, None)
        self._used_at[group] = now
        if len(self._used_at) > PREFIXES_KEPT:
            del self._used_at[next(iter(self._used_at))]
