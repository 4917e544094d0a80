"""The two aggregations of compression on integer codes: everything is a sort of packed integers, nothing is hashed row by row.

First things are grouped by one side (left), then those with the same set on the other side (right) share a line. With E events
of N texts, an event is known by its place in its text; text, code and place are packed into one 64-bit integer, so that one
unstable integer sort gives groups in order of their first event. Where the codes are too large for that, a slower sort
gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lines:
    """L lines in writing order: by text, then by first event.

    Attributes:
        text: [L] which text a line belongs to.
        lefts: [A] codes of the left side that share a line, in order of their first event.
        left_line: [A] which line, non-decreasing.
        rights: [B] codes of the right side, in order of their first event with the line's first left code.
        right_line: [B] which line, non-decreasing.
    """

    text: np.ndarray
    lefts: np.ndarray
    left_line: np.ndarray
    rights: np.ndarray
    right_line: np.ndarray


def group_lines(text: np.ndarray, left: np.ndarray, right: np.ndarray, alone: np.ndarray) -> Lines:
    """Both aggregations.

    Args:
        text: [E] int64 which text an event belongs to, non-decreasing.
        left: [E] int64 codes ≥ 0 of what is grouped first.
        right: [E] int64 codes ≥ 0 of what makes the sets.
        alone: [E] bool; events that share no line with those that are not. The same for all events of a left code.
    """
    start, place = _places(text)
    ordered = start + order_within(text, left, place)
    opens = changes(text[ordered], left[ordered])
    group = np.cumsum(opens) - 1
    kept = _first_of_each(start, group, right[ordered], ordered - start)
    triple = ordered[kept[ordered]]  # distinct (text, left, right), by text, left, first event
    group = group[kept[ordered]]
    begin = np.flatnonzero(changes(group))
    first = triple[begin]  # [G] the first event of each group
    mixed = mix(right[triple])
    sums = np.add.reduceat(mixed, begin), np.add.reduceat(mix(mixed), begin), alone[first].astype(np.uint64)
    shared = _same_sets(text[first], first - start[first], sums, first)
    # Groups of one line stand together now, but lines stand by hash: they are written by first event.
    line_begin = np.flatnonzero(changes(text[first][shared], *(part[shared] for part in sums)))
    line_size = np.diff(np.append(line_begin, len(shared)))
    opener = np.zeros(len(text), bool)
    opener[first[shared[line_begin]]] = True
    by_first = np.empty(len(line_begin), np.int64)
    by_first[(np.cumsum(opener) - 1)[first[shared[line_begin]]]] = np.arange(len(line_begin))
    leader = shared[line_begin[by_first]]  # [L] the first group of each line
    written = shared[ranges(line_begin[by_first], line_size[by_first])]
    set_size = np.diff(np.append(begin, len(triple)))[leader]
    line = np.arange(len(leader))
    return Lines(
        text=text[first[leader]],
        lefts=left[first[written]],
        left_line=np.repeat(line, line_size[by_first]),
        rights=right[triple[ranges(begin[leader], set_size)]],
        right_line=np.repeat(line, set_size),
    )


def order_within(run: np.ndarray, code: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Sort by (run, code, place).

    Args:
        run: [E] ≥ 0, non-decreasing, so that every run stays where it is.
        code: [E] ≥ 0.
        place: [E] ≥ 0.
    Returns:
        [E] the places in their new order.
    """
    if not len(run):
        return place
    code_bits, place_bits = int(code.max()).bit_length(), int(place.max()).bit_length()
    if int(run[-1]).bit_length() + code_bits + place_bits > 63:
        return place[np.lexsort((place, code, run))]
    packed = (run << (code_bits + place_bits)) | (code << place_bits) | place
    packed.sort()
    return packed & ((1 << place_bits) - 1)


def changes(*columns: np.ndarray) -> np.ndarray:
    """[E] bool, whether a row differs from the one before in any column; the first one does."""
    begins = np.zeros(len(columns[0]), bool)
    begins[:1] = True
    for values in columns:
        begins[1:] |= values[1:] != values[:-1]
    return begins


def ranges(begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """[R] beginnings and sizes → begin[0], begin[0] + 1, …, begin[1], … one after the other."""
    ends = np.cumsum(size)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - size), size)


def mix(*codes: np.ndarray) -> np.ndarray:
    """Codes → well-spread uint64 (the finalizer of splitmix64), so that sums of them tell sets apart."""
    mixed = np.zeros(len(codes[0]), np.uint64)
    for code in codes:
        mixed ^= code.astype(np.uint64)
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _places(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([E] where an event's text begins, [E] its place in the text)."""
    index = np.arange(len(text))
    start = np.maximum.accumulate(np.where(changes(text), index, 0))
    return start, index - start


def _first_of_each(start: np.ndarray, group: np.ndarray, right: np.ndarray, place: np.ndarray) -> np.ndarray:
    """[E] bool by event: whether it is the first one of its (group, right). The arguments are in the order of groups."""
    ordered = start + order_within(group, right, place)
    by_event = np.empty(len(right), right.dtype)
    by_event[start + place] = right
    kept = np.zeros(len(start), bool)
    kept[ordered[changes(group, by_event[ordered])]] = True
    return kept


def _same_sets(text: np.ndarray, place: np.ndarray, sums: tuple[np.ndarray, ...], first: np.ndarray) -> np.ndarray:
    """[G] groups so ordered that those of one text with equal sums stand together, each such run by first event."""
    hash_bits = max(63 - int(text[-1]).bit_length() - int(place.max()).bit_length(), 1)
    hashed = (mix(*sums) >> np.uint64(64 - hash_bits)).astype(np.int64)
    group_at = np.empty(int(first.max()) + 1, np.int64)
    group_at[first] = np.arange(len(first))
    order = group_at[first - place + order_within(text, hashed, place)]
    same_hash = ~changes(text[order], hashed[order])
    if (same_hash & changes(*(part[order] for part in sums))).any():
        # Two different sets of one text fell on one short hash: all the digits decide.
        return np.lexsort((place, *sums, text))
    return order
