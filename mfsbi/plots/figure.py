"""The figure that everything is drawn on, and the colours: truth is dark grey and dashed, the model in colour."""

import matplotlib.figure
import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from numpy.typing import NDArray

__all__ = ["COLOURS", "MODEL", "OFF", "TRUTH", "Array", "Figure", "mend"]

Array = NDArray[np.floating]

TRUTH, MODEL, OFF = "#3b3b3b", "#0b7285", "#d9480f"
COLOURS = MODEL, OFF, TRUTH, "#868e96", "C4", "C2"
"""For several things side by side, in this order."""


class Figure(matplotlib.figure.Figure):
    r"""A matplotlib figure that shows a text as it stands where matplotlib cannot read it as mathematics.

    Names of parameters are LaTeX as their owners write it, of which matplotlib knows a part: an unknown command, such
    as `$\mean{x}$`, would raise an error when the figure is drawn.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        mend(self)
        super().draw(renderer)


def mend(figure: matplotlib.figure.Figure) -> None:
    """Show texts of a figure as they stand where matplotlib cannot read them as mathematics."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_parse_math() and not _can_be_read(text.get_text()):
            text.set_parse_math(False)


def _can_be_read(text: str) -> bool:
    if text.count("$") < 2:
        return True
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return False
    return True
