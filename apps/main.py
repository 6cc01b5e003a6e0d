"""The page: ``panel serve apps/main.py --show``."""

from explorer.views.app import browser_page

browser_page().servable()
