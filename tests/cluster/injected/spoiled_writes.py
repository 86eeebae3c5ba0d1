"""Spoils writes into a sweep directory, in drivers and workers that have this folder on their path.

What is to happen stands in the file that ``ANOMTUNE_TEST_FAULTS`` names: ``fail_at``, the number of
the one write that fails, counted over all processes, and ``slow``, the seconds each takes more.
"""

import errno
import importlib.abc
import importlib.util
import json
import os
import sys
import time


class _Spoil(importlib.abc.MetaPathFinder):
    """Patches the storage when it is imported, and only then: most processes never do."""

    def find_spec(self, name, path=None, target=None):
        if name != "anomtune.search.store.storage":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            _patch(module)

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


if "anomtune.search.store.storage" in sys.modules:  # a fork of a process that has imported it
    _patch(sys.modules["anomtune.search.store.storage"])
else:
    sys.meta_path.insert(0, _Spoil())
