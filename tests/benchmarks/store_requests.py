"""How many requests an S3 server gets from a sweep: per trial, per rung, and for a resume.

A real sweep of the toy method runs with its directory on moto, and a proxy in between counts. Then
the directory is filled with copies of its records, and the sweep, which has nothing left to do, is
started again twice, as after a crash: the first start finds the single files alone.

Run: python tests/benchmarks/store_requests.py [--trials 20] [--records 5000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.storage import Storage
from tests.conftest import draw_category
from tests.search.object_store import Proxy, Server, folder, make_bucket

TOYS = Path(__file__).parent.parent / "plugin"
RUNGS = 8
CATEGORIES = ("plate", "ring")


def asked(proxy: Proxy) -> Counter[str]:
    """Returns what was asked for since the last look, without the renewals of the lease."""
    found: Counter[str] = Counter()
    for line in proxy.look()["log"]:
        method, path = line.split(" ", 1)
        if "owner.json" not in path:
            parts = urlsplit(path)
            query = dict(parse_qsl(parts.query))
            kind = "LIST" if "list-type" in query else method
            # What is asked for lies in a bucket, and there in a folder.
            below = f"/bucket/{query['prefix']}" if "prefix" in query else parts.path
            name = "".join(below.split("/")[3:4])
            found[f"{kind} {'probe' if name.startswith('.') else name}".strip()] += 1
    return found


def told(what: str, counts: Counter[str], per: int = 1, unit: str = "") -> None:
    """Prints counts."""
    kinds = ", ".join(f"{kind} {number / per:,.1f}" for kind, number in counts.most_common())
    print(f"{what}: {counts.total() / per:,.1f} requests{unit} ({kinds})", flush=True)


def command(*arguments: object) -> None:
    """Runs anomtune."""
    subprocess.run(
        [sys.executable, "-m", "anomtune", *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(),
    )


def main() -> None:
    """Prints requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--records", type=int, default=5000)
    options = parser.parse_args()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": os.pathsep.join([str(TOYS), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as place:
        server = Server(Path(place) / "log")
        make_bucket(server.address)
        proxy = Proxy(server.address)
        uri = folder(proxy.address)
        for index, name in enumerate(CATEGORIES):
            draw_category(Path(place) / "data" / name, seed=index)
        sweep = {
            "name": "requests",
            "dataset": {"name": "folder", "root": f"{place}/data"},
            "image_size": 32,
            "trials": options.trials,
            "rungs": RUNGS,
            "methods": {"toy": {"fixed": {"seconds": 0.02}}},
            "pruner": "none",
            "confirm": 0,
        }
        file = Path(place) / "sweep.yaml"
        file.write_text(yaml.safe_dump(sweep))
        proxy.look()
        command("sweep", file, "--dir", uri)
        trials = options.trials * len(CATEGORIES)
        told("a sweep, with all that it begins and ends with", asked(proxy), trials, " a trial")
        store = RecordStore(Storage(uri))
        found = store.read_all()
        asked(proxy)
        command("sweep", file, "--dir", uri)
        told(f"a start with {trials} trials and nothing to do", asked(proxy))
        each = options.records // len(CATEGORIES)
        for records in found.values():
            for number in range(options.trials, each):
                store.write(records[0].model_copy(update={"number": number}))
        file.write_text(yaml.safe_dump(sweep | {"trials": each}))
        for which in ("first", "second"):
            asked(proxy)
            command("sweep", file, "--dir", uri)
            told(f"the {which} start with {each * len(CATEGORIES):,} trials", asked(proxy))
        command("leaderboard", uri)
        told("leaderboard", asked(proxy))
        proxy.end()
        server.end()


if __name__ == "__main__":
    main()
