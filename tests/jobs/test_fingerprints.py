import tracemalloc
from array import array
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from batcher.results.fingerprints import Fingerprints, hash_id, hash_request

keys = st.integers(0, 2**64 - 1) | st.integers(0, 12).map(lambda n: n << 12)
steps = st.lists(st.tuples(st.sampled_from(["add", "put", "get"]), keys, st.integers(0, 2**64 - 1)))


@given(steps)
def test_a_table_behaves_like_a_dict(steps: list[tuple[str, int, int]]) -> None:
    table, model = Fingerprints(), dict[int, int]()
    for verb, key, value in steps:
        if verb == "add":
            assert table.add(key, value) == model.get(key)
            model.setdefault(key, value)
        elif verb == "put":
            table.put(key, value)
            model[key] = value
        assert table.get(key) == model.get(key)
    assert len(table) == len(model)


def test_a_table_grows_and_forgets_nothing() -> None:
    table = Fingerprints()
    hashes = [hash_id(str(number)) for number in range(5000)]
    for number, key in enumerate(hashes):
        assert table.add(key, number) is None
    assert [table.get(key) for key in hashes] == list(range(5000))
    assert table.get(hash_id("5000")) is None
    assert repr(table) == "<Fingerprints 5000 in 16384 slots>"


def test_a_table_that_grows_takes_no_more_than_it_will_hold() -> None:
    count = 70_000  # just after it has grown
    hashes = [hash_id(str(number)) for number in range(count)]
    tracemalloc.start()
    try:
        table = Fingerprints()
        for key in hashes:
            table.add(key, key)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40 * count


@given(st.lists(st.tuples(keys, st.integers(0, 2**64 - 1))))
def test_a_table_takes_many_at_once_and_names_those_that_repeat(entries: list[tuple[int, int]]) -> None:
    table = Fingerprints(array("Q", [key for key, _ in entries]), array("Q", [value for _, value in entries]))
    model: dict[int, int] = {}
    for key, value in entries:
        model.setdefault(key, value)
    assert {key: table.get(key) for key in model} == model
    assert table.repeated == {key for key, count in Counter(key for key, _ in entries).items() if count > 1}
    assert table.add(7 << 30, 1) == model.get(7 << 30)


def test_hashes_fit_their_places() -> None:
    assert 0 <= hash_id("a") < 2**64
    assert hash_id("a") != hash_id("b")
    assert hash_request("f" * 64) == 2**64 - 4
