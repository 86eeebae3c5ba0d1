"""Spoils writes into a sweep directory, in drivers and workers that have this folder on their path.

What is to happen stands in the file that ``ANOMTUNE_TEST_FAULTS`` names: ``fail_at``, the number of
the one write that fails, counted over all processes, and ``slow``, the seconds each takes more.

Workers also look whether what they are told may be acted on: whether their record is there, and has
the rung that they have reported. If not, they say so in a file beside it.
"""

import errno
import importlib.abc
import importlib.util
import json
import os
import sys
import time


class _Spoil(importlib.abc.MetaPathFinder):
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


def _patch(module):
    replace, append = module.write_whole, module.Storage.append

    def spoiled_replace(target, content, *, durable=False):
        _interfere()
        replace(target, content, durable=durable)

    def spoiled_append(self, path, content, part):
        try:
            _interfere()
        except OSError as error:
            raise self._unusable("write", path, error) from error
        append(self, path, content, part)

    module.write_whole = spoiled_replace
    module.Storage.append = spoiled_append


def _interfere():
    plan_file = os.environ["ANOMTUNE_TEST_FAULTS"]
    try:
        with open(plan_file) as stream:
            plan = json.load(stream)
    except FileNotFoundError:
        return
    counter = os.open(f"{plan_file}.count", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(counter, b"x")
    number = os.fstat(counter).st_size
    os.close(counter)
    time.sleep(plan.get("slow", 0))
    if number == plan.get("fail_at"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _patch_worker(module):
    from anomtune.search.run.messages import TrialReport, from_result

    step = module.TrialActor.step

    def watched_step(self):
        told, reported = getattr(self, "_watched", (None, 0))
        reported = reported if told is self._spec else 0
        content = self._spec.storage().read(f"{self._spec.record_path}.json")
        record = json.loads(content or b"{}")
        safe = max((rung["step"] for rung in record.get("curve", ())), default=0)
        if record.get("state") != "RUNNING" or safe < reported:
            with open(f"{os.environ['ANOMTUNE_TEST_FAULTS']}.unsafe", "a") as stream:
                stream.write(f"{self._spec.record_path}: went on from rung {reported} of {safe}\n")
        result = step(self)
        message = from_result(result)
        if isinstance(message, TrialReport):
            self._watched = self._spec, message.result.rung.step
        return result

    module.TrialActor.step = watched_step


_PATCHES = {"anomtune.search.store.storage": _patch, "anomtune.search.run.worker": _patch_worker}

for _name in [name for name in _PATCHES if name in sys.modules]:  # a fork that has imported it
    _PATCHES.pop(_name)(sys.modules[_name])
sys.meta_path.insert(0, _Spoil())
