"""GNL: what is trained on which view, what is matched at test time, and what survives a state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.gnl import GNL, GNLHyperparameters, GNLScoring
from anomtune.models.images.augmix import AugMix
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.backbones import load_backbone
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.feature_matching import MatchedEncoder
from anomtune.models.layers.losses import global_loss
from anomtune.models.layers.maps import distance_maps
from anomtune.models.layers.reverse_distillation import Student
from anomtune.models.ranges import ranges_of
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters
from anomtune.models.scoring import Scoring
from anomtune.models.testing import check_method

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 3}
CPU = torch.device("cpu")


def build(seed: int = 0, **fields: Any) -> GNL:
    return GNL(GNLHyperparameters(**{**SMALL, **fields}), image_size=64, seed=seed)


def images(n: int = 6, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("fields", "image_size"),
    [
        ({}, 64),
        (
            {
                "scoring": {"fdm": "both", "fdm_stages": "1,2,3"},
                "reference": "random",
                "augmix": "pacs",
            },
            64,
        ),
        ({"scoring": {"fdm": "none"}, "weight_lowf": 0.0, "loss": "global_hm"}, 32),
        ({"backbone": "resnet18", "scoring": {"fdm": "mixstyle"}, "weight_abs": 0.0}, 32),
    ],
)
def test_gnl_keeps_the_contract(fields: dict[str, Any], image_size: int) -> None:
    diverging = GNLHyperparameters(**{**SMALL, **fields, "lr": 1e30})
    check_method(
        GNL,
        GNLHyperparameters(**{**SMALL, **fields}),
        diverging=diverging if image_size == 64 else None,
        image_size=image_size,
    )


def test_defaults_are_the_papers() -> None:
    hp = GNLHyperparameters()
    assert (hp.weight_ori, hp.weight_abs, hp.weight_lowf) == (0.9, 0.05, 0.05)
    assert (hp.epochs, hp.lr, hp.batch_size, hp.loss) == (20, 5e-3, 16, "global")
    how = hp.scoring
    assert (hp.backbone, hp.augmix, how.sigma, how.reduce) == ("wide_resnet50_2", "mvtec", 4, "max")
    assert (how.fdm, how.fdm_weight, how.fdm_stages, hp.reference) == ("efdm", 0.5, "1,2", "first")
    assert hp.training_iterations(37) == 60
    assert {"weight_abs", "weight_lowf"} <= hp.search_space().keys()
    assert {"fdm", "fdm_weight", "fdm_stages"} <= ranges_of(GNLScoring).keys()
    fixed = {"weight_ori", "epochs", "lr", "loss", "augmix", "reference", "batch_size"}
    assert not fixed & hp.search_space().keys()
    optimizer = build().optimizers[0]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    assert optimizer.defaults["lr"] == 5e-3


def test_the_network_is_rd4ads() -> None:
    gnl, rd4ad = build(), RD4AD(RD4ADHyperparameters(**SMALL), image_size=64)
    ours, theirs = gnl.network.state_dict(), rd4ad.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_without_views_it_is_rd4ad_to_the_bit() -> None:
    gnl = build(weight_ori=1.0, weight_abs=0.0, weight_lowf=0.0, scoring={"fdm": "none"})
    rd4ad = RD4AD(RD4ADHyperparameters(**SMALL), image_size=64)
    gnl.fit(images(), 3)
    rd4ad.fit(images(), 3)
    assert torch.equal(gnl.anomaly_maps(images()), rd4ad.anomaly_maps(images()))


def test_the_views_are_original_augmix_and_grey() -> None:
    detector = build(seed=3)
    batch = images(4)
    original, mixed, grey = detector.batch(batch, torch.arange(4)).chunk(3)
    assert torch.equal(original, normalise(batch, CPU))
    augmix = AugMix("mvtec", build(seed=3).generator)
    assert torch.equal(mixed, normalise(augmix(batch), CPU))
    # ITU-R 601, of channels that are normalised already.
    red, green, blue = original.unbind(1)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    for channel in grey.unbind(1):
        torch.testing.assert_close(channel, expected, rtol=0, atol=5e-4)


def expected_loss(detector: GNL, views: Tensor) -> Tensor:
    """The loss as the official code computes it: each view passes on its own."""
    encoder, student = detector.network.encoder, detector.network.student
    original, *others = (encoder(view) for view in views.chunk(3))
    embedding = student.bottleneck(original)
    decoded = student.decoder(embedding)[0]
    ori = global_loss(list(zip(original, decoded, strict=True)))
    absolute, lowest = torch.zeros(()), torch.zeros(())
    for view in others:
        view_embedding = student.bottleneck(view)
        absolute = absolute + global_loss([(embedding, view_embedding)])
        lowest = lowest + global_loss([(decoded[0], student.decoder(view_embedding)[0][0])])
    hp = detector.hyperparameters
    return hp.weight_ori * ori + hp.weight_abs * absolute + hp.weight_lowf * lowest


@pytest.mark.parametrize("weights", [(0.9, 0.05, 0.05), (0.0, 1.0, 0.0), (0.5, 0.0, 0.2)])
def test_the_loss_is_that_of_the_official_code(weights: tuple[float, float, float]) -> None:
    fields = dict(zip(("weight_ori", "weight_abs", "weight_lowf"), weights, strict=True))
    ours, theirs = build(**fields), build(**fields)
    views = ours.batch(images(4), torch.arange(4))
    losses = []
    for detector, loss in (
        (ours, lambda: ours.loss(views, 0, 100)),
        (theirs, lambda: expected_loss(theirs, views)),
    ):
        detector.network.train()
        losses.append(loss())
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    pairs = zip(
        ours.network.student.named_parameters(),
        theirs.network.student.named_parameters(),
        strict=True,
    )
    for (name, actual), (_, expected) in pairs:
        # What takes no part has no gradient, in one of them by way of a zero.
        gradients = [torch.zeros(()) if p.grad is None else p.grad for p in (actual, expected)]
        shared = torch.broadcast_tensors(*gradients)
        torch.testing.assert_close(*shared, rtol=1e-2, atol=1e-5, msg=name)


def test_every_view_has_its_own_batch_statistics() -> None:
    ours, theirs = build(), build()
    views = ours.batch(images(4), torch.arange(4))
    for detector in (ours, theirs):
        detector.network.train()
    ours.loss(views, 0, 100)
    expected_loss(theirs, views)
    for (name, actual), expected in zip(
        ours.network.state_dict().items(), theirs.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5, msg=name)
        if name.startswith("student.bottleneck") and name.endswith("num_batches_tracked"):
            assert actual == 3


def test_identical_views_cost_nothing() -> None:
    detector = build(weight_ori=0.0, weight_abs=1.0, weight_lowf=1.0)
    detector.network.train()
    original = normalise(images(4), CPU)
    assert detector.loss(original.repeat(3, 1, 1, 1), 0, 100).item() == pytest.approx(0, abs=1e-5)
    assert detector.loss(detector.batch(images(4), torch.arange(4)), 0, 100).item() > 1e-2


def test_a_weight_of_0_spares_the_work() -> None:
    def calls(**fields: Any) -> tuple[int, int, int]:
        detector = build(**fields)
        counts = {"encoder": 0, "bottleneck": 0, "decoder": 0}

        def count(name: str, module: nn.Module) -> None:
            def hook(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
                counts[name] += 1

            module.register_forward_hook(hook)

        count("encoder", detector.network.encoder)
        count("bottleneck", detector.network.student.bottleneck)
        count("decoder", detector.network.student.decoder)
        detector.fit(images(), 1)
        return counts["encoder"], counts["bottleneck"], counts["decoder"]

    assert calls() == (1, 3, 3)
    assert calls(weight_lowf=0.0) == (1, 3, 1)
    assert calls(weight_abs=0.0) == (1, 3, 3)
    assert calls(weight_abs=0.0, weight_lowf=0.0) == (1, 1, 1)


def test_the_teacher_stays_as_it_is() -> None:
    detector = build()
    before = {k: v.clone() for k, v in detector.network.encoder.state_dict().items()}
    detector.fit(images(), 3)
    after = detector.network.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("fdm", ["efdm", "mixstyle", "both"])
@pytest.mark.parametrize("stages", ["2", "1,2", "1,2,3"])
def test_maps_are_of_matched_features(fdm: str, stages: str) -> None:
    detector = build(scoring={"fdm": fdm, "fdm_stages": stages, "fdm_weight": 0.3})
    detector.fit(images(), 1)
    maps = detector.anomaly_maps(images(4, seed=2))
    network = detector.network
    with torch.no_grad():
        matched = MatchedEncoder(
            network.encoder,
            normalise(images()[:1], CPU),
            fdm,  # type: ignore[arg-type]
            0.3,
            [int(stage) for stage in stages.split(",")],
        )
        # Matched maps are both what the student decodes and what it is compared with.
        targets = matched(normalise(images(4, seed=2), CPU))
        pairs = list(zip(targets, network.student(targets)[0], strict=True))
        expected, _ = detector.judge(Evidence(distance_maps(pairs)), Scoring(sigma=4.0))
    torch.testing.assert_close(maps, expected)


def maps_with(state: dict[str, Tensor], **scoring: Any) -> Tensor:
    detector = build(scoring=scoring)
    detector.load_state_dict(state)
    return detector.anomaly_maps(images(4, seed=2))


def test_every_setting_of_the_matching_changes_the_maps() -> None:
    trained = build()
    trained.fit(images(), 1)
    state = trained.state_dict()
    plain = maps_with(state, fdm="none")
    assert torch.equal(plain, maps_with(state, fdm_weight=0.0))
    settings: list[dict[str, Any]] = [
        {},
        {"fdm": "mixstyle"},
        {"fdm": "both"},
        {"fdm_weight": 0.9},
        *({"fdm_stages": stages} for stages in ("1", "2", "3", "1,3", "2,3", "1,2,3")),
    ]
    results = [plain, *(maps_with(state, **fields) for fields in settings)]
    for i, a in enumerate(results):
        assert not any(torch.equal(a, b) for b in results[:i]), settings[i - 1]


def test_a_shift_of_brightness_and_contrast_moves_matched_maps_less() -> None:
    """FDM is there to take a style off; with all of the reference's style least is left of it."""

    def moved(weight: float) -> float:
        detector = build(scoring={"fdm_weight": weight})
        detector.fit(images(), 1)
        test = images(4, seed=2)
        shifted = (test.float() * 0.4 + 90).to(torch.uint8)
        maps = detector.anomaly_maps(test)
        return float((detector.anomaly_maps(shifted) - maps).abs().mean() / maps.mean())

    plain, half, whole = (moved(weight) for weight in (0.0, 0.5, 1.0))
    assert whole < half < plain


