"""``python -m explorer serve``: Panel's own command with one application, and with what a team's server adds.

All options of ``panel serve`` are options of it: ``--basic-auth``, ``--oauth-provider``, ``--allow-websocket-origin``,
``--log-level``, ...
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bokeh.server.auth_provider import NullAuth
from panel.command.serve import Serve
from panel.io.application import build_applications

from explorer.errors import JobError
from explorer.views import serving

log = logging.getLogger(__name__)
# What everybody on the machine would see in the list of processes, and the variable to name it in instead.
SECRETS = {
    "cookie_secret": "PANEL_COOKIE_SECRET",
    "oauth_secret": "PANEL_OAUTH_SECRET",
    "oauth_encryption_key": "PANEL_OAUTH_ENCRYPTION",
}


class Team(Serve):
    """Panel's command for one application that is made here instead of in a file.

    Args:
        make: makes the page of one session.
        title: of the page.
    """

    def __init__(self, parser: argparse.ArgumentParser, make: Callable[[], Any], title: str) -> None:
        super().__init__(parser)
        self.make, self.title = make, title

    def customize_applications(self, args: Any, applications: Mapping[str, Any]) -> dict[str, Any]:
        return dict(build_applications(self.make, title=self.title))

    def customize_kwargs(self, args: Any, server_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not serving.config.cookie_secret:
            # Without one of the user's, people log in again when the server starts again.
            serving.config.cookie_secret = secrets.token_urlsafe(32)
        made = super().customize_kwargs(args, server_kwargs)
        made["extra_patterns"] += serving.ROUTES
        if isinstance(made["auth_provider"], NullAuth) and not local(args.address):
            log.warning("Everybody who reaches %s can use this server; see --basic-auth.", args.address)
        return made


def local(address: str | None) -> bool:
    """Whether only this machine reaches an address.

    >>> local("127.0.0.1"), local("::1"), local("0.0.0.0"), local(None)
    (True, True, False, False)
    """
    try:
        return address == "localhost" or ipaddress.ip_address(address or "0.0.0.0").is_loopback
    except ValueError:
        return False


def check(options: argparse.Namespace) -> None:
    """Refuse what would not do what it seems to.

    Raises:
        JobError: for secrets among the arguments, files, and more than one process.
    """
    for name, variable in SECRETS.items():
        if getattr(options, name):
            shown = f"--{name.replace('_', '-')}"
            raise JobError(
                f"Everybody on this machine could read {shown} in the list of processes; "
                f"leave it out and set the environment variable {variable}."
            )
    if options.basic_auth:
        serving.check_passwords(options.basic_auth)
    if options.files:
        raise JobError(f"The command serve takes options only, and {options.files[0]!r} is none.")
    if options.num_procs != 1:
        raise JobError("Sessions share one process: leave --num-procs out, and say --threads N.")


def run(make: Callable[[], Any], title: str, options: Sequence[str]) -> None:
    """Serve until interrupted.

    Args:
        make: makes the page of one session.
        title: of the page.
        options: of ``panel serve``.

    Raises:
        JobError: for options that do not go together.
    """
    parser = argparse.ArgumentParser(prog="python -m explorer serve", allow_abbrev=False)
    command = Team(parser, make, title)
    found = parser.parse_args(list(options))
    check(found)
    serving.install()
    command.invoke(found)
