"""A page's address: what is written reads back; what no page has written is refused in a sentence."""

from __future__ import annotations

import base64
import json
import random
import string
import zlib
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer import Recipe, Session
from explorer.errors import ExplorerError
from explorer.recipe import PRESETS
from explorer.sources import Notes
from explorer.views.link import LONGEST, LONGEST_PLAIN, VERSION, Link, state_of, with_state
from tests.small import images, tiny
from tests.strategies import recipes

TEXTS = st.text(max_size=30)
NAMES = st.sampled_from(["fc", "layer1.0.conv1", "größe", "<b>", "a&b=c#d", ""])
NOTES = st.builds(Notes, TEXTS, st.dictionaries(NAMES, TEXTS, max_size=3))
LINKS = st.builds(
    Link, TEXTS, st.one_of(recipes(), st.sampled_from([p.recipe for p in PRESETS.values()])), NAMES,
    st.sampled_from(["weight", "input"]), st.booleans(), st.lists(NAMES, max_size=4).map(tuple),
    st.tuples(NAMES, NAMES), NOTES,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(LINKS, st.sampled_from(["", "?theme=dark", "?a=1&b=%20x"]))
def test_what_is_written_reads_back(link: Link, search: str) -> None:
    text = link.to_text()
    assert Link.from_text(text) == link
    # Nothing in it means anything to an address.
    assert quote(text, safe="") == text and len(text) <= LONGEST
    query = with_state(search, text)
    assert state_of(query) == text and state_of(with_state(query, "")) is None
    assert state_of(with_state(query, "1.other")) == "1.other"


@settings(max_examples=60, deadline=None)
@given(LINKS, st.data())
def test_no_damage_is_taken_for_a_state(link: Link, data: st.DataObject) -> None:
    """One letter more, less or other: a sentence; never another state."""
    text = link.to_text()
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("Az09-_. %é"))
    kind = data.draw(st.sampled_from(["cut", "put", "set"]))
    damaged = text[:place] + ("" if kind == "cut" else letter) + text[place + (kind != "put") :]
    try:
        assert Link.from_text(damaged) == link
    except ExplorerError as error:
        assert "\n" not in str(error) and str(error).endswith("as it begins.")


@given(st.text(max_size=60))
def test_any_text_is_a_state_or_a_sentence(text: str) -> None:
    with pytest.raises(ExplorerError, match="as it begins"):
        Link.from_text(text)


def packed(data: object) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return f"{VERSION}.{base64.urlsafe_b64encode(zlib.compress(raw, 9)).decode().rstrip('=')}"


def fields(**changed: object) -> dict[str, object]:
    return json.loads(zlib.decompress(_raw(Link("net", Recipe.preset("w4a8")).to_text()))) | changed


def _raw(text: str) -> bytes:
    body = text.split(".", 1)[1]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.abc", "a state of version 0; this program reads version 1"),
        ("12.abc", "a state of version 12"),
        ("abc", "does not begin with a version"),
        ("-1.abc", "does not begin with a version"),
        ("1.", "damaged|not whole"),
        (f"1.{'A' * LONGEST}", "6,000 are read at most"),
        (packed(b"[" * 5000), "damaged"),
        (packed(b"\xff"), "damaged"),
        (packed(b"0" * (LONGEST_PLAIN + 10)), "unpacks to far more"),
        (packed([]), "fields are others"),
        (packed(fields(more=1)), "fields are others"),
        (packed(fields(layer=3)), "a name in it is no text"),
        (packed(fields(marks="fc")), "a name in it is no text"),
        (packed(fields(views=["a"])), "a name in it is no text"),
        (packed(fields(tensor="bias")), "a tensor or a scale that does not exist"),
        (packed(fields(log=1)), "a tensor or a scale that does not exist"),
        (packed(fields(recipe="w4a9")), "There is no preset 'w4a9'"),
        (packed(fields(recipe={"version": 2})), "reads recipes of version 1"),
        (packed(fields(recipe=[1])), "expected named fields"),
        (packed(fields(notes={"version": 1, "layers": {"fc": 3}})), "a note is a text"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ExplorerError, match=sentence) as caught:
        Link.from_text(text)
    assert str(caught.value).endswith("What is shown is the page as it begins.")


def test_a_state_that_is_too_long_is_refused_and_not_cut() -> None:
    noise = "".join(random.Random(0).choices(string.printable, k=8000))
    with pytest.raises(ExplorerError, match=r"too many for an address, which holds 6,000; save the recipe"):
        Link("net", Recipe.preset("w4a8"), notes=Notes(noise)).to_text()


def test_an_address_is_taken_as_a_whole_or_not_at_all() -> None:
    pytest.importorskip("panel")
    from explorer.views.addressbar import arrive, take
    from explorer.views.state import PageState

    session = Session(tiny(), images(), recipe="w8a8")
    recipe = Recipe.preset("w4a8").with_layer("mid", weight={"format": "int3"})
    link = Link("TinyNet", recipe, "mid", "input", False, ("fc",), notes=Notes("", {"fc": "x"}))

    def at(**changed: object) -> str:
        return with_state("", Link(**{**vars(link), **changed}).to_text())

    for search, sentence in (
        (at(network="other"), "about the network 'other'; this page is about 'TinyNet'"),
        (at(layer="midd"), "names a layer 'midd'"),
        (at(marks=("nope",)), "names a layer 'nope'"),
        (at(notes=Notes("", {"fcc": "x"})), "no layer 'fcc'"),
        (
            at(recipe=Recipe.preset("w4a8").with_layer("stam", weight={"format": "int3"})),
            "Did you mean 'stem'",
        ),
        ("?state=0.x", "version 0"),
    ):
        found, refusal = arrive(session, search)
        assert found is None and sentence in refusal and session.recipe == Recipe.preset("w8a8")
    assert arrive(session, "?theme=dark") == (None, "")
    assert arrive(session, at()) == (link, "")
    state = PageState(session)
    take(state, link)
    assert (state.layer, state.tensor, state.log, state.marks) == ("mid", "input", False, frozenset({"fc"}))
    assert session.recipe == recipe and session.notes == link.notes
