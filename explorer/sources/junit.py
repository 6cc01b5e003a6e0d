"""Results for a build server: the XML that JUnit began and every build server reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

# All but the Char of XML 1.0 (https://www.w3.org/TR/xml/#charsets).
_UNWRITABLE = re.compile("[^\\t\\n\\r\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def junit(
    suite: str,
    name: str,
    sentence: str,
    seconds: float,
    failure: str = "",
    error: str = "",
    properties: Mapping[str, object] | None = None,
) -> str:
    """One test case as a document of its own.

    Args:
        suite: what was tested: the class of the case.
        name: of the case.
        sentence: what came out; the message where it is no success.
        seconds: how long it took.
        failure: the kind of failure: what was tested does not hold.
        error: the kind of error: it could not be told.
        properties: more to be read there.

    >>> print(junit("net", "drop", "All is well.", 1.5))
    <?xml version='1.0' encoding='utf-8'?>
    <testsuites tests="1" failures="0" errors="0" time="1.500">
      <testsuite name="explorer" tests="1" failures="0" errors="0" skipped="0" time="1.500">
        <testcase classname="net" name="drop" time="1.500">
          <system-out>All is well.</system-out>
        </testcase>
      </testsuite>
    </testsuites>
    <BLANKLINE>
    """
    counts = {"tests": "1", "failures": str(int(bool(failure))), "errors": str(int(bool(error)))}
    time = {"time": f"{seconds:.3f}"}
    root = ElementTree.Element("testsuites", {**counts, **time})
    group = ElementTree.SubElement(root, "testsuite", {"name": "explorer", **counts, "skipped": "0", **time})
    if properties:
        held = ElementTree.SubElement(group, "properties")
        for key, value in properties.items():
            ElementTree.SubElement(held, "property", {"name": key, "value": _clean(str(value))})
    case = ElementTree.SubElement(
        group, "testcase", {"classname": _clean(suite), "name": _clean(name), **time}
    )
    for tag, kind in (("failure", failure), ("error", error)):
        if kind:
            ElementTree.SubElement(case, tag, {"type": kind, "message": _clean(sentence)})
    ElementTree.SubElement(case, "system-out").text = _clean(sentence)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True).decode() + "\n"


def _clean(text: str) -> str:
    """The text without the characters that XML 1.0 has no way to write."""
    return _UNWRITABLE.sub("\ufffd", text)
