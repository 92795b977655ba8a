from __future__ import annotations

import numpy as np
import pytest

from tutelage.train.describe import _histogram


@pytest.mark.parametrize("values", [[1], [5, 5, 5], list(range(1, 5000, 7)), [0]])
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    found = _histogram(np.array(values))
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"] == sorted(set(found["edges"]))
