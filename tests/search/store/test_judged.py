"""What every scoring says of a training, packed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anomtune.search.store.judged import Judged


@given(normal=st.integers(1, 300), anomalous=st.integers(1, 300), seed=st.integers(0, 999))
def test_aurocs_of_few_images_are_kept_exactly(normal, anomalous, seed):
    labels = np.repeat([0, 1], [normal, anomalous])
    steps = 2 * normal * anomalous
    values = np.random.default_rng(seed).integers(0, steps + 1, 9) / steps
    assert np.array_equal(Judged.of(labels, values).values(), values)


def test_of_very_many_images_they_are_nearly_exact():
    labels = np.repeat([0, 1], 60_000)
    values = np.array([0.0, 0.5, 0.987654321, 1.0])
    judged = Judged.of(labels, values, values, values, values)
    np.testing.assert_allclose(judged.values(), values, atol=1e-9)
    assert Judged.model_validate_json(judged.model_dump_json()) == judged
    assert judged.interval(2) == (judged.values()[2],) * 2
