"""A hash table of 64-bit numbers in two arrays: 16 bytes a slot, where a dict takes ten times as much."""

from array import array
from hashlib import blake2b

_SMALLEST = 1 << 10
_FREE_BITS = 3


def hash_id(job_id: str) -> int:
    """Return a 64-bit hash of an id, never 0."""
    return int.from_bytes(blake2b(job_id.encode(), digest_size=8).digest(), "little") or 1


def hash_request(request_sha256: str) -> int:
    """Shorten a request's hash to 62 bits, which leaves the two lowest bits of 64 free for a state."""
    return int(request_sha256[:16], 16) & ~_FREE_BITS


def hash_job(id_hash: int, request_hash: int) -> int:
    """Join the hashes of id and request into the 64 bits by which a line that is read back is known."""
    return id_hash ^ request_hash


class Fingerprints:
    """Maps 64-bit hashes to 64-bit values; open addressing, at most two thirds full.

    Keys must be spread evenly over their low bits, as hashes are, and cannot be 0, which marks a free slot.

    Args:
        expected: how many keys to make room for at once (>= 0); more are taken too.
    """

    def __init__(self, expected: int = 0) -> None:
        slots = _SMALLEST
        while slots * 2 < expected * 3:
            slots *= 2
        self._allot(slots)

    def __len__(self) -> int:
        return self._used

    def __repr__(self) -> str:
        return f"<Fingerprints {self._used} in {len(self._keys)} slots>"

    def get(self, key: int) -> int | None:
        """Return the value of `key`, or None."""
        keys, mask = self._keys, self._mask
        slot = key & mask
        while found := keys[slot]:
            if found == key:
                return self._values[slot]
            slot = (slot + 1) & mask
        return None

    def add(self, key: int, value: int) -> int | None:
        """Keep `value` for a `key` that has none yet; return the value that it has already, or None."""
        keys, mask = self._keys, self._mask
        slot = key & mask
        while found := keys[slot]:
            if found == key:
                return self._values[slot]
            slot = (slot + 1) & mask
        keys[slot] = key
        self._values[slot] = value
        self._used += 1
        if self._used > self._limit:
            self._grow()
        return None

    def set(self, key: int, value: int) -> None:
        """Keep `value` for `key`, whatever it had before."""
        if self.add(key, value) is not None:
            slot = key & self._mask
            while self._keys[slot] != key:
                slot = (slot + 1) & self._mask
            self._values[slot] = value

    def _allot(self, slots: int) -> None:
        self._keys = array("Q", bytes(8 * slots))
        self._values = array("Q", bytes(8 * slots))
        self._mask = slots - 1
        self._limit = slots * 2 // 3
        self._used = 0

    def _grow(self) -> None:
        old = zip(self._keys, self._values, strict=True)
        used = self._used
        self._allot(2 * len(self._keys))
        self._used = used
        keys, values, mask = self._keys, self._values, self._mask
        for key, value in old:
            if key:
                slot = key & mask
                while keys[slot]:
                    slot = (slot + 1) & mask
                keys[slot] = key
                values[slot] = value
