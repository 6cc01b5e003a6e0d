"""The page: regions put together, a recipe's change carried to all of them, the evaluation run beside."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from typing import Any

import pandas as pd
import panel as pn
import torch

from explorer.errors import ExplorerError, JobError
from explorer.recipe import Recipe
from explorer.session import Session
from explorer.study import Additivity, Evaluation, Trial
from explorer.study.depth import IMAGES as DEEP
from explorer.study.diagnosis import IMAGES as CHANGED
from explorer.study.evaluate import NARROW
from explorer.subject import DEFAULT_MODEL, Subject, make_subject
from explorer.views import dataview, empty, kit, theme
from explorer.views.addressbar import AddressBar, arrive, take
from explorer.views.depthview import DepthView
from explorer.views.diagnosisview import DiagnosisView
from explorer.views.estimates import Estimates
from explorer.views.explained import SCORE, ask
from explorer.views.export import Export, Material
from explorer.views.flips import FlipGallery
from explorer.views.guide import guide
from explorer.views.historyview import HistoryView
from explorer.views.inspector import Inspector
from explorer.views.keys import Keys, Reach
from explorer.views.limits import Limits, is_guarded, limits, set_limits
from explorer.views.notesview import NotesView
from explorer.views.offer import Offer
from explorer.views.runs import Publisher, Runner, settled
from explorer.views.score import ScoreStrip
from explorer.views.sensitivity import IMAGES, LayerBars, SensitivityMap
from explorer.views.state import PageState
from explorer.views.table import LayerTable
from explorer.views.tabs import Part, Tabs
from explorer.views.tensorcard import TensorCard
from explorer.views.text import duration, points, sentence
from explorer.views.toolbar import Toolbar

log = logging.getLogger(__name__)
TITLE = "Quantization Explorer"
MAP, TIERS, BARS, FLIPS = "Sensitivity", "Estimates", "SQNR", "Flips"
CAUSES, DEPTH, NOTES = "Diagnosis", "Depth", "Notes"
HISTORY = "History"
# Of the bar's parts the names give way first.
GIVING_WAY = ":host { min-width: 0; flex: 1 1 0; }"
NAME = """
:host { flex: 0 1 auto !important; width: auto !important; min-width: 0; }
:host, :host > div { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 900px) { :host { max-width: 52px !important; } }
"""
# When an evaluation ends: the width of the interval of the difference to float, as a share.
STOPS = {
    "all images": None,
    "interval ≤ 2 points": 0.02,
    "interval ≤ 1 point": 0.01,
    "interval ≤ 0.5 point": 0.005,
}


class Page:
    """The page of one session.

    Args:
        session: what is explored.
        images: how many evaluation images are used, None for all.
        address: the query of the browser's address, in which a state may stand.
        resume: the session belongs to one browser tab, which goes on where it was when it is loaded again.
    """

    def __init__(
        self, session: Session, images: int | None = None, address: str = "", resume: bool = False
    ) -> None:
        self.session, self.images, self.resume = session, images, resume
        self.publisher = Publisher()
        link, refusal = arrive(session, address)
        self.opened = session.revision
        self.state = PageState(session)
        if link is not None:
            take(self.state, link)
        self.link, self.wanted = link, link.views if link is not None else ()
        self.address = AddressBar(self.state, self.publisher, address)
        self.evaluator = Runner("evaluation", self.publisher)
        self.filler = Runner("estimates", self.publisher)
        self._filled, self._tall = False, False
        self.reader = Runner("layers", self.publisher, background=False)
        self.adder = Runner("additivity", self.publisher)
        self.offer = Offer(self.state)
        self.toolbar = Toolbar(self.state, self.offer)
        self.export = Export(self.state, self.publisher, self._material)
        self.score = ScoreStrip(self.state, self._show_flips)
        self.table = LayerTable(self.state)
        self.estimates = Estimates()
        self.map = SensitivityMap(self.state, self.publisher, self.estimates, min(images or IMAGES, IMAGES))
        self.flips = FlipGallery(self.state, self.publisher)
        self.bars = LayerBars(self.state, self.publisher)
        self.causes = DiagnosisView(self.state, self.publisher, min(images or CHANGED, CHANGED))
        self.depth = DepthView(self.state, self.publisher, min(images or DEEP, DEEP))
        self.tried = HistoryView(self.state, self.publisher)
        # What stands below the chosen tensor, in the order in which it is offered.
        self.below: dict[str, Part] = {
            MAP: self.map,
            TIERS: self.estimates,
            BARS: self.bars,
            DEPTH: self.depth,
            FLIPS: self.flips,
            CAUSES: self.causes,
            HISTORY: self.tried,
            NOTES: NotesView(self.state),
        }
        self.inspector = Inspector(self.state)
        self.guide = guide(self.state)
        self.started = time.monotonic()
        self._job()
        self._problem()
        self.state.problem = refusal
        self._unsubscribe = session.subscribe(self._changed)
        if self.publisher.document is not None:
            pn.state.on_session_destroyed(lambda _: self.close())
        # The page is drawn first; the numbers come once somebody can see them.
        self.drawn = kit.Drawn(width=1, height=1, margin=0)
        self.drawn.param.watch(lambda _: self._begin(), "ready")

    # -- parts ------------------------------------------------------------------------------------

    def _job(self) -> None:
        self.bar = kit.progress(height=4, width=200)
        self.stop_at = kit.select("stop at", list(STOPS), next(iter(STOPS)), width=172)
        self.stop_at.param.watch(lambda *_: self.evaluate(), "value")
        self.cancel = kit.button(
            "Cancel", "stop", color="error", variant="text", disabled=True, on_click=lambda _: self.stop()
        )
        self.rerun = kit.button("Evaluate", "again", variant="text", on_click=lambda _: self.evaluate())
        self.words = kit.html(css=theme.LABEL, sizing_mode="stretch_width", height=18)
        again = kit.button("Guide", variant="text", on_click=lambda _: self.guide.again())
        self.status = kit.row(self.words, again, self.bar, self.stop_at, self.cancel, self.rerun, height=42)

    def _problem(self) -> None:
        self.alert = kit.alert()
        self.state.param.watch(self._refused, "problem")
        self.alert.param.watch(lambda event: self._dismissed() if event.new else None, "closed")

    def _refused(self, event: Any) -> None:
        self.alert.param.update(object=escape(event.new), visible=bool(event.new), closed=False)

    def _dismissed(self) -> None:
        self.state.problem = ""

    def _centre(self) -> Any:
        self.tabs = Tabs(self.below, lambda _: share())
        head = kit.row(
            self.tabs.choice, self.tabs.help, height=38, css=theme.STRIP, styles={"padding": "4px 8px 0"}
        )
        lower = kit.column(
            head, self.tabs.place, css=theme.CARD, margin=(8, 0, 0, 0), css_classes=["place-below"]
        )
        css = theme.halves(self.map.plot.figure.max_height + 130)
        centre = kit.column(css=css, css_classes=["place-centre"])

        def grow(tall: bool) -> None:
            self._tall = tall
            share()

        def share() -> None:
            below = ["below"] if self.tabs.chosen == HISTORY else []
            centre.css_classes = ["place-centre", *(["even"] if self._tall else below)]

        self.tensor = TensorCard(self.state, self.publisher, grow)
        centre.objects = [self.tensor.view, lower]
        self.address.follow((self.tensor.tabs, self.tabs), self.wanted)
        return centre

    def _scores(self) -> Any:
        mark = ask(SCORE)
        # At the end of the line below the cards, whose width is that of the regions below.
        mark.styles = {"position": "absolute", "right": "2px", "bottom": "-5px"}
        return kit.row(
            self.score.view, mark, css=":host { position: relative; }", css_classes=["place-scores"]
        )

    def _show_flips(self) -> None:
        self.tabs.show(FLIPS)

    def _body(self, css: str, room: str) -> Any:
        """All regions; ``room`` is the CSS flex of the grid where it is wide."""
        grid = kit.column(
            self.table.view, self._centre(), self.inspector.view, css=theme.TOKENS + theme.grid(room),
        )  # fmt: skip
        return kit.column(
            self.alert, self.offer.view, self._scores(), grid, self.guide, self.status, self.drawn,
            self.address.view,
            css=theme.FRAME + css,
        )  # fmt: skip

    def view(self) -> Any:
        """The page for a browser window."""
        body = self._body(":host { height: calc(100vh - 52px); overflow-y: auto; }", "1 1 0")
        # In a notebook's cell single keys are the notebook's.
        self.keys = Keys(Reach(self.state, self.table, self.tensor.tabs, self.tabs, self.evaluate))
        self.status.append(self.keys.view)
        return kit.page(
            title=TITLE,
            header=[kit.row(self._name(), self.toolbar.view, self.export.view, height=48, css=GIVING_WAY)],
            main=[body],
            theme_config=theme.THEME,
            sx=theme.BAR,
        )

    def cell(self) -> Any:
        """The same page for a notebook's cell."""
        top = kit.row(self._name(), self.toolbar.view, self.export.view, height=48)
        body = self._body(":host { flex: none !important; height: auto; }", "0 0 720px")
        return kit.themed(top, body, theme_config=theme.THEME)

    def _name(self) -> Any:
        text = f"{escape(self.session.model_name)} · {escape(self.session.data_name)}"
        name = kit.html(text, css=theme.LABEL + NAME, height=18)
        mark = dataview.mark(self.session)
        self.state.param.watch(lambda _: dataview.refresh(mark, self.session), "evaluation")
        return kit.row(name, mark, css=GIVING_WAY, styles={"margin-left": "14px", "gap": "8px"})

    def _material(self) -> Material:
        """What files are made of: what the page shows now, and which parts of it are of another recipe."""
        state, causes, table = self.state, self.causes, self.map.table
        aged = causes.found is not None and causes.recipe != self.session.recipe
        old = {"evaluation": state.stale, "sensitivity": self.map.outdated, "diagnosis": aged}
        return Material(
            Session(subject=self.session.subject, recipe=self.session.recipe),
            state.evaluation, table if len(table) else None, causes.found,
            frozenset(part for part, stale in old.items() if stale), state.marks, state.notes, self._reported(),
        )  # fmt: skip

    def _reported(self) -> tuple[Trial, ...]:
        """What the report sets side by side: the marked configurations, else the named ones; and the present one."""
        tried, here = self.session.tried, self.session.tried.get(self.session.recipe.digest)
        found = self.tried.chosen or [trial for trial in tried if trial.name]
        return tuple(found if here is None or here in found else [*found, here])

    def _begin(self) -> None:
        self.table.select()
        # What is resumed is read and evaluated as any other change.
        if self.resume and self.drawn.tab and self._resumed():
            return
        if self.state.layers_recipe != self.session.recipe:
            self._read()
        self.evaluate()

    def _resumed(self) -> bool:
        """Go on where this tab has left off, if it has; what a quick hand has done, or an address that is not
        its own, is one step more.
        """
        present, acted = self.session.recipe, self.session.revision != self.opened
        if not self.session.resume(self.drawn.tab):
            return False
        if acted:
            self.session.recipe = present
        elif self.link is not None and not self.drawn.again:
            self.session.recipe = self.link.recipe
        return True

    # -- what happens -----------------------------------------------------------------------------

    def _changed(self) -> None:
        if self.publisher.closed:
            return
        if self.publisher.document is None or pn.state.curdoc is self.publisher.document:
            self._follow()
        else:
            self.publisher.later(self._follow)

    def _follow(self) -> None:
        with self.publisher.hold():
            self.state.revision = self.session.revision
            self._read()
            self.evaluate()

    def _read(self) -> None:
        """Read the layers of the present recipe in the background; what is known at once is shown already."""

        def show(found: tuple[Recipe, pd.DataFrame]) -> None:
            self.state.param.update(layers_recipe=found[0], layers=found[1])

        steps = settled(self.session, self.session.recipe, self.state.read_layers)
        self.reader.start(steps, show, lambda: None, self._not_read)

    def _not_read(self, error: Exception) -> None:
        self.state.problem = f"The layers could not be read: {sentence(error)}"

    def evaluate(self) -> None:
        """Evaluate the present recipe in the background; what was being evaluated is dropped."""
        session, recipe, revision = self.session, self.session.recipe, self.session.revision
        interval = STOPS[self.stop_at.value]
        self.started = time.monotonic()
        self._say("Evaluating …", 0, running=True)
        self.adder.cancel()
        self.evaluator.start(
            settled(session, recipe, lambda: session.evaluate_steps(recipe, self.images, interval)),
            lambda found: self._show(found, revision),
            self._done,
            self._failed,
            lambda found: (found.images, found.total_images),
        )

    def _show(self, found: Evaluation, revision: int) -> None:
        if revision != self.session.revision:
            return
        self.state.param.update(evaluation=found, evaluation_revision=revision)
        if not self._filled:
            # Once there is something to look at; the whole evaluation may take long.
            self._filled = True
            self.map.fill(self.filler)
        share = round(100 * found.images / max(1, found.total_images))
        progress = self.evaluator.progress
        left = duration(progress.left) if progress is not None else ""
        rest = f", {left} left" if left else ""
        self._say(f"Evaluating: {found.images:,} of {found.total_images:,} images{rest}", share, running=True)

    def _done(self) -> None:
        e = self.state.evaluation
        self._say(ended(e, time.monotonic() - self.started) if e else "", 100, running=False)
        self._add_up()

    def _failed(self, error: Exception) -> None:
        kept = " What is shown is the last that was evaluated." if self.state.evaluation else ""
        self.state.problem = f"The evaluation failed: {sentence(error)}{kept}"
        self._say("Not evaluated", 0, running=False)

    def _add_up(self) -> None:
        """Compare the present recipe with the sum of its parts."""
        e, revision = self.state.evaluation, self.session.revision
        recipe = self.session.recipe
        nothing = not any(
            recipe.config(name) != Recipe.preset("fp32").config(name) for name in self.map.names
        )
        if e is None or self.state.stale or nothing:
            self.state.additivity = None if nothing else self.state.additivity
            return
        own = Session(subject=self.session.subject, recipe=recipe)

        def steps() -> Iterator[Additivity]:
            yield own.additivity(images=e.images)

        def show(found: Additivity) -> None:
            self.state.param.update(additivity=found, additivity_revision=revision)

        # A line of its own interest: that it cannot be had is no reason to interrupt anybody.
        self.adder.start(steps, show, lambda: None, lambda error: log.warning("%s", sentence(error)))

    def stop(self) -> None:
        """Cancel the evaluation; what it has found stays."""
        self.evaluator.cancel()
        e = self.state.evaluation
        kept = f"; shown: {e.images:,} of {e.total_images:,} images" if e and not self.state.stale else ""
        self._say(f"Cancelled{kept}", 0, running=False)

    def _say(self, words: str, share: int, running: bool) -> None:
        self.words.object = f'<span aria-live="polite">{escape(words)}</span>'
        # Shown and not hidden: nothing jumps, and while the page is being drawn hiding can be missed.
        self.bar.value = share if running else 0
        self.cancel.disabled = not running

    def close(self) -> None:
        """Stop all work; the page is gone."""
        self.publisher.closed = True
        self._unsubscribe()
        for runner in (
            self.evaluator, self.filler, self.reader, self.adder,
            self.map.runner, self.flips.runner, self.causes.runner, self.export.runner,
            self.depth.runner,
        ):  # fmt: skip
            runner.close()
        self.tensor.close()


