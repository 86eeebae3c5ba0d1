"""A dashboard that only says what mode it is in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Dashboard(BaseHTTPRequestHandler):
    """Answers as Ray 2.60 does; ``mode`` is token, disabled, older (no tokens yet) or other."""

    mode, token = "token", "right"
    seen: list[str]

    def do_GET(self):
        self.seen.append(self.path)
        sent = self.headers.get("Authorization")
        if self.mode == "other":
            return self._answer(200, "<html>a printer</html>")
        if self.path == "/api/authentication_mode":
            if self.mode == "older":
                return self._answer(404, "Not Found")
            return self._answer(200, json.dumps({"authentication_mode": self.mode}))
        if self.mode == "token" and sent != f"Bearer {self.token}":
            return self._answer(403 if sent else 401, "Forbidden")
        if self.path == "/api/jobs/":
            return self._answer(200, "[]")
        return self._answer(200, json.dumps({"version": "4", "ray_version": "2.60.0"}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def dashboard():
    """Starts a dashboard in a mode; gives its port and the paths that it was asked for."""

    @contextmanager
    def start(mode: str) -> Iterator[tuple[int, list[str]]]:
        handler = type("Handler", (Dashboard,), {"mode": mode, "seen": []})
        server = ThreadingHTTPServer(("0.0.0.0", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port, handler.seen
        finally:
            server.shutdown()
            server.server_close()

    return start


@pytest.fixture(autouse=True)
def _no_token_of_this_machine(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
