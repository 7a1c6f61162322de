"""A prefix stays warm for five minutes after its last use, and few are remembered."""

from batcher.scheduling.prefixes import PREFIXES_KEPT, WARM_S, WarmPrefixes


def test_a_prefix_is_warm_for_five_minutes_after_its_last_use() -> None:
    warm = WarmPrefixes()
    assert not warm.holds(7, 0.0)
    warm.add(7, 10.0)
    assert warm.holds(7, 10.0 + WARM_S - 1)
    assert not warm.holds(7, 10.0 + WARM_S)
    assert not warm.holds(8, 10.0)
    warm.add(7, 100.0)
    assert warm.holds(7, 100.0 + WARM_S - 1)


def test_only_the_last_used_prefixes_are_remembered() -> None:
    warm = WarmPrefixes()
    for group in range(1, PREFIXES_KEPT + 1):
        warm.add(group, 0.0)
    warm.add(1, 1.0)
    warm.add(PREFIXES_KEPT + 1, 2.0)
    assert repr(warm) == f"<WarmPrefixes {PREFIXES_KEPT}>"
    assert [warm.holds(group, 3.0) for group in (1, 2, 3, PREFIXES_KEPT + 1)] == [True, False, True, True]
