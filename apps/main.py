"""The page: ``panel serve apps/main.py --show``; what is tried is kept in the folder named by EXPLORER_PROJECT.

For a team with ``--plugins explorer.views.team``: see docs/serving.md.
"""

import os

from explorer.views.app import browser_page

browser_page(project=os.environ.get("EXPLORER_PROJECT")).servable()
