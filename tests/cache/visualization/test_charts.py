import re

import numpy as np

from cache.visualization.charts import GROUND, histogram


def test_heights_are_logarithms_of_counts() -> None:
    drawing = histogram(np.array([0, 1, 99]), "low", "high", "<name>")
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', drawing)]
    tallest = GROUND - 6
    np.testing.assert_allclose(heights, [tallest * np.log(2) / np.log(100), tallest], atol=0.05)
    assert "low" in drawing
    assert "tallest: 99" in drawing
    assert "<name>" not in drawing


def test_nothing_counted_is_nothing_drawn() -> None:
    assert "<rect" not in histogram(np.zeros(4, int), "0", "1", "codes")