def test_the_reference_is_the_first_image_or_a_random_one() -> None:
    training = images(40)
    first = build()
    first.fit(training, 1)
    assert torch.equal(first.state_dict()["reference"], training[:1])
    found = set()
    for seed in (0, 0, 1, 2):
        detector = build(seed=seed, reference="random")
        detector.fit(training, 1)
        reference = detector.state_dict()["reference"]
        matches = [i for i, image in enumerate(training) if torch.equal(image, reference[0])]
        assert len(matches) == 1
        found.add((seed, *matches))
    assert len(found) == 3, "the choice follows the seed"
    assert len({index for _, index in found}) > 1
    # It stays the one chosen first, whatever comes later.
    first.fit(images(40, seed=9), 1)
    assert torch.equal(first.state_dict()["reference"], training[:1])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_reference_is_a_copy_and_survives_a_state(memory_format: torch.memory_format) -> None:
    training = images().contiguous(memory_format=memory_format)
    detector = build()
    detector.fit(training, 1)
    maps = detector.anomaly_maps(training)
    copy = build(seed=7)
    copy.fit(images(seed=5), 1)
    copy.anomaly_maps(training)  # another reference and another teacher are cached now
    copy.load_state_dict(detector.state_dict())
    training.zero_()
    assert torch.equal(detector.state_dict()["reference"], images()[:1])
    assert torch.equal(copy.anomaly_maps(images()), maps)
    untrained = build()
    assert "reference" not in untrained.state_dict()
    copy.load_state_dict(untrained.state_dict())
    assert torch.equal(copy.anomaly_maps(images()), untrained.anomaly_maps(images()))


