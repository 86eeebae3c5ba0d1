"""Lets Ray's own Python processes be forked off one that has imported everything (`server.py`).

Every interpreter that has this folder on its path runs this first. One that is to run a script of
Ray's stands in for the fork: it hands over all that it was given, lives as long as the fork does,
passes signals on, and takes the fork along when it is killed. Who started it sees no difference.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which takes its time
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

#: Where the server listens; without it every process is as it always is.
SOCKET = "ANOMTUNE_TEST_SERVER"
_SCRIPTS = ("_worker.py", "monitor.py", "/dashboard.py", "/agent.py", "/agent/main.py")


def _script() -> str | None:
    """Returns the script of Ray's that this interpreter is to run, if it is one."""
    words = [word for word in sys.orig_argv[1:] if not word.startswith("-")]
    return words[0] if words and "/ray/" in words[0] and words[0].endswith(_SCRIPTS) else None


def _connect(address: str) -> socket.socket | None:
    """Returns the connection; None if there is no server, or if the tests have ended."""
    import socket

    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
    except OSError:
        server.close()
        return None
    return server


def _stand_in(server: socket.socket, script: str) -> NoReturn:
    import marshal
    import signal
    import socket

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    arguments = sys.orig_argv[sys.orig_argv.index(script) :]
    told = marshal.dumps((os.getpid(), os.getcwd(), dict(os.environ), sys.path, arguments))
    code, parent = b"", os.getppid()
    try:
        socket.send_fds(server, [len(told).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(told)
        server.settimeout(0.5)
        while os.getppid() == parent:
            try:
                code = server.recv(1)
                break
            except TimeoutError:
                continue
    finally:
        if not code:  # the fork was killed, or who started this is gone
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(code[0])


if "ANOMTUNE_TEST_FAULTS" in os.environ:
    import injected_faults  # noqa: F401 - of tests/cluster/injected
if SOCKET in os.environ and (_of_ray := _script()) and (_server := _connect(os.environ[SOCKET])):
    _stand_in(_server, _of_ray)
