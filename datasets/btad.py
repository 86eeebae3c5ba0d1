"""BTAD, beanTech's three products."""

from __future__ import annotations

from typing import ClassVar

from anomtune.datasets.base import Published
from anomtune.datasets.mvtec import PublishedFolder


class BTAD(PublishedFolder):
    """beanTech Anomaly Detection, products 01, 02 and 03 (Mishra et al., ISIE 2021).

    ``BTech_Dataset_transformed/<product>/`` holds ``train/ok``, ``test/ok``, ``test/ko`` and
    ``ground_truth/ko``. Images are BMP or PNG files numbered from ``0000``, masks of either kind
    with the stem of their image. Products are of 1600 x 1600, 600 x 600 and 800 x 600 pixels; the
    last is squashed to a square like any other.
    """

    name = "btad"
    title = "BTAD"
    # [recall]; in sum as public statistics of the dataset have it: 1799 training and 741 test
    # images, 290 of them anomalous. Its own read-me swaps the training images of 02 and 03.
    counts: ClassVar = {
        "01": Published(400, 21, 49),
        "02": Published(399, 30, 200),
        "03": Published(1000, 400, 41),
    }
    defects: ClassVar = {product: frozenset({"ko"}) for product in ("01", "02", "03")}
    normal = "ok"
