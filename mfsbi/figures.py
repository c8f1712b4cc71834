"""Figures that can be drawn whatever the names in them."""

from typing import Any

import matplotlib.figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

__all__ = ["Figure", "mend"]


class Figure(matplotlib.figure.Figure):
    r"""A matplotlib figure that shows a text as it stands where matplotlib cannot read it as mathematics.

    Names of parameters are LaTeX as their owners write it, and matplotlib knows a part of it: an unknown command, such
    as `$\mean{x}$`, would be an error when the figure is drawn, after all the work.
    """

    def draw(self, renderer: Any) -> None:  # noqa: ANN401
        """Draw the figure."""
        mend(self)
        super().draw(renderer)


def mend(figure: matplotlib.figure.Figure) -> None:
    """Let texts be shown as they stand where matplotlib cannot read them as mathematics."""
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
