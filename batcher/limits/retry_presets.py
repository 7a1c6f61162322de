"""Retry policies to begin with, and how a user's own settings go on top of one."""

from collections.abc import Mapping
from dataclasses import asdict

from batcher.errors import ConfigError
from batcher.limits.retry import RetryClass, RetryPolicy

_ONCE_A_SECOND = RetryClass(wait="fixed")

PRESETS: Mapping[str, RetryPolicy] = {
    "standard": RetryPolicy(),
    "simple": RetryPolicy(
        timeout=RetryClass(attempts=3, first_wait_s=2.0, wait="doubling"),
        network=_ONCE_A_SECOND,
        server=_ONCE_A_SECOND,
        rate_limit=RetryClass(attempts=10, longest_wait_s=60.0, wait="doubling"),
    ),
}
"""`simple` is the table that many clients have: a timeout 3 tries and 2, 4 ... s between them, what is not
available 5 tries and a second between them, a refusal 10 tries and 1, 2, 4 ... 60 s between them."""


def on_preset(section: Mapping[str, object]) -> dict[str, object]:
    """Return a `retry` section in full: what it leaves open is as in its `preset`, or as standard.

    Raises:
        ConfigError: there is no such preset.
    """
    preset = section.get("preset", "standard")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"retry.preset: expected {' or '.join(PRESETS)}, got {preset!r}")
    full: dict[str, object] = asdict(PRESETS[preset])
    for name, value in section.items():
        if name == "preset":
            continue
        usual = full.get(name)
        full[name] = usual | value if isinstance(usual, dict) and isinstance(value, dict) else value
    return full
