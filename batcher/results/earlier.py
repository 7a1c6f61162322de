"""What earlier runs have brought, as the pass over the job files asks for it."""

from array import array

from batcher.results.fingerprints import Fingerprints, hash_id, hash_request

FAILED = 2
"""The bit beside a request's hash that tells a failure from an answer."""


class EarlierResults:
    """The results of earlier runs: whose each is, and whether it is an answer; 24 to 32 bytes each."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._requests = array("Q")

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"<EarlierResults {len(self)}>"

    def add(self, job_id: str, request_sha256: str, ok: bool) -> None:
        """Note a result, and whether it is an answer."""
        self._ids.append(hash_id(job_id))
        self._requests.append(hash_request(request_sha256) | (0 if ok else FAILED))

    def hand_over(self) -> Fingerprints:
        """Give away all as a table: hash of the id -> hash of the request, with `FAILED` for a failure.

        Where an id was added more than once, it is among the table's `repeated`, and its first result counts.
        """
        table = Fingerprints(self._ids, self._requests)
        self._ids, self._requests = array("Q"), array("Q")
        return table
