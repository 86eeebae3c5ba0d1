"""MVTec AD and MPDD, and what published datasets in MVTec's layout share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from anomtune.datasets.base import GOOD, Problem, Published
from anomtune.datasets.folder import Folder
from anomtune.datasets.io.files import is_folder
from anomtune.datasets.io.layout import Layout
from anomtune.errors import nearest


class PublishedFolder(Folder):
    """A published dataset in MVTec's layout, whose categories and defect types are known.

    Any folder with the name of a category is one, so that a category that was not copied whole is
    refused rather than passed over; folders with other names are none.
    """

    #: What its authors call it.
    title: ClassVar[str]
    #: Its categories with the numbers of their images.
    counts: ClassVar[Mapping[str, Published]]
    #: The names of the test folders of anomalous images, by category.
    defects: ClassVar[Mapping[str, frozenset[str]]]
    options = frozenset({"group"})
    undivided = False
    #: Name of the folders of normal images.
    normal: ClassVar[str] = GOOD

    def warnings(self) -> tuple[Problem, ...]:
        """Names what lies beside the categories, and the categories that are not there.

        Raises:
            DataError: If the root does not exist or holds no category.
        """
        beside = super().warnings()
        if self._is_single():
            return beside
        return (*missing_categories(self.title, self.categories(), self.counts), *beside)

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds."""
        return self.counts.get(category)

    def _layout(self, category: str) -> Layout:
        return Layout(normal=self.normal, defects=self.defects.get(category), masked=True)

    def _is_category(self, folder: Path) -> bool:
        return folder.name in self.counts and is_folder(folder)

    def _why_no_category(self, folder: Path) -> str:
        near = nearest(folder.name.casefold(), self.counts)
        hint = f"; rename to {near}" if near and near not in self.categories() else ""
        return f"it is not a category of {self.title}{hint}"

    def _expected(self) -> str:
        return f"{super()._expected()}, <category> being one of {', '.join(sorted(self.counts))}"


def missing_categories(
    title: str, found: tuple[str, ...], counts: Mapping[str, Published]
) -> tuple[Problem, ...]:
    """Reports the categories of a dataset that are not there, in one problem."""
    absent = sorted(set(counts) - set(found))
    if not absent:
        return ()
    message = (
        f"{len(found)} of {len(counts)} categories; missing {', '.join(absent)}: unpack these, "
        "or do without them"
    )
    return (Problem(title, "", message, fatal=False),)


class MVTecAD(PublishedFolder):
    """MVTec AD, 15 categories (Bergmann et al., CVPR 2019).

    ``mvtec_anomaly_detection/<category>/`` holds ``train/good``, ``test/good``,
    ``test/<defect type>`` and ``ground_truth/<defect type>/<stem>_mask.png``, PNG files that are
    numbered from ``000``. Masks are 0 and 255. Some categories are grey and read as RGB.
    """

    name = "mvtec"
    title = "MVTec AD"
    # The totals per part are those of ReContrast's log; how the test images divide into normal and
    # anomalous ones is [recall], in sum as in the paper (3629 / 467 / 1258).
    counts: ClassVar = {
        "bottle": Published(209, 20, 63),
        "cable": Published(224, 58, 92),
        "capsule": Published(219, 23, 109),
        "carpet": Published(280, 28, 89),
        "grid": Published(264, 21, 57),
        "hazelnut": Published(391, 40, 70),
        "leather": Published(245, 32, 92),
        "metal_nut": Published(220, 22, 93),
        "pill": Published(267, 26, 141),
        "screw": Published(320, 41, 119),
        "tile": Published(230, 33, 84),
        "toothbrush": Published(60, 12, 30),
        "transistor": Published(213, 60, 40),
        "wood": Published(247, 19, 60),
        "zipper": Published(240, 32, 119),
    }
    # 73 types, as the paper counts them.
    defects: ClassVar = {
        category: frozenset(names.split())
        for category, names in {
            "bottle": "broken_large broken_small contamination",
            "cable": "bent_wire cable_swap combined cut_inner_insulation cut_outer_insulation "
            "missing_cable missing_wire poke_insulation",
            "capsule": "crack faulty_imprint poke scratch squeeze",
            "carpet": "color cut hole metal_contamination thread",
            "grid": "bent broken glue metal_contamination thread",
            "hazelnut": "crack cut hole print",
            "leather": "color cut fold glue poke",
            "metal_nut": "bent color flip scratch",
            "pill": "color combined contamination crack faulty_imprint pill_type scratch",
            "screw": "manipulated_front scratch_head scratch_neck thread_side thread_top",
            "tile": "crack glue_strip gray_stroke oil rough",
            "toothbrush": "defective",
            "transistor": "bent_lead cut_lead damaged_case misplaced",
            "wood": "color combined hole liquid scratch",
            "zipper": "broken_teeth combined fabric_border fabric_interior rough split_teeth "
            "squeezed_teeth",
        }.items()
    }


class MPDD(PublishedFolder):
    """Metal Parts Defect Detection, 6 categories (Jezek et al., ICUMT 2021).

    ``MPDD/<category>/`` in the layout and with the mask names of MVTec AD; 1024 x 1024 PNG files.
    """

    name = "mpdd"
    title = "MPDD"
    # [recall] by category; the totals, 888 / 176 / 282, are those of a public mirror.
    counts: ClassVar = {
        "bracket_black": Published(289, 32, 47),
        "bracket_brown": Published(185, 26, 51),
        "bracket_white": Published(110, 30, 30),
        "connector": Published(128, 30, 14),
        "metal_plate": Published(54, 26, 71),
        "tubes": Published(122, 32, 69),
    }
    defects: ClassVar = {
        "bracket_black": frozenset({"hole", "scratches"}),
        "bracket_brown": frozenset({"bend_and_parts_mismatch", "parts_mismatch"}),
        "bracket_white": frozenset({"defective_painting", "scratches"}),
        "connector": frozenset({"parts_mismatch"}),
        "metal_plate": frozenset({"major_rust", "scratches", "total_rust"}),
        "tubes": frozenset({"flattening"}),
    }
