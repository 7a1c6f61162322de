"""Fault specs, and which call they strike."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import UsageError
from batcher.providers.simulator.fault_plan import FaultChooser, FaultPlan, Outage, parse_faults
from batcher.providers.simulator.faults import FAULTS, MIXED, find_fault


@pytest.mark.parametrize(
    ("specs", "plan"),
    [
        ([], FaultPlan()),
        (["reset=0.02", "status:503=0.1"], FaultPlan(rates={"reset": 0.02, "status:503": 0.1})),
        (["mixed=0.2"], FaultPlan(rates={"mixed": 0.2})),
        (
            ["outage:hang=5..9.5", "outage:status:503=20.."],
            FaultPlan(
                outages=(
                    Outage(kind="hang", start_s=5, end_s=9.5),
                    Outage(kind="status:503", start_s=20, end_s=math.inf),
                )
            ),
        ),
        (
            ["id:reset=a=b", "id:429=a=b", "id:hang=c"],
            FaultPlan(by_id={"a=b": ("reset", "429"), "c": ("hang",)}),
        ),
    ],
    ids=["none", "rates", "mixed", "outages", "ids"],
)
def test_specs_are_read(specs: list[str], plan: FaultPlan) -> None:
    assert parse_faults(specs) == plan


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reset", "expected KIND=RATE"),
        ("reset=", "expected KIND=RATE"),
        ("reset=often", "'often' is not a number"),
        ("reset=nan", "must be 0 or more"),
        ("reset=-1", "must be 0 or more"),
        ("reset=1.5", "between 0 and 1"),
        ("rest=0.1", "did you mean 'reset'"),
        ("status:9=0.1", "from 200 to 599"),
        ("status:abc=0.1", "from 200 to 599"),
        ("slow:soon=0.1", "expected slow:SECONDS"),
        ("zzz=0.1", "--list-faults"),
        ("outage:reset=5", "START..END"),
        ("outage:reset=9..5", "START before END"),
        ("outage:nonesuch=1..5", "unknown fault 'nonesuch'"),
        ("id:reset=", "expected id:KIND=ID"),
    ],
)
def test_a_spec_that_makes_no_sense_says_why(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_faults([spec])
    assert message in str(error.value)


def test_rates_above_one_together_are_refused() -> None:
    with pytest.raises(UsageError, match="add up to at most 1"):
        FaultPlan(rates={"reset": 0.6, "hang": 0.6})


def test_faults_by_id_come_in_order_and_then_no_more() -> None:
    chooser = FaultChooser(FaultPlan(by_id={"a": ("reset", "429")}))
    assert [chooser.choose("a", 0.5, 0) for _ in range(4)] == ["reset", "429", "", ""]
    assert chooser.choose("b", 0.5, 0) == ""


@pytest.mark.parametrize(("elapsed_s", "kind"), [(0, ""), (5, "hang"), (8.9, "hang"), (9, "")])
def test_an_outage_strikes_everyone_in_its_time(elapsed_s: float, kind: str) -> None:
    chooser = FaultChooser(parse_faults(["outage:hang=5..9"], max_in_a_row=0))
    assert chooser.choose("anyone", 0.5, elapsed_s) == kind


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_a_rate_strikes_its_share_of_draws(draw: float, rate: float) -> None:
    chooser = FaultChooser(FaultPlan(rates={"reset": rate}))
    assert chooser.choose("a", draw, 0) == ("reset" if draw < rate else "")


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_faults_by_rate_in_a_row_are_bounded_for_each_id(bound: int) -> None:
    chooser = FaultChooser(parse_faults(["reset=1"], max_in_a_row=bound))
    for request_id in ("a", "b"):
        kinds = [chooser.choose(request_id, 0.0, 0) for _ in range(2 * (bound + 1))]
        assert kinds == (["reset"] * bound + [""]) * 2


def test_mixed_spreads_over_all_faults_that_a_retry_cures() -> None:
    chooser = FaultChooser(parse_faults(["mixed=1"], max_in_a_row=10_000))
    met = {chooser.choose("a", number / 1000, 0) for number in range(1000)}
    assert met == set(MIXED)
    assert {name for name, fault in FAULTS.items() if fault.cured} <= met
    assert all(find_fault(kind).status not in (401, 403, 404, 413) for kind in met)
