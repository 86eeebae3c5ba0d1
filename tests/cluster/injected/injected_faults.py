"""Does to drivers and workers what a bad day does; they have this folder on their path.

What is to happen stands in the file that ``ANOMTUNE_TEST_FAULTS`` names, as JSON:

``directory``: the sweep directory. Files below it are accessed as the rest says.
``fail``: ``at`` says which access fails, counted over all processes, ``times`` how many do from
there on, ``errno`` how, and ``reads`` whether reads are counted, or writes.
``slow``: the seconds that an access takes longer, at most.
``building``: the seconds that it takes longer to open a file of the node's cache.
``lease``: the seconds between two beats of an owner's mark, on a file system without locks.

Beside it ``.clock`` holds the seconds by which the clock is wrong, ``.count`` and ``.struck`` count
accesses and failures. Two files hold what workers have seen: ``.unsafe``, what they were told
before its record was safe, and ``.opened``, whose held-out images they have opened.
"""

import datetime
import importlib.abc
import importlib.util
import json
import os
import random
import sys
import threading
import time

_PLAN = os.environ["ANOMTUNE_TEST_FAULTS"]
_READS = {"os.listdir", "os.scandir"}
_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
#: What is done here is not meddled with.
_own = threading.local()
_real_time, _real_time_ns = time.time, time.time_ns


class _Patch(importlib.abc.MetaPathFinder):
    """Patches modules when they are imported, and only then: most processes never do."""

    def find_spec(self, name, path=None, target=None):
        if name not in _PATCHES:
            return None
        patch = _PATCHES.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch
        return spec


def _plan():
    try:
        with open(_PLAN) as stream:
            return json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}


def _note(suffix, text):
    """Adds to a file beside the plan, and returns how long that is then."""
    file = os.open(_PLAN + suffix, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(file, text.encode())
        return os.fstat(file).st_size
    finally:
        os.close(file)


def _patch_storage(module):
    sys.addaudithook(_watch)
    time.time = lambda: _real_time() + _wrong_by()
    time.time_ns = lambda: _real_time_ns() + int(_wrong_by() * 1e9)


def _patch_clock(module):
    module.datetime = _Datetime


def _wrong_by():
    """Returns by how many seconds the clock is wrong."""
    before, _own.busy = getattr(_own, "busy", False), True
    try:
        with open(f"{_PLAN}.clock") as stream:
            return float(stream.read() or 0)
    except FileNotFoundError:
        return 0.0
    finally:
        _own.busy = before


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=_wrong_by())


def _watch(event, arguments):
    """Is told by Python of every file that is opened, listed, moved or removed."""
    reads = event in _READS or (event == "open" and not _writes(arguments))
    if not (reads or event in _WRITES or event == "open") or getattr(_own, "busy", False):
        return
    if not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    _own.busy = True
    try:
        _meddle(os.fsdecode(arguments[0]), reads)
    finally:
        _own.busy = False


def _writes(arguments):
    _, mode, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(
        mode and set(mode) & set("wax+")
    )


def _meddle(place, reads):
    plan = _plan()
    if "building" in plan and ".tmp/stage" in place:
        time.sleep(plan["building"])
    if not place.startswith(plan.get("directory", "\0")):
        return
    time.sleep(random.uniform(0, plan.get("slow", 0)))
    fail = plan.get("fail")
    if fail is None or fail["reads"] != reads:
        return
    if 0 <= _note(".count", "x") - fail["at"] < fail["times"]:
        _note(".struck", f"{place}\n")
        raise OSError(fail["errno"], os.strerror(fail["errno"]), place)


def _patch_lock(module):
    has_locks = module._has_kernel_locks

    def has_kernel_locks(folder):
        beat = _plan().get("lease")
        if beat is None:
            return has_locks(folder)
        module._BEAT, module._LEASE, module._PATIENCE, module._SETTLE = (
            beat,
            3 * beat,
            5 * beat,
            beat,
        )
        return False

    module._has_kernel_locks = has_kernel_locks


def _patch_worker(module):
    step = module.TrialActor.step

    def watched_step(self):
        # Ray sends this function to workers as it is, with all that it uses of this module.
        import injected_faults

        return injected_faults.watched(self, step)

    module.TrialActor.step = watched_step


def watched(actor, step):
    """Does a step of a worker, and notes whether that was told too early."""
    from anomtune.search.run.messages import TrialReport, from_result

    told, reported = getattr(actor, "_watched", (None, 0))
    reported = reported if told is actor._spec else 0
    path = actor._spec.record_path
    _own.busy = True
    content = actor._spec.storage().read(f"{path}.json")
    _own.busy = False
    record = json.loads(content or b"{}")
    safe = max((rung["step"] for rung in record.get("curve", ())), default=0)
    state = record.get("state", "absent")
    # The worker of an owner that was stopped may go on for a beat after another one has ended the
    # trial: in vain, since what it reports is not written.
    followed = "lease" in _plan() and state not in ("RUNNING", "absent")
    if not followed and (state != "RUNNING" or safe < reported):
        _note(".unsafe", f"{path}: {state}, went on from rung {reported} of {safe}\n")
    result = step(actor)
    message = from_result(result)
    if isinstance(message, TrialReport):
        actor._watched = actor._spec, message.result.rung.step
    return result


def _patch_held_out(module):
    opened = module._open_held_out

    def noted(spec, trial):
        run = [spec.category, spec.method, spec.hyperparameters, spec.seed]
        _note(".opened", json.dumps(run, sort_keys=True) + "\n")
        return opened(spec, trial)

    module._open_held_out = noted


_PATCHES = {
    "anomtune.search.store.storage": _patch_storage,
    "anomtune.search.store.lock": lambda module: (_patch_lock(module), _patch_clock(module)),
    "anomtune.search.store.records": _patch_clock,
    "anomtune.search.run.worker": _patch_worker,
    "anomtune.search.run.held_out": _patch_held_out,
}

for _name in [name for name in _PATCHES if name in sys.modules]:  # a fork that has imported it
    _PATCHES.pop(_name)(sys.modules[_name])
sys.meta_path.insert(0, _Patch())
