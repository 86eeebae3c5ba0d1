"""MVTec LOCO: logical and structural anomalies, with several masks per image."""

from __future__ import annotations

from typing import ClassVar

from anomtune.datasets.base import GOOD, Published
from anomtune.datasets.io.layout import Layout
from anomtune.datasets.mvtec import PublishedFolder

_KINDS = frozenset({"logical_anomalies", "structural_anomalies"})


class MVTecLOCO(PublishedFolder):
    """MVTec LOCO AD, 5 categories (Bergmann et al., IJCV 2022).

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

    def _layout(self, category: str) -> Layout:
        return Layout(
            normal=GOOD,
            defects=_KINDS,
            masked=True,
            mask_folders=True,
            unused={"validation": "the search has a validation of its own"},
            files=frozenset({"defects_config.json"}),
        )
