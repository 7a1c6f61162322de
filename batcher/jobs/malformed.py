"""Why a line is no JSON, in words that help to mend the file."""

import orjson

TOO_DEEP = "the line is nested too deeply: expected at most 250 levels"
ARRAY_FILE = "this looks like a JSON array file: put one object on each line"
BOM = b"\xef\xbb\xbf"

_REASONS = {
    "depth": TOO_DEEP,
    "infinity": "a number is too large: expected at most 1.7976931348623157e308",
    "surrogate": "half a surrogate pair (an escape like \\ud800) cannot be sent: write the whole character",
    "trailing comma": "a comma before the closing bracket: take it out",
    "end of data": "the line ends in the middle of its JSON object: expected the whole object on one line",
    "unterminated": "the line ends in the middle of a string: expected the whole object on one line",
}
_NOT_JSON = ("NaN", "Infinity", "-Infinity", "None", "True", "False", "undefined")


def explain(line: bytes, error: orjson.JSONDecodeError) -> str:
    """Say what is wrong with a line that the parser refused; byte offsets count from 0."""
    return (
        _explain_bytes(line) or _explain_layout(line.decode().strip()) or _explain_error(line.decode(), error)
    )


def _explain_bytes(line: bytes) -> str | None:
    nul = line.find(b"\0")
    if nul >= 0:
        return f"NUL bytes ({line.count(0)}) from byte {nul} on: a sign of a crash while the file was written"
    if line.startswith(BOM):
        return "a byte order mark is allowed only at the very start of a file"
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        return f"not UTF-8: byte 0x{line[fault.start]:02x} at byte {fault.start} ({fault.reason})"
    return None


def _explain_layout(text: str) -> str | None:
    if text.startswith("#"):
        return "comments are not allowed: expected a JSON object"
    if text.startswith("[") or text in {"]", "],"}:
        return ARRAY_FILE
    if text in {"{", "}", "},"}:
        return f'only "{text}": this looks like pretty-printed JSON: put each object on one line'
    if text.startswith("{'"):
        return "single quotes look like a Python dict: write the line with json.dumps"
    if not text.startswith("{"):
        return "the line does not start with {: expected a JSON object"
    return None


def _explain_error(text: str, error: orjson.JSONDecodeError) -> str:
    rest = text[error.pos :].strip()
    offset = len(text[: error.pos].encode())
    if "after document" in error.msg:
        return _explain_rest(rest, offset)
    for sign, reason in _REASONS.items():
        if sign in error.msg:
            return f"{reason} (byte {offset})"
    for word in _NOT_JSON:
        if rest.startswith(word):
            return f"{word} at byte {offset} is no JSON: expected a number, a string, true, false or null"
    return f"not valid JSON at byte {offset}: {error.msg}"


def _explain_rest(rest: str, offset: int) -> str:
    if rest == ",":
        return f"a comma after the object at byte {offset}: put one object on each line, without commas"
    if rest.startswith(("{", ",")):
        return f"a second object begins at byte {offset}: put one object on each line"
    return f"something follows the object at byte {offset}: expected one object and nothing else"
