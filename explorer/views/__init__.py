"""The page.  Panel, Bokeh and HoloViews are imported in this package and nowhere else.

Importing the package imports none of them: in a notebook their settings are made first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from explorer.session import Session

if TYPE_CHECKING:
    import pandas as pd

    from explorer.study import Drawn, Told


def view(session: Session) -> Any:
    """The page of a session, for a notebook's cell or for a server."""
    from explorer.views.notebook import in_notebook, prepare

    inside = in_notebook()
    if inside:
        prepare()
    from explorer.views.app import Page

    page = Page(session)
    return page.cell() if inside else page.view()


def plot(found: Drawn, log: bool | None = None, height: int = 280) -> Any:
    """The figure of a result by itself; see :meth:`explorer.study.Drawn.plot`."""
    from explorer.views.notebook import stay_here

    stay_here()
    from explorer.views.single import drawing

    return drawing(found, log, height)


def words(found: Told) -> str:
    """A result in words and tables, HTML with everything escaped that is not of our making."""
    from explorer.views.notebook import stay_here

    stay_here()
    from explorer.views.single import told

    return told(found)


def styled(frame: pd.DataFrame) -> Any:
    """A table of the session's to be looked at; see :func:`explorer.study.styled`."""
    from explorer.views.frames import styled

    return styled(frame)