def test_the_reference_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = MatchedEncoder.__init__

    def counted(self: MatchedEncoder, *args: Any) -> None:
        built.append(args)
        original(self, *args)

    monkeypatch.setattr(MatchedEncoder, "__init__", counted)
    detector = build()
    detector.fit(images(), 1)
    for _ in range(3):
        detector.score(images(), batch_size=2)
        detector.fit(images(), 1)
    assert len(built) == 1
    detector.load_state_dict(detector.state_dict())
    detector.score(images())
    assert len(built) == 2


def test_28_pixels_do_not_fit_the_networks() -> None:
    """Why MNIST is trained at 32 pixels, whatever the supplement says (METHODS 5.6)."""
    with torch.device("meta"):
        encoder = load_backbone("resnet18", "random")
        student = Student(encoder).eval()
        features = encoder(torch.empty(1, 3, 28, 28))
        embedding = student.bottleneck(features)
        decoded = student.decoder(embedding)[0]
    assert [feature.shape[-1] for feature in features] == [7, 4, 2]
    assert embedding.shape[-1] == 1
    assert [feature.shape[-1] for feature in decoded] == [8, 4, 2]
    with pytest.raises(MethodError, match="use 32 or another multiple of 32"):
        GNL(GNLHyperparameters(**SMALL), image_size=28)


def test_views_and_matched_maps_keep_the_memory_format_of_the_network() -> None:
    detector = build()
    detector.fit(images(), 1)
    batch = images(4)
    parts = [
        detector.batch(batch, torch.arange(4)),
        *(pair[0] for pair in detector.pairs(normalise(batch, CPU))),
    ]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in parts)
