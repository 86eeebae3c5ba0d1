"""Imports every module of anomtune, and prints what that has changed of the process as JSON."""

from __future__ import annotations

import importlib
import json
import pkgutil

from process_state import changes, process_state

before = process_state()

names = []
for room in ("", ".datasets", ".models", ".search", ".cluster"):
    package = importlib.import_module(f"anomtune{room}")
    names += [found.name for found in pkgutil.walk_packages(package.__path__, f"anomtune{room}.")]
names = sorted(name for name in set(names) if not name.endswith("__main__"))
for name in names:
    importlib.import_module(name)
print(json.dumps({"modules": names, "changes": changes(before, process_state())}))
