"""Result lines, and the files they are kept in."""

from batcher.results.files import write_whole
from batcher.results.line import check_crc, encode_result
from batcher.results.sink import Sink, open_output, stream_to
from batcher.results.writer import ResultWriter

__all__ = [
    "ResultWriter",
    "Sink",
    "check_crc",
    "encode_result",
    "open_output",
    "stream_to",
    "write_whole",
]