def ended(e: Evaluation, seconds: float) -> str:
    """How an evaluation ended, in words."""
    took = f"in {seconds:.1f} s"
    if e.stopped != NARROW:
        return f"Evaluated on {e.images:,} images {took}"
    width = points(e.delta_interval[1] - e.delta_interval[0]).lstrip("+")
    return (
        f"Evaluated on {e.images:,} of {e.total_images:,} images {took}: {e.stopped}, "
        f"the interval is {width} points wide"
    )


def failure(error: ExplorerError) -> Any:
    """A page that says why there is no other, and how to come to one."""
    alert = kit.alert()
    alert.param.update(object=escape(str(error)), visible=True, closeable=False)
    card = kit.html(empty.instead(error), css=empty.CSS)
    body = kit.column(alert, card, css=":host { gap: 12px; padding: 24px; }")
    return kit.page(title=TITLE, main=[body], theme_config=theme.THEME, sx=theme.BAR)


def subject_of(model: str, data: str | None = None, **options: Any) -> Subject:
    """A network and its images, loaded once for all browser sessions of a server."""
    key = f"explorer:{model}:{data}:{sorted(options.items())}"
    found = pn.state.as_cached(key, make_subject, model=model, data=data, **options)
    return found


def leave_a_core() -> None:
    """Let torch use all cores but one, which answers the browser; the user's own settings win."""
    wanted = limits().threads
    if wanted is not None:
        torch.set_num_threads(wanted)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


