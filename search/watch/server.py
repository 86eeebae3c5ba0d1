"""Serves the page that follows a sweep: on this machine alone, and to be read only.

A thread looks at the directory every few seconds as long as a page asks. What it finds is one JSON,
which is sent when it has changed. Whatever comes from a sweep is text on the page: it is never part
of its HTML, and no script runs but the page's own.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import ipaddress
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib import resources

from aiohttp import web

from anomtune.errors import StorageError
from anomtune.search.store.records import ConfirmRecord
from anomtune.search.watch.follow import SweepFollower
from anomtune.search.watch.picture import picture, sheets, signature

#: The server is reached from this machine alone.
HOST = "127.0.0.1"
#: Seconds between two looks at the directory, at least; of its time it looks this share at most.
_EVERY, _BUSY = 1.5, 0.25
#: Seconds after which nothing is looked at because no page has asked.
_ASLEEP = 30.0
#: Seconds between two pictures while much is read.
_WHILE_READING = 1.0

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser asks each time, and is told that nothing has changed.
    "Cache-Control": "no-cache",
}
#: What the page is made of, from `anomtune.search`; the report's colours and type are its own.
_FILES = {
    "/": ("watch/watch.html", "text/html"),
    "/report.css": ("report/page.css", "text/css"),
    "/watch.css": ("watch/watch.css", "text/css"),
    "/watch.js": ("watch/watch.js", "text/javascript"),
    "/figures.js": ("watch/figures.js", "text/javascript"),
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Watch:
    """Keeps the picture of a sweep up to date, and answers with it.

    Args:
        follower: Follows the sweep.
    """

    def __init__(self, follower: SweepFollower) -> None:
        self._follower = follower
        self._asked = time.monotonic()
        self._awake = asyncio.Event()
        self._sheets: dict[str, ConfirmRecord] = {}
        #: The picture, the same packed, and its tag.
        self._answer = (b"", b"", "")
        self._shown: tuple[object, ...] = ()
        self._show()

    def app(self) -> web.Application:
        """Returns what answers requests."""
        app = web.Application(middlewares=[_guard])
        for path in _FILES:
            app.router.add_get(path, _file, allow_head=False)
        app.router.add_get("/state.json", self._state, allow_head=False)
        app.router.add_get("/sheets/{id}.png", self._sheet, allow_head=False)
        app.cleanup_ctx.append(self._following)
        return app

    async def _following(self, app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._follow())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _follow(self) -> None:
        while True:
            begun = time.monotonic()
            anew = await asyncio.to_thread(self._look)
            # The first look takes long once, and says nothing of the next.
            took = 0.0 if anew else time.monotonic() - begun
            await asyncio.sleep(max(_EVERY, took / _BUSY - took))
            if time.monotonic() - self._asked > _ASLEEP:
                self._awake.clear()
                await self._awake.wait()

    def _look(self) -> bool:
        """Looks at the directory; whether all of it was read anew."""
        shown = time.monotonic()
        anew = False
        for state in self._follower.poll():
            anew |= state.phase == "reading"
            if state.phase != "reading" or time.monotonic() - shown > _WHILE_READING:
                self._show()
                shown = time.monotonic()
        self._show()
        return anew

    def _show(self) -> None:
        """Draws what is known."""
        state = self._follower.state
        if self._shown == (shown := signature(state)):
            return
        content = json.dumps(picture(state), separators=(",", ":")).encode()
        self._shown = shown
        self._sheets = {entry["id"]: run for entry, run in sheets(state)}
        tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
        self._answer = content, gzip.compress(content, 5), tag

    async def _state(self, request: web.Request) -> web.Response:
        self._asked = time.monotonic()
        self._awake.set()
        content, packed, tag = self._answer
        headers = {"ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            content = packed
        return web.Response(body=content, headers=headers, content_type="application/json")

    async def _sheet(self, request: web.Request) -> web.Response:
        """Answers with a picture that the state names; no other file can be asked for."""
        run = self._sheets.get(request.match_info["id"])
        try:
            read = self._follower.store.read_examples
            content = None if run is None else await asyncio.to_thread(read, run)
        except StorageError:
            content = None
        if content is None:
            raise web.HTTPNotFound
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return web.Response(body=content, content_type="image/png", headers=headers)


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answers to this machine's own names alone, only to GET, and says what a browser may do.

    A page of another site could let its name stand for 127.0.0.1 and read the answers as its own
    (DNS rebinding); its requests carry that name. Through a tunnel the port is another.
    """
    response: web.StreamResponse
    if not _is_local(request.headers.get("Host", "")):
        response = web.Response(status=403, text="Ask for 127.0.0.1 or localhost.\n")
    elif request.method != "GET":
        response = web.Response(status=405, text="Only GET.\n", headers={"Allow": "GET"})
    else:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine by itself."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _file(request: web.Request) -> web.Response:
    name, kind = _FILES[request.path]
    content = resources.files("anomtune.search").joinpath(name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers={"ETag": tag})
    return web.Response(body=content, content_type=kind, charset="utf-8", headers={"ETag": tag})


def watch(
    directory: str | os.PathLike[str],
    *,
    port: int = 0,
    ready: Callable[[int], object] = lambda port: None,
) -> None:
    """Serves the page of a sweep until it is interrupted. Nothing is written to its directory.

    Args:
        directory: Local path or pyarrow filesystem URI; the sweep may run, have ended, or be about
            to begin.
        port: To listen on; 0: any that is free.
        ready: Told the port when the page can be opened.

    Raises:
        SweepError: If there is no sweep, and none is about to begin.
        StorageError: If the directory cannot be read.
        OSError: If the port cannot be listened on.
        KeyboardInterrupt: If it was interrupted.
    """
    asyncio.run(_serve(SweepFollower(directory), port, ready))


async def _serve(follower: SweepFollower, port: int, ready: Callable[[int], object]) -> None:
    runner = web.AppRunner(Watch(follower).app(), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        ready(runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
