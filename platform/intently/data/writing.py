"""From lines of codes to texts and their token counts, without touching a string twice.

A text is laid out as a row of pieces; every distinct piece ("2024-05-17", " (cart),", " | red boots", …) is made once, and all
texts of a call are one gather of pieces: neighbours in the gathered buffer are neighbours in the text. A piece begins a line or
begins with the space before it, which is where tokenizers part words, so a text has as many tokens as its pieces together; texts
with unusual white space, and tokenizers that do not part there, are counted whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.data.coding import NO_ITEM, CodedEvents, NameTable, escape_names
from intently.data.grouping import Lines, changes
from intently.data.tokens import TokenCounter

PERIOD_FORMS = (("", ""), (" ", ""))
"""A period at the beginning of a line, and later in it: what stands before and after."""
LABEL_FORMS = tuple((before, after) for before in (" (", " ") for after in (",", "),", ")", ")\n"))
"""A behaviour that opens brackets, or not; followed by another one, another period, its items or the text's end, the next line."""
NAME_FORMS = tuple((before, after) for before in (" | ", " ") for after in (",", "", "\n"))
"""The first item of a line, and the others; followed by another one, the text's end, the next line."""


@dataclass(frozen=True)
class Layout:
    """Lines as rows of period, behaviour and item codes.

    Attributes:
        lines: L lines; which side holds what is told by the next two.
        period, label, entry_line: [A] (period, behaviour) entries of the lines in order; `period` indexes `dates`.
        name, name_line: [B] items of the lines in order, none for a line of bare searches.
        dates: distinct periods as they are written.
    """

    lines: Lines
    period: np.ndarray
    label: np.ndarray
    entry_line: np.ndarray
    name: np.ndarray
    name_line: np.ndarray
    dates: pa.Array


@dataclass(frozen=True)
class Pieces:
    """P pieces in writing order, as codes of distinct texts."""

    texts: pa.Array
    code: np.ndarray


def write_layout(layout: Layout, events: CodedEvents, names: NameTable, num_texts: int) -> tuple[pa.Array, Pieces, np.ndarray]:
    """([N] texts, their pieces, [N + 1] where each text's pieces begin)."""
    forms, bases = _distinct(layout, events, names)
    code, line_offset = _lay_out(layout, bases)
    pieces = Pieces(forms, code)
    offset = line_offset[np.searchsorted(layout.lines.text, np.arange(num_texts + 1))]
    gathered = forms.take(pa.array(code))
    ends = np.frombuffer(gathered.buffers()[1], np.int32)[gathered.offset :][: len(code) + 1]
    texts = pa.StringArray.from_buffers(num_texts, pa.py_buffer(np.ascontiguousarray(ends[offset])), gathered.buffers()[2])
    return texts, pieces, offset


def count_tokens(texts: pa.Array, pieces: Pieces, offset: np.ndarray, counter: TokenCounter) -> np.ndarray:
    """[N] int32 tokens of texts that `write_layout` made: pieces are counted once each where that is exact."""
    if not counter.parts_at_spaces:
        return counter.count(texts)
    used = np.bincount(pieces.code, minlength=len(pieces.texts)) > 0
    distinct = pieces.texts.filter(pa.array(used))
    cost, odd = np.zeros(len(used), np.int64), np.zeros(len(used), bool)
    cost[used], odd[used] = counter.count_pieces(distinct), counter.is_odd(distinct)
    total = _sums(cost[pieces.code], offset)
    if odd.any():
        whole = np.flatnonzero(_sums(odd[pieces.code].astype(np.int64), offset))
        total[whole] = counter.count(texts.take(pa.array(whole)))
    return total.astype(np.int32)


def _sums(values: np.ndarray, offset: np.ndarray) -> np.ndarray:
    return np.diff(np.append(0, np.cumsum(values))[offset])


def _distinct(layout: Layout, events: CodedEvents, names: NameTable) -> tuple[pa.Array, tuple[np.ndarray, int, int, int]]:
    """All pieces that may be needed, and how codes are found: (place of each name, first label, first period, number of names)."""
    known = len(names.texts)
    used = np.bincount(layout.name, minlength=known + len(events.unnamed)) > 0
    place = np.cumsum(used) - 1
    chosen = np.flatnonzero(used)
    listed, unlisted = chosen[chosen < known], chosen[chosen >= known] - known
    called = pa.concat_arrays([names.texts.take(pa.array(listed)), events.unnamed.take(pa.array(unlisted))])
    blocks = _forms(escape_names(called), NAME_FORMS) + _forms(events.labels, LABEL_FORMS) + _forms(layout.dates, PERIOD_FORMS)
    first_label = len(chosen) * len(NAME_FORMS)
    return pa.concat_arrays(blocks), (place, first_label, first_label + len(events.labels) * len(LABEL_FORMS), len(chosen))


def _forms(texts: pa.Array, forms: tuple[tuple[str, str], ...]) -> list[pa.Array]:
    return [pc.binary_join_element_wise(before, texts, after, "") for before, after in forms]


def _lay_out(layout: Layout, bases: tuple[np.ndarray, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """([P] int32 codes of pieces in writing order, [L + 1] where each line's pieces begin)."""
    place, first_label, first_period, num_names = bases
    num_lines = len(layout.lines.text)
    line, name_line = layout.entry_line, layout.name_line
    last_of_text = np.append(changes(layout.lines.text)[1:], True)
    num_items = np.bincount(name_line, minlength=num_lines)
    # Entries: a period where brackets open, then its behaviours.
    opens_line, opens = changes(line), changes(line, layout.period)
    closes_line, closes = np.append(opens_line[1:], True), np.append(opens[1:], True)
    ends_text = last_of_text[line] | (num_items[line] > 0)
    after = np.where(~closes, 0, np.where(~closes_line, 1, np.where(ends_text, 2, 3)))
    num_labels = (first_period - first_label) // len(LABEL_FORMS)
    label_code = first_label + (np.where(opens, 0, 4) + after) * num_labels + layout.label
    num_periods = len(layout.dates)
    period_code = first_period + np.where(opens_line, 0, num_periods) + layout.period
    # Items: all of a line's stand behind its entries.
    first_item, last_item = changes(name_line), np.append(changes(name_line)[1:], True)[: len(name_line)]
    after = np.where(~last_item, 0, np.where(last_of_text[name_line], 1, 2))
    name_code = (np.where(first_item, 0, 3) + after) * num_names + place[layout.name]
    # Where each stands.
    entry_end = np.cumsum(1 + opens)
    items_before = np.append(0, np.cumsum(num_items))
    label_at = entry_end - 1 + items_before[line]
    pieces_before = np.append(0, entry_end[closes_line]) + items_before
    code = np.empty(pieces_before[-1], np.int32)
    code[label_at] = label_code
    code[label_at[opens] - 1] = period_code[opens]
    code[np.arange(len(name_line)) + entry_end[closes_line][name_line]] = name_code
    return code, pieces_before


def without_bare(name: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items and their lines, less the mark of lines that have none."""
    real = name != NO_ITEM
    return name[real], line[real]
