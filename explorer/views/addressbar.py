"""The page's address: read once when the page opens, kept up to date while it is used."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.errors import ExplorerError
from explorer.session import Session
from explorer.views import kit
from explorer.views.link import Link, state_of, with_state
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tabs import Tabs

# Seconds after a change before the address follows: a movement of the mouse is one change.
DELAY = 0.4
WATCHED = ["layer", "tensor", "log", "marks", "revision", "notes"]


def arrive(session: Session, search: str) -> tuple[Link | None, str]:
    """What the address asks for, its recipe taken by the session; or None and why not, if there is a reason.

    All of it is checked before any of it is taken.
    """
    text = state_of(search)
    if text is None:
        return None, ""
    try:
        link = Link.from_text(text)
        if link.network != session.model_name:
            raise ExplorerError(
                f"The address is about the network {link.network!r}; this page is about {session.model_name!r}, "
                "and begins as usual."
            )
        link.notes.check(session.graph.by_layer)
        strangers = [
            name for name in (link.layer, *link.marks) if name and name not in session.graph.by_layer
        ]
        if strangers:
            raise ExplorerError(
                f"The address names a layer {strangers[0]!r} that this network does not have; the page begins as usual."
            )
        session.recipe = link.recipe
    except ExplorerError as error:
        return None, str(error)
    return link, ""


def take(state: PageState, link: Link) -> None:
    """Show what an address asks for, on a page whose parts are still to be made."""
    state.param.update(
        tensor=link.tensor, log=link.log, marks=frozenset(state.quantizable(link.marks)), notes=link.notes
    )
    if link.layer:
        state.layer = link.layer


class AddressBar:
    """Writes the state of a page into the browser's address.

    Args:
        state: of the page.
        publisher: of the page.
        search: the query that the page was opened with.
    """

    def __init__(self, state: PageState, publisher: Publisher, search: str) -> None:
        self.state, self.publisher, self.search = state, publisher, search
        self.view = kit.Address(width=0, height=0, margin=0)
        self.tabs: tuple[Tabs, ...] = ()
        self._waiting, self._long = False, False
        state.param.watch(lambda *_: self.changed(), WATCHED)

    def follow(self, tabs: Iterable[Tabs], wanted: Iterable[str]) -> None:
        """Bring what the address asks for into sight, and follow the choices from then on."""
        self.tabs = tuple(tabs)
        for each, name in zip(self.tabs, wanted, strict=False):
            if name in each.parts:
                each.show(name)
            each.choice.param.watch(lambda *_: self.changed(), "value")

    def changed(self) -> None:
        """Write the address a little later, once for all that changes until then."""
        # A notebook's address is not the page's.
        if self._waiting or self.publisher.document is None:
            return
        self._waiting = True
        self.publisher.after(DELAY, self.write)

    def link(self) -> Link:
        """What the page shows."""
        state = self.state
        views = [each.chosen for each in self.tabs] or ["", ""]
        return Link(
            state.session.model_name, state.session.recipe, state.layer, state.tensor, state.log,
            tuple(sorted(state.marks)), (views[0], views[1]), state.notes,
        )  # fmt: skip

    def write(self) -> None:
        """Write the address; what is too long for one is said once, and no address is better than an old one."""
        self._waiting = False
        try:
            text, refusal = self.link().to_text(), ""
        except ExplorerError as error:
            text, refusal = "", str(error)
        if refusal and not self._long:
            self.state.problem = refusal
        self._long = bool(refusal)
        self.view.search = with_state(self.search, text)
