"""A provider that answers with any bytes it likes, among them the key that it was sent."""

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

Answers: TypeAlias = Mapping[str, Callable[[str], bytes]]
"""Raw HTTP replies by name, each made from the key that came with the call; `models` is for that endpoint."""

_WHICH = re.compile(rb'"content":"([^"]*)"')


def reply(body: bytes, status: str = "200 OK", *headers: str, kind: str = "application/json") -> bytes:
    """Build a whole reply."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def error(message: str, status: str = "400 Bad Request", **more: object) -> bytes:
    """Build a reply with an error object, as OpenAI and Groq write it."""
    return reply(json.dumps({"error": {"message": message, **more}}).encode(), status)


def chat(text: str, *headers: str) -> bytes:
    """Build a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return reply(json.dumps({"choices": [choice], "usage": usage}).encode(), "200 OK", *headers)


def _hello(_: str) -> bytes:
    return chat("hello")


@dataclass(slots=True)
class Provider:
    """Where it listens, and the requests that came, each with its head and body."""

    url: str
    requests: list[bytes] = field(default_factory=list)


@contextmanager
def evil_provider(answers: Answers) -> Iterator[Provider]:
    """Answer each call as the text of its (only) message names, and any other one with "hello"."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                head += line
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            body = self.rfile.read(int(length[1])) if length else b""
            provider.requests.append(head + body)
            key = re.search(rb"authorization: *Bearer ([^\r]+)", head, re.IGNORECASE)
            which = _WHICH.search(body)
            name = "models" if head.startswith(b"GET") else which[1].decode() if which else ""
            answer = answers.get(name, _hello)
            self.wfile.write(answer(key[1].decode() if key else ""))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """The client may go whenever it likes."""

    with Server(("127.0.0.1", 0), Handler) as server:
        provider = Provider(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
