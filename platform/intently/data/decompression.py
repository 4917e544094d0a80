"""The inverse of `compression`: what lines say, as a set of (item, period, behaviour)."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Behaved:
    """What one line says of one item: (item name, period, behaviour as it is written); item is None for a bare search."""

    item: str | None
    period: str
    behaviour: str


ENTRY = re.compile(r'(?P<period>\d{4}(?:-\d\d){0,2}) \((?P<labels>(?:[^"()\\]|"(?:[^"\\]|\\.)*")*)\)')
LABEL = re.compile(r'[a-z_]+(?: "(?:[^"\\]|\\.)*"| -?[0-9.]+)?')
ITEM = re.compile(r"(?:[^\\,]|\\.|,(?! ))*")


def decompress(text: str) -> list[Behaved]:
    """The inverse of `compress` as a set: every (item, period, behaviour) that the text says, in its order.

    Raises:
        ValueError: a line that `compress` cannot have written; it names the line.
    """
    return [behaved for line in text.split("\n") if line for behaved in _read_line(line)]


def _read_line(line: str) -> list[Behaved]:
    entries: list[tuple[str, str]] = []
    place = 0
    while (match := ENTRY.match(line, place)) is not None:
        entries += [(match["period"], _unescape(label)) for label in LABEL.findall(match["labels"])]
        place = match.end()
        if not line.startswith(", ", place):
            break
        place += 2
    rest = line[place:]
    if not entries or (rest and not rest.startswith(" | ")):
        raise ValueError(f"not a line of compressed behaviours: {line!r}")
    items: list[str | None] = list(_read_items(rest[3:])) if rest else [None]
    return [Behaved(item, period, label) for item in items for period, label in entries]


def _read_items(text: str) -> list[str]:
    items, place = [], 0
    while True:
        match = ITEM.match(text, place)
        assert match is not None, "ITEM matches the empty string"
        items.append(_unescape(match.group()))
        if match.end() >= len(text):
            return items
        place = match.end() + 2


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
