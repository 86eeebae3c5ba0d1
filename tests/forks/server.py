"""Imports what Ray's processes import, and forks one off for each that asks (`sitecustomize.py`).

Else most of the time of all tests on a real Ray goes into importing torch and Ray, a hundred times.

Run: python server.py SOCKET OWNER, where OWNER is the process whose end ends this one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import marshal
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import sys
import threading
from importlib import import_module
from typing import Any, NoReturn

#: CLONE_NEWNET of setns(2).
_NETWORK = 0x40000000
_execvp = os.execvp


def _import(lock: str) -> None:
    # Ray takes these when it is loaded, and never again. With this job a worker takes on any; of
    # its raylet's end the stand-in tells.
    os.environ |= {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
    os.environ["OMP_NUM_THREADS"] = "1"  # no thread that a fork would lose
    # Read when it is imported; set by a raylet for its agents.
    os.environ |= {"RAY_enable_pipe_based_agent_to_parent_health_check": "1"}
    import ray._private.log_monitor
    import ray.autoscaler._private.monitor
    import ray.dashboard.agent
    import ray.dashboard.dashboard
    from ray.dashboard.utils import DashboardAgentModule, get_all_modules

    import anomtune.search.run.worker  # noqa: F401

    get_all_modules(DashboardAgentModule)
    sys.modules.pop("sitecustomize", None)
    _connect_one_by_one(ray._private.worker, lock)

    gc.collect()
    gc.freeze()


def _connect_one_by_one(worker: Any, lock: str) -> None:
    """Lets workers connect to Ray one after the other.

    Forks draw the same random numbers, in C++ as well: two that connect at once put an object of
    the same name into Ray's store, which ends one of them now and then; its raylet waits for ever.
    """
    connect = worker.connect

    def connect_alone(*given: Any, **named: Any) -> None:
        with open(lock, "w") as file:
            # A driver, as an agent that runs jobs is one, waits for workers while it connects.
            if sys.argv[0].endswith("_worker.py"):
                fcntl.flock(file, fcntl.LOCK_EX)
            connect(*given, **named)

    worker.connect = connect_alone


class Server:
    """Forks for stand-ins, and tells them of the ends of what was forked."""

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._owner = owner
        self._stand_ins: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        # A fork that ends wakes the server through this pair.
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serves until the owner has ended."""
        while _lives(self._owner):
            for key, _ in self._selector.select(timeout=1.0):
                if key.fileobj is self._listener:
                    self._fork(self._listener.accept()[0])
                elif key.fileobj is self._woken:
                    self._woken.recv(1024)
                else:
                    self._pass_on(key.data)
            self._reap()

    def _fork(self, stand_in: socket.socket) -> None:
        try:
            size, descriptors, _, _ = socket.recv_fds(stand_in, 4, 3)
            content = stand_in.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
            told = marshal.loads(content)
        except (OSError, EOFError, ValueError):  # it was killed meanwhile
            stand_in.close()
            return
        pid = os.fork()
        if pid == 0:
            try:
                self._leave(stand_in)
                _become(descriptors, *told)
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
        self._stand_ins[pid] = stand_in
        self._selector.register(stand_in, selectors.EVENT_READ, pid)

    def _leave(self, *others: socket.socket) -> None:
        """Is not the server any more, but a fork of it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        pair = self._woken, self._wake
        for each in (self._listener, *pair, *others, *self._stand_ins.values()):
            each.close()

    def _pass_on(self, pid: int) -> None:
        """Does to a fork what was done to its stand-in."""
        stand_in = self._stand_ins[pid]
        try:
            numbers = stand_in.recv(16)
        except ConnectionError:
            numbers = b""
        if not numbers:
            self._selector.unregister(stand_in)
        for number in numbers or [signal.SIGKILL]:
            os.kill(pid, number)  # not waited for yet, so this is still its number

    def _reap(self) -> None:
        while self._stand_ins:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            stand_in = self._stand_ins.pop(pid)
            if stand_in in self._registered():
                self._selector.unregister(stand_in)
            code = os.waitstatus_to_exitcode(status)
            if code >= 0:  # else it is told by the end of the connection
                with contextlib.suppress(ConnectionError):
                    stand_in.send(bytes([code]))
            stand_in.close()

    def _registered(self) -> list[object]:
        return [key.fileobj for key in self._selector.get_map().values()]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _become(
    descriptors: list[int],
    pid: int,
    folder: str,
    environment: dict[str, str],
    path: list[str],
    arguments: list[str],
) -> NoReturn:
    """Does what the stand-in was to do."""
    from ray._raylet import Config

    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    Config.initialize("")  # from the environment
    sys.path[:] = path
    _join_network(pid)
    import_module("sitecustomize")  # as every interpreter does
    os.execvp = _go_on  # type: ignore[assignment]
    _run(arguments)


def _join_network(pid: int) -> None:
    """Enters the network namespace of a process, if that is another."""
    theirs = f"/proc/{pid}/ns/net"
    if os.readlink(theirs) == os.readlink("/proc/self/ns/net"):
        return
    import ctypes

    descriptor = os.open(theirs, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "no way into the network", theirs)
    os.close(descriptor)


def _go_on(file: str, args: list[str]) -> NoReturn:
    """Is `os.execvp` for a worker that has been set up: `bash -c "exec python script ..."`."""
    exec_, _, *arguments = shlex.split(args[-1])
    if exec_ == "exec" and arguments[0].endswith(".py"):
        _run(arguments)
    _execvp(file, args)


def _run(arguments: list[str]) -> NoReturn:
    """Runs a script as Python would."""
    sys.argv[:] = arguments
    sys.path.insert(0, os.path.dirname(arguments[0]))
    code = 1
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as Python does
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    path, owner = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError:
        return  # there is one already
    listener.listen(64)  # whoever comes meanwhile waits
    _import(f"{path}.lock")
    Server(listener, int(owner)).serve()
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


if __name__ == "__main__":
    main()
