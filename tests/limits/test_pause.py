"""The pause of a lane: as long as asked, else ever longer, and one for all calls refused together."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from state_machines import run_briefly, run_long

from batcher.limits.pause import Pause
from batcher.text.durations import in_words


class PauseMachine(RuleBasedStateMachine):
    """Refusals with and without a length, answers and time, against the two numbers that decide."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1234.5
        self.pause = Pause()
        self.least = self.most = 0.0  # what the end may be
        self.episodes = 0  # without a given length, since the last answer

    @rule(seconds=st.floats(0, 100))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def advance_to_its_end(self) -> None:
        self.now = max(self.now, self.pause.until)

    @rule(since_s=st.floats(0, 100))
    def answered(self, since_s: float) -> None:
        before = self.pause.until
        self.pause.answered(self.now - since_s, 64)
        if self.now - since_s >= before:
            self.episodes = 0
        assert self.pause.until == before, "an answer from before does not end it"

    @rule(retry_after_s=st.floats(0.001, 86_400), random=st.floats(0, 1, exclude_max=True))
    def refused_for_a_time(self, retry_after_s: float, random: float) -> None:
        going_on, before = self.pause.until > self.now, self.pause.until
        words = self.pause.refused(retry_after_s, self.now, random)
        assert words == ("" if going_on else f"the provider asks to wait {in_words(retry_after_s)}")
        self.least = max(before, self.now + retry_after_s)
        self.most = max(before, self.now + 1.1 * retry_after_s + 0.05)

    @rule(random=st.floats(0, 1, exclude_max=True))
    def refused_without_a_word(self, random: float) -> None:
        going_on = self.pause.until > self.now
        words = self.pause.refused(None, self.now, random)
        assert bool(words) is not going_on
        if going_on:
            return
        wait_s = min(60.0, 5.0 * 2**self.episodes)
        assert words.endswith(f"waiting {in_words(wait_s)}")
        self.episodes += 1
        self.least, self.most = self.now + wait_s, self.now + 1.1 * wait_s + 0.05

    @invariant()
    def it_ends_when_it_should(self) -> None:
        assert self.least <= self.pause.until <= self.most + 1e-6


def test_a_pause_is_never_shortened_and_grows_by_episodes() -> None:
    run_briefly(PauseMachine)


@pytest.mark.long
def test_a_pause_is_never_shortened_in_a_hundred_thousand_steps() -> None:
    run_long(PauseMachine)


def test_calls_refused_together_are_one_episode_and_an_answer_begins_anew() -> None:
    pause, ends = Pause(), []
    for episode in range(6):
        now = 1000.0 * episode
        for _ in range(50):
            pause.refused(None, now, 0.0)
        ends.append(pause.until - now)
    assert ends == [5, 10, 20, 40, 60, 60]
    pause.answered(pause.until - 1.0, 64)
    pause.refused(None, 1e5, 0.0)
    assert pause.until == 1e5 + 60, "an answer to a call from before the pause says nothing"
    pause.answered(1e6, 64)
    pause.refused(None, 1e6, 0.0)
    assert pause.until == 1e6 + 5
    assert repr(pause) == "<Pause until=1e+06>"


def test_after_a_pause_one_call_asks_for_all_and_then_twice_as_many_each_time() -> None:
    pause = Pause()
    pause.refused(1.0, 0.0, 0.0)
    allowed = []
    now = pause.until
    while pause.most_at_once < math.inf:
        at_once = int(pause.most_at_once)
        allowed.append(at_once)
        now += 1.0
        for _ in range(at_once):
            pause.answered(now, 20)
    assert allowed == [1, 2, 4, 8, 16]


def test_a_refusal_that_names_a_quota_holds_back_only_after_a_pause_in_vain() -> None:
    pause = Pause()
    pause.refused(1.0, 0.0, 0.0, names_quota=True)
    pause.refused(1.0, 0.5, 0.0, names_quota=True)
    assert pause.most_at_once == math.inf
    pause.refused(1.0, pause.until, 0.0, names_quota=True)
    assert pause.most_at_once == 1
