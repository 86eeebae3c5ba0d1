"""The contract of a method, as checks that authors of methods run in their own tests."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from anomtune.errors import TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.backbones import weights_come_later
from anomtune.models.training.report import Histogram


def check_method(
    method: type[Detector[Any]],
    hyperparameters: Hyperparameters | None = None,
    *,
    diverging: Hyperparameters | None = None,
    image_size: int = 64,
) -> None:
    """Checks that a method keeps what `Detector` promises, on a CPU.

    Args:
        method: The detector class.
        hyperparameters: Settings to check it with, best with a small network; default: the
            method's defaults.
        diverging: Settings whose loss must become NaN or infinite within 60 iterations, for
            instance with an absurd learning rate; None leaves this out.
        image_size: Side of the images in pixels.

    Raises:
        AssertionError: If a promise is broken; the message says which.
    """
    hp = method.Hyperparameters() if hyperparameters is None else hyperparameters
    images = _images(7, hp.input_size(image_size))
    _check_hyperparameters(method, hp)
    _check_results(_new(method, hp, image_size), images)
    _check_reproducible(method, hp, images, image_size)
    _check_state(method, hp, images, image_size)
    if diverging is not None:
        _check_divergence(_new(method, diverging, image_size), images)


def check_detects(
    method: type[Detector[Any]],
    hyperparameters: Hyperparameters,
    *,
    train: Tensor,
    clean: Tensor,
    defective: Tensor,
    image_size: int,
    foreign: Tensor | None = None,
) -> None:
    """Checks that images with an obvious defect score above their clean twins after training.

    Args:
        method: The detector class.
        hyperparameters: Settings with which it trains as long as it needs, in seconds.
        train: Normal images, uint8 ``(N, 3, I, I)``.
        clean: Normal images that are not among them, ``(M, 3, I, I)``.
        defective: The same ``M`` images, each with a defect that anybody would see.
        image_size: Side of the maps in pixels.
        foreign: Images of other things, see `Detector.foreign`.

    Raises:
        AssertionError: If a defective image does not score above its twin.
    """
    detector = _new(method, hyperparameters, image_size)
    detector.foreign = foreign
    detector.fit(train, hyperparameters.training_iterations(len(train)))
    maps, scored = detector.predict(torch.cat([clean, defective]))
    assert maps.isfinite().all(), "maps are not finite"
    assert maps.shape[1:] == (image_size, image_size), f"maps have shape {tuple(maps.shape)}"
    scores = scored.cpu()
    below, above = scores[: len(clean)], scores[len(clean) :]
    wrong = (above <= below).nonzero().flatten().tolist()
    assert not wrong, f"defective images {wrong} score no higher than their clean twins"


def check_memory(
    method: type[Detector[Any]],
    hyperparameters: Hyperparameters,
    *,
    image_size: int = 64,
    fits: int = 50,
    tolerance: int = 32 * 2**20,
) -> None:
    """Checks that a process may train many detectors one after the other, as a worker does.

    Args:
        method: The detector class.
        hyperparameters: Settings with a small network.
        image_size: Side of the maps in pixels.
        fits: Number of detectors; the first fifth warms up.
        tolerance: Growth of the process's resident memory that is forgiven, in bytes (allocators
            keep some).

    Raises:
        AssertionError: If tensors or resident memory pile up.
    """
    images = _images(5, hyperparameters.input_size(image_size))
    before: tuple[int, int] | None = None
    for number in range(fits):
        detector = _new(method, hyperparameters, image_size, seed=number % 3)
        detector.fit(images, 1)
        detector.score(images)
        del detector
        if number == fits // 5:
            before = _memory()
    assert before is not None, "fits must be at least 1"
    tensors, resident = _memory()
    assert tensors <= before[0], f"{tensors - before[0]} tensors are left over"
    grown = resident - before[1]
    assert grown <= tolerance, f"resident memory grew by {grown / 2**20:.0f} MiB"


def _memory() -> tuple[int, int]:
    """Returns the number of live tensors and, on Linux, the resident memory in bytes.

    Without pages of files: the system drops and reads those of libraries as it likes.
    """
    gc.collect()
    tensors = sum(issubclass(type(item), Tensor) for item in gc.get_objects())
    statm = Path("/proc/self/statm")
    pages = 0
    if statm.exists():
        _, resident, of_files, *_ = map(int, statm.read_text(encoding="ascii").split())
        pages = resident - of_files
    return tensors, pages * 4096


def _new(
    method: type[Detector[Any]], hp: Hyperparameters, image_size: int, seed: int = 0
) -> Detector[Any]:
    return method(hp, image_size=image_size, device="cpu", seed=seed)


def _images(n: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def _check_hyperparameters(method: type[Detector[Any]], hp: Hyperparameters) -> None:
    assert issubclass(method.Hyperparameters, Hyperparameters), "Hyperparameters has a wrong base"
    for name, field in method.Hyperparameters.model_fields.items():
        assert field.description, f"{name} has no description"
    for setting in method.Hyperparameters.settings:
        method.Hyperparameters(**setting.values)
        assert setting.values, f"a setting for {setting.dataset} changes nothing"
        assert setting.source, f"a setting for {setting.dataset} names no source"
    for name, fields in method.Hyperparameters.presets.items():
        method.Hyperparameters(**fields)
        assert fields, f"preset {name} changes nothing"
    total = hp.training_iterations(7)
    assert isinstance(total, int), "training_iterations must be an integer"
    assert total > 0, "training_iterations must be positive"
    method.prepare(hp)


def _check_results(detector: Detector[Any], images: Tensor) -> None:
    before = images.clone()
    random_state = torch.get_rng_state()
    report = detector.fit(images, 2)
    for name, value in report.items():
        kind = type(value).__name__
        assert isinstance(value, float | Histogram), f"fit reports {name} as {kind}"
    assert detector.iteration == 2, "iteration does not count the steps"
    _check_evidence(detector, images)
    n, size = len(images), detector.image_size
    maps, scores = detector.predict(images)
    assert maps.shape == (n, size, size), f"maps have shape {tuple(maps.shape)}"
    assert maps.dtype == torch.float32, f"maps are {maps.dtype}"
    assert maps.isfinite().all(), "maps are not finite"
    assert not maps.requires_grad, "maps carry a gradient"
    assert scores.shape == (n,), f"scores have shape {tuple(scores.shape)}"
    assert scores.dtype == torch.float32, f"scores are {scores.dtype}"
    torch.testing.assert_close(
        detector.score(images, batch_size=3), scores.cpu(), rtol=1e-3, atol=1e-4
    )
    assert torch.equal(images, before), "the images were written to"
    assert torch.equal(torch.get_rng_state(), random_state), "the global random state was used"


def _check_evidence(detector: Detector[Any], images: Tensor) -> None:
    names, own = detector.hyperparameters.scales, detector.scoring
    evidence = detector.observe(images)
    assert len(evidence.maps) == len(names), f"{len(evidence.maps)} maps, and scales names {names}"
    for name, maps in zip(names, evidence.maps, strict=True):
        assert maps.ndim == 3, f"the evidence's {name} has shape {tuple(maps.shape)}"
        assert len(maps) == len(images), f"the evidence's {name} has {len(maps)} maps"
        assert maps.dtype == torch.float32, f"the evidence's {name} is {maps.dtype}"
    detector.learn_normal(images)
    kinds = {(s.normalise, s.sigma, s.reduce): s for s in own.alternatives(names)}
    for scoring in kinds.values():  # each once, on few images
        detector.scoring = scoring
        found = detector.score(images[:2])
        assert found.isfinite().all(), f"scores are not finite with {scoring}"
    detector.scoring = own
    again = detector.judge(evidence, own)[1]
    assert torch.equal(detector.predict(images)[1], again), "another scoring left something behind"


def _check_reproducible(
    method: type[Detector[Any]], hp: Hyperparameters, images: Tensor, size: int
) -> None:
    once, again, other = (_new(method, hp, size, seed) for seed in (0, 0, 1))
    once.fit(images, 4)
    with torch.random.fork_rng(devices=[]):
        # A detector has its own random state. Not torch.manual_seed: it seeds the GPUs as well.
        torch.default_generator.manual_seed(1234)
        for _ in range(2):
            again.fit(images, 2)
            again.anomaly_maps(images[:2])  # looking must not change the training
    _assert_same(once.state_dict(), again.state_dict(), "fit(2) twice differs from fit(4)")
    other.fit(images, 4)
    assert not torch.equal(once.score(images), other.score(images)), "the seed has no effect"


def _check_state(
    method: type[Detector[Any]], hp: Hyperparameters, images: Tensor, size: int
) -> None:
    original, copy = _new(method, hp, size, 0), _new(method, hp, size, 5)
    original.fit(images, 3)
    state = original.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values()), "the state is not flat"
    copy.load_state_dict(_through_safetensors(state))
    assert copy.iteration == 3, "the iteration is not restored"
    _assert_same(state, copy.state_dict(), "the state does not round-trip")
    assert torch.equal(original.anomaly_maps(images), copy.anomaly_maps(images)), (
        "maps differ after a round-trip"
    )
    with weights_come_later():
        reader = _new(method, hp, size, 6)
    reader.load_inference_state(_through_safetensors(original.inference_state()))
    assert torch.equal(original.anomaly_maps(images), reader.anomaly_maps(images)), (
        "maps differ after a round-trip of the inference state"
    )
    snapshot = {name: value.clone() for name, value in state.items()}
    original.fit(images, 2)
    _assert_same(state, snapshot, "training changes a state that was returned earlier")
    copy.fit(images, 2)
    _assert_same(
        original.state_dict(), copy.state_dict(), "training goes on differently after loading"
    )


def _through_safetensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return load(save(state))
    except (ValueError, RuntimeError) as error:  # strided tensors; tensors that share memory
        raise AssertionError(f"the state does not fit in a safetensors file: {error}") from error


def _check_divergence(detector: Detector[Any], images: Tensor) -> None:
    for _ in range(15):
        try:
            detector.fit(images, 4)
        except TrainingDivergedError:
            return
    raise AssertionError("a loss that is not finite does not raise TrainingDivergedError")


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor], message: str) -> None:
    assert a.keys() == b.keys(), f"{message}: {sorted(a.keys() ^ b.keys())[:3]}"
    for name, value in a.items():
        assert torch.equal(value, b[name]), f"{message}: {name}"
