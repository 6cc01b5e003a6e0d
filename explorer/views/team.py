"""A plugin of ``panel serve``: every route behind the login, limits, the health endpoint, a discreet log.

``panel serve apps/main.py --plugins explorer.views.team``
"""

from __future__ import annotations

from explorer.views.serving import ROUTES, install

__all__ = ["ROUTES"]

install()