@cache
def spare_the_collector() -> None:
    """Take what a server has loaded until now out of the garbage collector's rounds, once.

    Modules and networks stay; each round through all of their objects would stop every page for half a second.
    """
    gc.collect()
    gc.freeze()


def check_guard() -> None:
    """Refuse to show a page that somebody believes to be protected or limited, and that is not.

    Raises:
        JobError: when there is a login, or a limit, and ``panel serve`` was started without what keeps it.
    """
    asked = pn.config.basic_auth or pn.config.oauth_provider or limits().sessions or limits().memory
    if asked and pn.state.curdoc is not None and not is_guarded():
        raise JobError(
            "This server has a login or limits, and would not keep them for all of its routes; "
            "start it with: panel serve apps/main.py --plugins explorer.views.team"
        )


def browser_page(
    model: str = DEFAULT_MODEL, data: str | None = None, images: int | None = None, **options: Any
) -> Any:
    """A page for one browser session: the network is shared, the recipe is its own."""
    pn.extension("tabulator", notifications=True)
    try:
        check_guard()
        leave_a_core()
        recipe, project = options.pop("recipe", "w8a8"), options.pop("project", None)
        session = Session(subject=subject_of(model, data, **options), recipe=recipe, project=project)
        spare_the_collector()
        location = pn.state.location
        return Page(session, images, location.search if location is not None else "", resume=True).view()
    except ExplorerError as error:
        return failure(error)


