"""What a result looks like in a notebook.

Drawing is the views' business.  They lie behind the studies, so they are loaded when a notebook, or a user, asks for
something to look at; nothing else in the studies knows of them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd


class Told:
    """A result with words: a notebook shows its numbers with their intervals."""

    def _repr_html_(self) -> str:
        from explorer.views import words

        return words(self)


class Drawn(Told):
    """A result with a figure."""

    def plot(self, log: bool | None = None, height: int = 280) -> Any:
        """The figure that the page draws of it, for a notebook's cell; ``.figure`` is Bokeh's, ``.save(path)`` a file.

        Args:
            log: counts (of channels: values) by decades; None as the page begins.
            height: pixels.

        Raises:
            SchemeError: for ``log`` where the figure has no such axis, and a height that is no size.
        """
        from explorer.views import plot

        return plot(self, log, height)


def styled(frame: pd.DataFrame) -> Any:
    """A table of the session's to be looked at: numbers in their units, estimates and intervals marked, the worst bold.

    The table itself stays what it is; this is a pandas ``Styler`` (``.to_html()``, ``.to_latex()``, ...).

    Args:
        frame: of ``session.sensitivity``, ``session.layers`` or ``session.formats``.

    Raises:
        SchemeError: for another table.

    >>> import explorer as qx
    >>> session = qx.Session(model="fashion-lenet5")
    >>> table = qx.styled(session.sensitivity("int2", "sqnr", "weight"))
    >>> list(table.columns)
    ['layer', 'format', 'value', 'tier', 'weight SQNR', 'note']
    """
    from explorer.views import styled

    return styled(frame)
