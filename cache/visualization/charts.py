"""Histograms as drawings inside a page (SVG): they need no library, no script and little room."""

import math

import numpy as np
from jaxtyping import Int

from cache.visualization.markup import Html, element

WIDTH, HEIGHT, GROUND = 320, 110, 92


def histogram(counts: Int[np.ndarray, "_"], low: str, high: str, name: str) -> Html:
    """Bars whose heights are logarithms of counts, between two labels; a bar that counts 1 can still be seen."""
    most = max(1, int(counts.max()))
    width = WIDTH / len(counts)
    bars = []
    for place in np.flatnonzero(counts).tolist():
        height = (GROUND - 6) * math.log1p(int(counts[place])) / math.log1p(most)
        size = {"width": f"{0.95 * width:.2f}", "height": f"{height:.1f}"}
        bars.append(element("rect", x=f"{place * width:.2f}", y=f"{GROUND - height:.1f}", **size))
    ground = element("line", x1=0, x2=WIDTH, y1=GROUND, y2=GROUND)
    labels = (
        element("text", low, x=0, y=HEIGHT - 3),
        element("text", f"tallest: {most:,}", x=WIDTH / 2, y=HEIGHT - 3, text_anchor="middle"),
        element("text", high, x=WIDTH, y=HEIGHT - 3, text_anchor="end"),
    )
    drawing = element(
        "svg", *bars, ground, *labels, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=name, class_="histogram"
    )
    return element("figure", drawing, element("figcaption", name), class_="chart")
