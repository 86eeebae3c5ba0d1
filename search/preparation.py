"""What a sweep makes sure of before it writes anything: config, methods, images, directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomtune.datasets.io.files import left_out
from anomtune.datasets.io.foreign import list_images
from anomtune.datasets.io.uri import has_secrets, is_uri, mask_uri
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.damage import check_without
from anomtune.datasets.splits.division import Division
from anomtune.datasets.splits.split import SearchSplit, load_search_split
from anomtune.errors import MethodError, SweepError, suggest
from anomtune.names import LONGEST, to_name, to_text
from anomtune.registry import METHODS
from anomtune.search.config import Sweep, check_extends
from anomtune.search.decide.plan import SearchPlan, plan_studies
from anomtune.search.decide.pool import check_deciders
from anomtune.search.decide.scoring import read_studies
from anomtune.search.decide.transfer import Winner, Winners, winners_of
from anomtune.search.detector.opened import few_notes
from anomtune.search.events import Note, Observer
from anomtune.search.metrics.metric import metrics
from anomtune.search.results.logger import logger_makers
from anomtune.search.source import DatasetConfig
from anomtune.search.store.directory import read_config, read_sweep
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage


@dataclass(frozen=True)
class Preparation:
    """A sweep that can run.

    Attributes:
        config: Resolved: an absolute root, categories spelled out, and how undivided images were
            divided.
        plans: How each study is searched.
        splits: What a search may see of each category.
        winners: Configs that won in the sweeps that it is to start from.
    """

    config: Sweep
    plans: dict[StudyKey, SearchPlan]
    splits: dict[str, SearchSplit]
    winners: Winners


def prepare(sweep: Sweep, storage: Storage, on_event: Observer) -> Preparation:
    """Checks all of a sweep and reads its images; writes nothing but the node's cache.

    Raises:
        SweepError, StorageError, DataError, MethodError: If something is not as it must be.
    """
    config = resolve(sweep)
    plans = plan_studies(config)
    check_deciders(config, plans)
    logger_makers(config, storage.location)
    winners = read_winners(config)
    metrics()  # a broken one is told now, not after the first training
    config = leave_out_damage(config, plans, on_event)
    check_directory(storage, config)
    storage.check_writable()  # before images are decoded, which may take hours
    _check_names(storage, config)
    for note in prepare_methods(plans.values(), config.dataset, config.image_size):
        on_event(Note(f"note: {note}"))
    splits = _open_splits(config, on_event)
    return Preparation(_say_division(config, splits, on_event), plans, splits, winners)


def read_winners(config: Sweep) -> dict[str, list[Winner]]:
    """Returns by method the configs that won in the sweeps that a sweep is to start from.

    Raises:
        SweepError: If one of these is not the directory of a sweep of this version.
        StorageError: If one cannot be read.
    """
    found: dict[str, list[Winner]] = {}
    for number, directory in enumerate(config.warm_start):
        try:
            earlier, store = read_sweep(directory)
        except SweepError as error:
            raise SweepError(f"warm_start.{number}: {error}") from None
        trials, runs = read_studies(store), store.read_confirmed()
        for method, winners in winners_of(directory, trials, runs, earlier.confirm).items():
            found.setdefault(method, []).extend(winners)
    return found


def resolve(config: Sweep) -> Sweep:
    """Returns the config with an absolute root and its categories spelled out and checked.

    Raises:
        SweepError, DataError: If there is no such dataset, folder or category.
    """
    root = config.dataset.root
    if root is not None and is_uri(root) and has_secrets(root):
        # The resolved config is written into the sweep directory, for everybody to read.
        raise SweepError(
            f"dataset.root: {mask_uri(root)} carries credentials; take them out and set them in "
            "the environment"
        )
    dataset = config.dataset.open()
    known = dataset.categories()
    for category in config.dataset.categories or ():
        if category not in known:
            raise SweepError(
                f"dataset.categories: no category {category!r}{suggest(category, known)}"
            )
    if root is None and dataset.root is not None:
        root = to_text(dataset.root)
    section = config.dataset.model_copy(
        update={
            # Not resolved: a link's name is the category's, and where it leads may change.
            "root": root if root is None or is_uri(root) else _absolute(root),
            "categories": tuple(dict.fromkeys(config.dataset.categories or known)),
            **dataset.settings(),
        }
    )
    warm_start = []
    for number, directory in enumerate(config.warm_start):
        if is_uri(directory) and has_secrets(directory):
            raise SweepError(
                f"warm_start.{number}: {mask_uri(directory)} carries credentials; take them out "
                "and set them in the environment"
            )
        warm_start.append(directory if is_uri(directory) else _absolute(directory))
    return config.model_copy(update={"dataset": section, "warm_start": tuple(warm_start)})


def leave_out_damage(
    config: Sweep, plans: Mapping[StudyKey, SearchPlan], on_event: Observer
) -> Sweep:
    """Returns the config with what its methods train on left out of synthetic validation.

    Of all methods, not of each: they are to be judged by the same images.

    Raises:
        SweepError: If too few kinds of damage are left.
    """
    if config.validation.protocol != "synthetic":
        return config
    without = set(config.validation.without_damage)
    reasons = []
    for name in config.methods:
        configs = (v for key, plan in plans.items() if key.method == name for v in plan.variants())
        damage = frozenset().union(*(variant.training_damage() for variant in configs))
        if damage:
            reasons.append(f"{name} may train on {', '.join(sorted(damage))}")
            without |= damage
    for reason in reasons:
        on_event(Note(f"{reason}: left out of the validation"))
    try:
        check_without(without)
    except ValueError as error:
        message = "; ".join([f"validation.without_damage: {error}", *reasons])
        raise SweepError(message) from None
    section = config.validation.model_copy(update={"without_damage": tuple(sorted(without))})
    return config.model_copy(update={"validation": section})


def _absolute(root: str) -> str:
    return to_text(Path(to_name(root)).expanduser().absolute())


def _check_foreign(folder: Path, dataset: DatasetConfig) -> list[str]:
    """Makes sure that a folder of foreign images is one, everywhere, and holds no test image."""
    if not folder.is_absolute():
        raise SweepError(f"{folder}: give the folder by its absolute path, for every worker")
    local = dataset.root is None or not is_uri(dataset.root)
    for place in dataset.open().places() if local else ():
        images = place.resolve()
        if folder.resolve().is_relative_to(images) or images.is_relative_to(folder.resolve()):
            raise SweepError(
                f"{folder}: overlaps the dataset in {place}, whose test images nothing may learn "
                "from; give another folder"
            )
    passed_over: list[Path] = []
    list_images(folder, passed_over)
    return [f"{folder}: {left_out(passed_over)}"] if passed_over else []


def prepare_methods(
    plans: Iterable[SearchPlan], dataset: DatasetConfig, image_size: int
) -> tuple[str, ...]:
    """Makes sure, before any trial, that every config can be trained.

    Its weights and foreign images can be had, and its network can see images of its size.

    Returns:
        What was passed over among the foreign images, a line for each folder.
    """
    # Most categories are searched alike: each config is looked at once.
    configs = {
        (plan.method, config.model_dump_json()): config
        for plan in plans
        for config in plan.variants()
    }
    found: list[str] = []
    for (method, _), config in configs.items():
        detector = METHODS.get(method)
        detector.prepare(config)
        try:
            detector.check_input_size(config, image_size)
        except MethodError as error:
            raise SweepError(f"methods.{method}: {error}") from None
        source = config.foreign_images()
        if source is not None and source != "categories":
            found += _check_foreign(Path(source).expanduser(), dataset)
    return tuple(dict.fromkeys(found))


def check_directory(storage: Storage, config: Sweep) -> None:
    """Makes sure that a sweep may begin, or go on, in a directory.

    Raises:
        SweepError: If another sweep is there.
    """
    earlier = read_config(storage)
    if earlier is not None:
        check_extends(earlier, config, storage.location)


def _check_names(storage: Storage, config: Sweep) -> None:
    """Raises SweepError if a category's name, as text, is too long for a folder of results."""
    for category in config.dataset.categories or ():
        if storage.local_root is not None and len(category.encode()) > LONGEST:
            raise SweepError(
                f"dataset.categories: {category}: too long for a folder of results; rename it"
            )


