"""Whose turn it is among keys, in time: doubted ones are spared, and only the dead die."""

import tracemalloc
from collections import Counter
from itertools import cycle
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from batcher.providers.rotating_keys import CONFIRM_AFTER_S, DOUBT_S, SERVES_S, KeyRing, Turn, Verdict

MODELS = st.sampled_from(["x", "y", "z"])


class Call(NamedTuple):
    """A call as the machine remembers it: its turn, when it ended (loop time), and as which."""

    turn: Turn
    ended_at: float
    order: int


class RingMachine(RuleBasedStateMachine):
    """A ring of three keys with calls in flight, against all that ever happened to each key."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.ring = KeyRing(3)
        self.answers: list[Call] = []
        self.refusals: list[Call] = []
        self.dead: set[int] = set()
        self.flying: list[Turn] = []
        self.taken_at: dict[tuple[int, str], float] = {}

    def stands(self, refusal: Call) -> bool:
        """Whether no call that was sent after `refusal` with its key and for its model was answered since."""
        return not any(
            answer.turn.key == refusal.turn.key
            and answer.turn.model == refusal.turn.model
            and answer.turn.sent_at >= refusal.ended_at
            and answer.order > refusal.order
            for answer in self.answers
        )

    def long_refused(self, turn: Turn, *, model: str | None = None) -> bool:
        return any(
            refusal.turn.key == turn.key
            and refusal.ended_at + CONFIRM_AFTER_S <= turn.sent_at
            and model in (None, refusal.turn.model)
            and self.stands(refusal)
            for refusal in self.refusals
        )

    def call(self, turn: Turn) -> Call:
        return Call(turn, self.now, len(self.answers) + len(self.refusals))

    def end(self, turn: Turn) -> None:
        self.ring.ended(turn)
        self.flying.remove(turn)

    def serves_others(self, turn: Turn, key: int) -> bool:
        for answer in self.answers:
            if answer.turn.key != key or answer.turn.model == turn.model:
                continue
            refused = any(
                (refusal.turn.key, refusal.turn.model) == (answer.turn.key, answer.turn.model)
                and self.stands(refusal)
                for refusal in self.refusals
            )
            if self.now - answer.ended_at <= SERVES_S and not refused:
                return True
        return False

    @rule(seconds=st.sampled_from([0.3, 1.0, 2.5, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=out, model=MODELS)
    def take(self, model: str) -> Turn | None:
        better = [key for key in self.ring.live if not self.ring.is_doubted(key, model)]
        ready = self.ring.is_ready(model, self.now)
        turn = self.ring.take(model, self.now)
        assert ready == (turn is not None)
        if turn is None:
            assert not better
            return None
        assert turn.key not in self.dead
        if self.ring.is_doubted(turn.key, model):
            pause_s = CONFIRM_AFTER_S if better else DOUBT_S
            assert self.now - self.taken_at.get((turn.key, model), 0.0) >= pause_s
        self.taken_at[turn.key, model] = self.now
        self.flying.append(turn)
        return turn

    @rule(turn=consumes(out))
    def answer(self, turn: Turn | None) -> None:
        if turn is not None:
            self.ring.answered(turn, self.now)
            self.end(turn)
            self.answers.append(self.call(turn))

    @rule(turn=consumes(out))
    def end_otherwise(self, turn: Turn | None) -> None:
        if turn is not None:
            self.end(turn)

    @rule(turn=consumes(out), for_good=st.integers(0, 19).map(lambda n: n == 0))
    def refuse(self, turn: Turn | None, for_good: bool) -> None:
        if turn is None:
            return
        verdict = self.ring.refused(turn, self.now, for_good=for_good)
        self.end(turn)
        if turn.key in self.dead:
            assert verdict is Verdict.DOUBTED
        elif for_good:
            assert verdict is Verdict.KEY_DEAD
        elif verdict is Verdict.KEY_DEAD:
            assert self.long_refused(turn)
            assert not self.serves_others(turn, turn.key)
        elif verdict is Verdict.MODEL_REFUSED:
            assert self.long_refused(turn, model=turn.model)
            serves = any(self.serves_others(turn, key) for key in self.ring.live)
            assert serves or any(other.model != turn.model for other in self.flying)
        else:
            assert self.ring.is_doubted(turn.key, turn.model)
        if verdict is Verdict.KEY_DEAD:
            self.dead.add(turn.key)
        self.refusals.append(self.call(turn))

    @invariant()
    def the_live_are_those_that_did_not_die(self) -> None:
        assert self.ring.live == {0, 1, 2} - self.dead


TestKeyRing = RingMachine.TestCase
TestKeyRing.settings = settings(max_examples=80, stateful_step_count=60)


def test_good_keys_are_used_evenly() -> None:
    ring = KeyRing(5)
    turns = [ring.take("m", 0.0) for _ in range(15)]
    assert Counter(turn.key for turn in turns if turn is not None) == dict.fromkeys(range(5), 3)


@given(pauses=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20), models=st.sampled_from([1, 3, 500]))
def test_a_dead_key_dies_in_time_and_after_few_calls(pauses: list[float], models: int) -> None:
    ring, now, calls = KeyRing(1), 0.0, 0
    for number, pause_s in zip(range(1000), cycle(pauses), strict=False):
        turn = ring.take(f"m{number % models}", now)
        if turn is not None:
            calls += 1
            ring.refused(turn, now, for_good=False)
            ring.ended(turn)
        if not ring.live:
            break
        now += pause_s
    assert not ring.live
    assert CONFIRM_AFTER_S <= now <= CONFIRM_AFTER_S + DOUBT_S + 3.0
    assert calls <= 7


def test_an_answer_to_a_call_from_before_the_refusals_clears_no_doubt() -> None:
    ring = KeyRing(1)
    early, refused = ring.take("m", 0.0), ring.take("m", 1.0)
    assert early is not None
    assert refused is not None
    ring.refused(refused, 1.1, for_good=False)
    ring.answered(early, 1.2)
    assert ring.is_doubted(0, "m")
    later = ring.take("m", 1.1 + DOUBT_S)
    assert later is not None
    ring.answered(later, 3.0)
    assert not ring.is_doubted(0, "m")


def test_many_models_take_no_more_memory_than_a_few() -> None:
    ring = KeyRing(1)
    tracemalloc.start()
    try:
        for number in range(5000):
            turn = ring.take(f"{number}", float(number))
            assert turn is not None
            if number % 2:
                ring.refused(turn, float(number), for_good=False)
            else:
                ring.answered(turn, float(number))
            ring.ended(turn)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
