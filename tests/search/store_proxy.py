"""What stands between a client and an object store: it counts, delays and refuses requests.

A real server behind it does the work. It speaks HTTP/1.1 with connections that stay, and passes on
what it gets as it is: signatures stay right.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Requests to this path are for the proxy itself: ``GET`` tells its counts, ``PUT`` sets what it
#: does from now on, as JSON.
CONTROL = "/-proxy-"

_SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
_NOT_IMPLEMENTED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>NotImplemented</Code>
<Message>A header you provided implies functionality that is not implemented</Message></Error>"""

_CONDITIONS = ("If-Match", "If-None-Match")


class _State:
    """What the proxy does, and what it has seen.

    Attributes:
        slow_down: The share of requests that are refused with SlowDown.
        status: Of such an answer.
        cut: The share whose connection is cut before the answer, when the server has done them.
        latency: Seconds that each request takes longer.
        conditional: ``atomic`` passes conditions on, one such put at a time; ``ignored`` takes
            them out, as a server that has never heard of them; ``refused`` answers 501.
        seed: Of the dice.
        counts: Of requests by what they ask for, since the last look.
        refused: How many were refused, since the last look.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.slow_down = self.cut = self.latency = 0.0
        self.status = 503
        self.conditional = "atomic"
        self.dice = random.Random(0)
        self.counts: dict[str, int] = {}
        self.log: list[str] = []
        self.refused = 0
        self.lock = threading.Lock()
        # moto looks at a condition and then writes: two threads of it may both find it met.
        self.one_at_a_time = threading.Lock()

    def look(self) -> bytes:
        with self.lock:
            found = {"counts": self.counts, "refused": self.refused, "log": self.log}
            self.counts, self.refused, self.log = {}, 0, []
        return json.dumps(found).encode()

    def set(self, changes: dict[str, Any]) -> None:
        with self.lock:
            if "seed" in changes:
                self.dice = random.Random(changes.pop("seed"))
            for name, value in changes.items():
                setattr(self, name, value)


def _kind(method: str, path: str) -> str:
    """Returns what a request asks for, as S3 names it."""
    parts = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and ("list-type" in query or parts.path.count("/") <= 1):
        return "LIST"
    if method == "POST" and "delete" in query:
        return "DELETE many"
    return method


def _handler(state: _State) -> type[BaseHTTPRequestHandler]:
    upstreams = threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        #: One write per answer.
        wbufsize = -1

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def _do(self) -> None:
            body = self._body()
            if self.path.startswith(CONTROL):
                if self.command == "PUT":
                    state.set(json.loads(body))
                    self._answer(200, [], b"")
                else:
                    self._answer(200, [], state.look())
                return
            with state.lock:
                kind = _kind(self.command, self.path)
                state.counts[kind] = state.counts.get(kind, 0) + 1
                state.log.append(f"{self.command} {self.path}")
                refuse = state.dice.random() < state.slow_down
                cut = state.dice.random() < state.cut
                state.refused += refuse or cut
            if state.latency:
                time.sleep(state.latency)
            if refuse:
                self._answer(state.status, [("Content-Type", "application/xml")], _SLOW_DOWN)
                return
            conditional = self.command == "PUT" and any(map(self.headers.get, _CONDITIONS))
            if conditional and state.conditional == "refused":
                self._answer(501, [("Content-Type", "application/xml")], _NOT_IMPLEMENTED)
                return
            if conditional and state.conditional == "ignored":
                for name in _CONDITIONS:
                    del self.headers[name]
            if conditional:
                with state.one_at_a_time:
                    answer = self._ask(body)
            else:
                answer = self._ask(body)
            if cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._answer(*answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _do  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
                self.wfile.flush()
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                found = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    """Trailers are of no interest."""
                del self.headers["Transfer-Encoding"]
                return found
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def handle_expect_100(self) -> bool:
            return True  # `_body` says it

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            """Lets the server behind do it; a connection that it has closed is opened anew."""
            for again in (True, False):
                kept = getattr(upstreams, "connection", None)
                connection = kept or http.client.HTTPConnection(state.upstream, timeout=60)
                upstreams.connection = connection
                try:
                    connection.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        if name.lower() not in {"content-length", "expect", "connection"}:
                            connection.putheader(name, value)
                    if body or self.command in {"PUT", "POST"}:
                        connection.putheader("Content-Length", str(len(body)))
                    connection.endheaders(body or None)
                    found = connection.getresponse()
                    content = found.read()
                except (OSError, http.client.HTTPException):
                    connection.close()
                    upstreams.connection = None
                    if kept is None or not again:
                        raise
                    continue
                if found.will_close:
                    upstreams.connection = None
                return found.status, found.getheaders(), content
            raise AssertionError

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value  # of `HEAD`, which has no body
                elif name.lower() not in {"connection", "transfer-encoding", "keep-alive"}:
                    self.send_header(name, value)
            if status not in {204, 304}:
                self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients are killed here."""


def main() -> None:
    """Serves until its input ends; prints where, and then waits."""
    server = _Server(("127.0.0.1", 0), _handler(_State(sys.argv[1])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("127.0.0.1", server.server_address[1], sep=":", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
