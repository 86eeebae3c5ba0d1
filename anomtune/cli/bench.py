"""The command `anomtune bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from anomtune.cli.detector import ModelFolder, check_device
from anomtune.cli.output import is_json, write_rows
from anomtune.cli.terminal import cell, console, refuse

if TYPE_CHECKING:
    from anomtune.search.detector.bench import Benchmark


def bench(
    model_dir: ModelFolder,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also measure reading these images.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")
    ] = None,
    batches: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            min=1,
            help="Images of a call; can be repeated. Default: 1, and 8 on a CPU or 32 on a GPU.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="What the measurements take together.")
    ] = 10.0,
    onnx: Annotated[
        bool, typer.Option("--onnx/--no-onnx", help="Also with ONNX Runtime, after an export.")
    ] = True,
) -> None:
    """Measure how long a saved detector takes here: latency, throughput, memory."""
    check_device(device)
    from anomtune.datasets.io.files import image_files
    from anomtune.datasets.io.imagefile import FORMATS
    from anomtune.search.detector.bench import bench as measure

    files = [] if images is None else list(image_files([images]))
    if images is not None and not files:
        refuse(f"--images {images}: no image there; {FORMATS} files are looked for")
    found = measure(
        model_dir,
        images=files,
        device=device,
        batches=batches or (),
        seconds=seconds,
        onnx=onnx,
    )
    if is_json():
        fields = asdict(found)
        timings = fields.pop("timings")
        write_rows([{"row": "model", **fields}, *({"row": "timing", **row} for row in timings)])
    else:
        _show(found)


def _show(found: Benchmark) -> None:
    out, memory = console(), found.peak_memory_bytes
    facts = [
        f"{found.method} for {found.category}",
        f"images of {found.input_size}x{found.input_size}",
        f"{found.parameters / 1e6:.1f} M parameters",
    ]
    where = [
        found.device if found.device != "cpu" else f"CPU, {found.threads} threads",
        f"loaded in {found.load_seconds:.2f} s",
        f"{memory / 2**20:.0f} MiB at most" if memory is not None else "memory not known here",
    ]
    out.print(cell(", ".join(facts)), cell(", ".join(where)), sep="\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("engine")
    table.add_column("from")
    for title in ("batch", "median ms", "p95 ms", "ms/image", "images/s", "calls"):
        table.add_column(title, justify="right")
    begins = {"network": "decoded images", "decoding": "files, decoding alone", "files": "files"}
    for row in found.timings:
        table.add_row(
            row.engine,
            begins[row.work],
            str(row.batch),
            *(f"{value:.2f}" for value in (row.median_ms, row.p95_ms, row.image_ms)),
            f"{row.images_per_second:.1f}",
            str(row.calls),
        )
    out.print(table)
    for note in found.notes:
        out.print(cell(note), style="dim", soft_wrap=True)
