"""MVTec LOCO: logical and structural anomalies, with several masks per image."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anomtune.datasets.base import GOOD, Published
from anomtune.datasets.folder import Layout
from anomtune.datasets.io.files import entries, is_image, read_labels
from anomtune.datasets.io.imagefile import digest_file
from anomtune.datasets.io.store import digest
from anomtune.datasets.mvtec import PublishedFolder
from anomtune.errors import ImageError

_KINDS = frozenset({"logical_anomalies", "structural_anomalies"})


class MVTecLOCO(PublishedFolder):
    """MVTec LOCO AD, 5 categories (Bergmann et al., IJCV 2022; METHODS 7.8).

    ``mvtec_loco/<category>/`` holds ``train/good``, ``validation/good``, ``test/good``,
    ``test/logical_anomalies``, ``test/structural_anomalies``, and for each anomalous image a
    folder ``ground_truth/<kind>/<stem>/`` of masks ``000.png, 001.png, ...``, one per defect with
    a grey value of its own. The mask of an image is the union of their non-zero pixels; its key is
    the folder. (ReContrast's loader reads ``000.png`` alone.)

    The images of ``validation/good`` are not used, as in ReContrast's loader: they are normal,
    but neither training images nor test images, and the search has its own validation.
    """

    name = "mvtec_loco"
    title = "MVTec LOCO"
    # [recall]; in sum 1772 / 575 / 993, which with 304 for validation are the paper's totals.
    counts: ClassVar = {
        "breakfast_box": Published(351, 102, 83 + 90),
        "juice_bottle": Published(335, 94, 142 + 94),
        "pushpins": Published(372, 138, 91 + 81),
        "screw_bag": Published(360, 122, 137 + 82),
        "splicing_connectors": Published(354, 119, 108 + 85),
    }
    defects: ClassVar = dict.fromkeys(counts, _KINDS)

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image, or of all masks of one."""
        path = self._path(category, key)
        if not path.is_dir():
            return super().file_digest(category, key)
        return digest([[file.name, digest_file(file)] for file in _masks_in(path)])

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns the union of the masks of an image as ``(H, W)``, true at anomalous pixels."""
        folder = self._path(category, key)
        masks = []
        for file in _masks_in(folder):
            try:
                masks.append(read_labels(file))
            except ImageError as error:
                raise ImageError(str(folder), f"{file.name} {error.reason}") from error
            if masks[-1].shape != masks[0].shape:
                raise ImageError(
                    str(folder), f"{file.name} is not of the size of the others; copy it again"
                )
        if not masks:
            raise ImageError(str(folder), "holds no masks; copy them again")
        return reduce(np.logical_or, masks)

    def _layout(self, category: str) -> Layout:
        return Layout(
            normal=GOOD,
            defects=_KINDS,
            masked=True,
            mask_folders=True,
            unused={"validation": "the search has a validation of its own"},
        )


def _masks_in(folder: Path) -> list[Path]:
    try:
        return [Path(e.path) for e in entries(folder) if is_image(e)]
    except OSError as error:
        raise ImageError(str(folder), f"cannot be listed ({error.strerror})") from error
