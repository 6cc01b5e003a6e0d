"""The page.  Panel, Bokeh and HoloViews are imported in this package and nowhere else.

Importing the package imports none of them: in a notebook their settings are made first.
"""

from __future__ import annotations

from typing import Any

from explorer.session import Session


def view(session: Session) -> Any:
    """The page of a session, for a notebook's cell or for a server."""
    from explorer.views.notebook import in_notebook, prepare

    inside = in_notebook()
    if inside:
        prepare()
    from explorer.views.app import Page

    page = Page(session)
    return page.cell() if inside else page.view()
