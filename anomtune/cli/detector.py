"""The commands that make a detector of a config, and use it. Each imports what it needs itself."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomtune.cli.output import is_json, is_quiet, notes, write_rows
from anomtune.cli.terminal import console, refuse, require_writable
from anomtune.errors import UNUSABLE

if TYPE_CHECKING:
    from anomtune.errors import ImageError
    from anomtune.search.detector.predictions import Results

ModelFolder = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="The folder of a saved model.")
]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="As `best` prints it.")],
    out: Annotated[Path, typer.Option(metavar="MODEL_DIR", help="Where the model goes.")],
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Train one config, set its threshold and save the detector."""
    check_device(device)
    from anomtune.errors import TrainingDivergedError
    from anomtune.models.training.report import Report
    from anomtune.search.detector.saved import CONFIG, WEIGHTS
    from anomtune.search.detector.train import train as train_detector

    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or not names <= {CONFIG, WEIGHTS}:
        refuse(f"--out {out}: holds something else; choose a new folder")
    log, errors = notes(), console(stderr=True)
    require_writable("--out", out, out / CONFIG)

    def tell(iteration: int, total: int, report: Report) -> None:
        if log.is_terminal:  # which has a bar
            return
        loss = report.get("loss")
        shown = f"  loss {loss:.4g}" if isinstance(loss, float) else ""
        log.print(f"iteration {iteration} of {total}{shown}", style="dim", highlight=False)

    def note(text: str) -> None:
        log.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    try:
        model = train_detector(config, device=device, on_progress=tell, on_note=note)
    except TrainingDivergedError as error:
        errors.print(f"{config}: {error}", style="bold red", markup=False, highlight=False)
        raise typer.Exit(UNUSABLE) from None
    model.save(out)
    found, threshold = model.config.measured, model.config.threshold
    low, high = found.interval
    print(
        f"validation AUROC {found.auroc:.4f} (95 % interval {low:.4f} to {high:.4f}, "
        f"{found.n_normal} normal and {found.n_anomalous} anomalous images)"
    )
    print(f"threshold {threshold:.6g}: F1 {found.f1:.4f}, accuracy {found.accuracy:.4f}")
    if found.note is not None:
        errors.print(
            f"note: {found.note}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if not is_quiet():
        print(
            f"model in {out}; next: anomtune predict {shlex.quote(str(out))} IMAGES --out RESULTS"
        )


def predict(
    model_dir: ModelFolder,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Folders are searched.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where scores and heat maps go.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Draw heat maps.")] = True,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Score new images and draw heat maps of what is anomalous in them."""
    check_device(device)
    for path in images:
        if not os.path.lexists(path):
            refuse(f"{path}: no such file or folder")
    from anomtune.datasets.io.files import image_files, left_out
    from anomtune.datasets.io.imagefile import FORMATS
    from anomtune.errors import StorageError
    from anomtune.progress import steps
    from anomtune.search.detector.predict import load_model
    from anomtune.search.detector.predictions import Results

    count = sum(1 for _ in image_files(images))
    if count == 0:
        refuse(f"{images[0]}: no image there; {FORMATS} files are looked for")
    model = load_model(model_dir, device)
    unreadable: list[ImageError] = []
    passed_over: list[Path] = []
    try:
        with Results(out, model.config, images, maps=maps, unreadable=unreadable) as results:
            found = model.predict(
                images, batch_size=batch_size, unreadable=unreadable, passed_over=passed_over
            )
            for prediction in steps(found, "predicting", count):
                row = results.add(prediction)
                if is_json():
                    write_rows([{"row": "image", "threshold": model.config.threshold, **row}])
    except BrokenPipeError:  # whoever reads the rows has gone
        raise
    except OSError as error:
        raise StorageError(
            f"--out {out}: cannot be written ({error.strerror}); free some space or choose another"
        ) from None
    _tell_predicted(results, unreadable, model.config.measured.note)
    if passed_over:
        what = left_out(passed_over)
        notes().print(what, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if unreadable:
        raise typer.Exit(UNUSABLE)


def _tell_predicted(results: Results, unreadable: list[ImageError], note: str | None) -> None:
    """Says what came of a prediction, and which files cannot be read."""
    from anomtune.names import readable, to_text

    errors = console(stderr=True)
    for bad in unreadable:
        if is_json():
            row = {"row": "unreadable", "path": to_text(bad.where), "reason": readable(bad.reason)}
            write_rows([row])
        else:
            errors.print(str(bad), style="red", markup=False, highlight=False, soft_wrap=True)
    summary = f"{results.n_images} images scored, {results.n_anomalous} of them anomalous"
    if unreadable:
        summary += f"; {len(unreadable)} cannot be read"
    if not is_json():
        print(f"{summary}; results in {results.folder}")
    if note is not None:
        errors.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def export(
    directory: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A model's folder; of a sweep for --optuna and --xlsx."),
    ],
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="Write a model as ONNX.")
    ] = None,
    optuna: Annotated[
        str | None, typer.Option(metavar="URL", help="Write the studies of a sweep to a storage.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="With --optuna: keep on until the sweep is complete.")
    ] = False,
    xlsx: Annotated[
        Path | None,
        typer.Option(metavar="FILE.xlsx", help="Write the tables of a sweep for Excel."),
    ] = None,
) -> None:
    """Give a model to ONNX, the studies of a sweep to Optuna, or its tables to Excel."""
    if [onnx, optuna, xlsx].count(None) != 2:
        refuse("export: say either --onnx FILE.onnx or --optuna URL or --xlsx FILE.xlsx")
    if follow and optuna is None:
        refuse("--follow: goes with --optuna URL")
    if optuna is not None:
        from anomtune.search.results.optuna_export import export_studies, shown_url

        if follow:
            _follow(directory, optuna)
        else:
            print(f"{export_studies(directory, optuna)} studies in {shown_url(optuna)}")
        return
    if xlsx is not None:
        from anomtune.search.results.excel import write_workbook

        require_writable("--xlsx", xlsx, xlsx)
        rows = write_workbook(directory, xlsx)
        print(f"{xlsx}: {', '.join(f'{number} {table}' for table, number in rows.items())}")
        return
    assert onnx is not None
    from anomtune.progress import step
    from anomtune.search.detector.onnx_export import export_onnx
    from anomtune.search.detector.predict import load_model

    require_writable("--onnx", onnx, onnx)
    model = load_model(directory, "cpu")
    with step("exporting to ONNX"):
        difference = export_onnx(model, onnx)
    size, side = model.detector.input_size, model.config.image_size
    print(
        f"{onnx}: images uint8 (batch, 3, {size}, {size}) -> maps (batch, {side}, {side}), "
        f"scores (batch,); threshold {model.config.threshold:.6g}"
    )
    print(f"onnxruntime and the detector differ by {difference:.1e} of the largest value at most")


def _follow(directory: str, url: str) -> None:
    """Exports a sweep to Optuna until it is complete, or the command is interrupted."""
    from anomtune.errors import INTERRUPTED, StorageError
    from anomtune.search.results.optuna_export import shown_url
    from anomtune.search.results.optuna_follow import Followed, follow_studies

    log, errors = notes(), console(stderr=True)

    def tell(what: Followed | StorageError) -> None:
        if isinstance(what, StorageError):
            line, style, to = f"{what}; tries again", "yellow", errors
        else:
            line, style, to = f"{what.trials} trials, {what.running} running", "dim", log
        to.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = follow_studies(directory, url, tell=tell)
    except KeyboardInterrupt:
        log.print("Interrupted. The same command goes on from here.", style="bold")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"complete: {found.studies} studies, {found.trials} trials in {shown_url(url)}")


def check_device(device: str | None) -> None:
    """Refuses a device that there is none of."""
    if device not in (None, "cpu", "cuda"):
        refuse(f"--device {device}: there is cpu, cuda")