def serve(
    model: str = DEFAULT_MODEL,
    data: str | None = None,
    port: int = 5006,
    show: bool = True,
    address: str = "127.0.0.1",
    most: Limits | None = None,
    panel: Sequence[str] = (),
    **options: Any,
) -> None:
    """Serve the page until interrupted.

    Args:
        model, data, options: as for :class:`Session`; ``images`` is how many are evaluated.
        port, address: where it listens.
        show: open a browser.
        most: what the server gives at most; None for what the environment says.
        panel: further options of ``panel serve``.

    Raises:
        JobError: when the port is in use, or an option of Panel's does not fit.
        ModelError, DataError: when the network or the images cannot be loaded.
        ProjectError: when the project folder cannot be used.
    """
    # Only a server of its own needs it: in a notebook Panel's stays as it is.
    from explorer.views.command import run

    if most is not None:
        set_limits(most)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise JobError(
                f"The port {port} cannot be used ({error.strerror}); choose another one with --port."
            ) from error
    loading = {name: value for name, value in options.items() if name not in ("images", "recipe", "project")}
    # Whatever is wrong with it is said here and not to the first browser.
    Session(subject=subject_of(model, data, **loading), project=options.get("project"))
    where = [f"--port={port}", f"--address={address}", *(["--show"] if show else [])]
    run(lambda: browser_page(model, data, **options), TITLE, [*where, *panel])
