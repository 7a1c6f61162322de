"""A hash table of 64-bit numbers in three arrays: 24 to 32 bytes a key, where a dict takes 150."""

from array import array

_SMALLEST = 1 << 10
_FREE_BITS = 3
_64_BITS = (1 << 64) - 1


def hash_id(job_id: str) -> int:
    """Return a 64-bit hash of an id, for use within this process only."""
    return hash(job_id) & _64_BITS


def hash_request(request_sha256: str) -> int:
    """Shorten a request's hash to 62 bits, which leaves the two lowest bits of 64 free for a state."""
    return int(request_sha256[:16], 16) & ~_FREE_BITS


class Fingerprints:
    """Maps 64-bit hashes to 64-bit values; open addressing, at most half full.

    Keys and values stand in the order in which they came, and a slot holds the number of its entry, so that
    growing makes only the slots anew. Keys must be spread evenly over their low bits, as hashes are.

    Args:
        keys: those to begin with; from now on the table's own. Of equal ones the first counts.
        values: as many, for these keys; the table's own, too.

    Attributes:
        repeated: those of the keys to begin with that came more than once.
    """

    def __init__(self, keys: "array[int] | None" = None, values: "array[int] | None" = None) -> None:
        self._keys = array("Q") if keys is None else keys
        self._values = array("Q") if values is None else values
        slots = _SMALLEST
        while slots <= 2 * len(self._keys):
            slots *= 2
        self.repeated = self._allot(slots)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<Fingerprints {len(self)} in {len(self._slots)} slots>"

    def get(self, key: int) -> int | None:
        """Return the value of `key`, or None."""
        keys, slots, mask = self._keys, self._slots, self._mask
        slot = key & mask
        while number := slots[slot]:
            if keys[number - 1] == key:
                return self._values[number - 1]
            slot = (slot + 1) & mask
        return None

    def add(self, key: int, value: int) -> int | None:
        """Keep `value` for a `key` that has none yet; return the value that it has already, or None."""
        keys, slots, mask = self._keys, self._slots, self._mask
        slot = key & mask
        while number := slots[slot]:
            if keys[number - 1] == key:
                return self._values[number - 1]
            slot = (slot + 1) & mask
        keys.append(key)
        self._values.append(value)
        slots[slot] = len(keys)
        if 2 * len(keys) > mask:
            self._allot(2 * len(slots))
        return None

    def put(self, key: int, value: int) -> None:
        """Keep `value` for `key`, whatever it had before."""
        if self.add(key, value) is not None:
            slot = key & self._mask
            while self._keys[self._slots[slot] - 1] != key:
                slot = (slot + 1) & self._mask
            self._values[self._slots[slot] - 1] = value

    def _allot(self, count: int) -> set[int]:
        """Make the slots anew, and return the keys that are there more than once."""
        keys = self._keys
        self._slots = slots = array("I", (0,)) * count
        self._mask = mask = count - 1
        repeated = set()
        for number, key in enumerate(keys, 1):
            slot = key & mask
            while other := slots[slot]:
                if keys[other - 1] == key:
                    repeated.add(key)
                    break
                slot = (slot + 1) & mask
            else:
                slots[slot] = number
        return repeated