def _open_splits(config: Sweep, on_event: Observer) -> dict[str, SearchSplit]:
    """Decodes the images that are not in this machine's cache yet."""
    dataset = config.dataset.open()
    splits = {}
    _note_all(config, on_event, [str(problem) for problem in dataset.warnings()])
    for category in config.dataset.categories or ():
        on_event(Note(f"reading {config.dataset.name}/{category}"))
        split = load_search_split(dataset, category, config.image_size, config.validation)
        missing = find_missing(dataset, category, dataset.scan(category)[0])
        _note_all(config, on_event, [*map(str, missing), *split.warnings, *split.dropped])
        splits[category] = split
    return splits


def _say_division(config: Sweep, splits: Mapping[str, SearchSplit], on_event: Observer) -> Sweep:
    """Returns the config with what the division of undivided images has given.

    Raises:
        SweepError: If it was to give something else, or there is nothing to divide.
    """
    made = {name: found.division for name, found in splits.items() if found.division is not None}
    given = config.dataset.division
    if not made:
        if given is not None:
            raise SweepError("dataset.division: all images are in train or test already; remove it")
        return config
    rule = given or Division()
    for category, counts in made.items():
        expected = rule.counts.get(category, counts)
        if expected != counts:
            raise SweepError(
                f"dataset.division.counts.{category}: {expected}, it says, but now {counts}; "
                "restore the images, or remove the counts"
            )
        on_event(Note(f"{category}: {rule}: {counts}"))
    section = config.dataset.model_copy(
        update={"division": rule.model_copy(update={"counts": {**rule.counts, **made}})}
    )
    return config.model_copy(update={"dataset": section})


def _note_all(config: Sweep, on_event: Observer, messages: Sequence[str]) -> None:
    for note in few_notes(config.dataset, messages):
        on_event(Note(note))
