"""Which mask belongs to which image: by name, in whatever folders they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from anomtune.datasets.io.files import Listing, is_folder
from anomtune.names import to_name

_SUFFIX = "_mask"


def pair(
    listing: Listing,
    images: Mapping[str, str],
    masks: Mapping[str, str],
    *,
    images_in: str,
    masks_in: str,
) -> dict[str, str]:
    """Pairs masks with images of the same name; what does not pair is reported.

    Args:
        listing: Takes the problems.
        images: Keys of the images of a defect type, and their names without a suffix.
        masks: Keys of masks, and theirs; a mask's may end in ``_mask``.
        images_in: Where the images are, for messages.
        masks_in: Where the masks are.

    Returns:
        The key of the mask by that of its image.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, name in images.items():
        by_name[name].append(key)
    of: dict[str, list[str]] = defaultdict(list)
    for key, name in masks.items():
        plain = name.removesuffix(_SUFFIX)
        owner = plain if plain in by_name else name
        if owner in by_name:
            of[owner].append(key)
        else:
            listing.problem(
                key,
                f"mask without image: nothing named {plain!r} in {images_in}; rename or remove it",
            )
    paired: dict[str, str] = {}
    for name, keys in by_name.items():
        found = of.get(name, [])
        if len(found) > 1:
            listing.problem(
                keys[0],
                f"has {len(found)} masks ({', '.join(found)}); keep one, or put them into a "
                f"folder {masks_in}/{name}, whose masks count together",
            )
        if found and len(keys) > 1:
            listing.problem(
                keys[0],
                f"shares its name, and so its mask, with {', '.join(keys[1:])}; rename one",
            )
        paired |= dict.fromkeys(keys, found[0]) if found else {}
    return paired


def report_bare(
    listing: Listing, images: Mapping[str, str], paired: Mapping[str, str], where: str, masks: str
) -> None:
    """Names the images that have no mask while others have one.

    Args:
        listing: Takes the warnings.
        images: Keys of the images of a defect type.
        paired: Those that have a mask.
        where: Where the images are.
        masks: Where their masks belong.
    """
    bare = [key for key in images if key not in paired]
    if len(bare) == len(images) and len(images) > 1:
        there = is_folder(listing.folder / to_name(masks))
        what = "no masks here" if there else "no such folder"
        what += f"; all {len(images)} images of {where} are left out of pixel metrics"
        listing.warn(masks, f"{what}: copy their masks again")
    else:
        for key in bare:
            listing.warn(key, "no mask, while others have one; left out of pixel metrics")
