"""JSON as language models write it: in prose, fenced, single or curly quotes, stray commas, cut off.

Knows JSON and how it comes to be broken. Must not know what the values mean: `json_form.py` does.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

DEEPEST = 32
"""Levels of nesting; a reply that is deeper says nothing."""
LONGEST = 2000
"""Characters of a string whose end is in doubt; further on nobody looks for it."""

DOUBLE = '"“”„‟«»'
SINGLE = "'‘’‚‛`"
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, strict=False)
_OPENING = re.compile(r"[{\[]")
_BLANK = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*+", re.S)
_BARE = re.compile(r"[^,:{}\[\]\n]+")
_CLOSER = {**dict.fromkeys(DOUBLE, re.compile(f"[{DOUBLE}]")), **dict.fromkeys(SINGLE, re.compile("['‘’‛`]"))}
_STRING_ENDS = re.compile(
    rf"\s*+(?:\Z|[\]}}:]|,\s*+(?:\Z|[\[\]{{}}{DOUBLE}{SINGLE}]|-?\d|[A-Za-z_][\w. ]{{0,30}}+[:\],}}]))"
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.S)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "", "f": ""}


def values(text: str) -> tuple[list[Any], bool]:
    r"""Every outermost object and array in `text`, in order; and whether any of them had to be mended.

    Numbers stay text, so that 1.10 is not 1.1; what stands unquoted is text too. A member without a value
    has None. What is nested deeper than `DEEPEST` levels is left out. Never raises.

    >>> values("Sure: {'ids': [D1.1, 2.10,], “text”: “A “STOP” sign”} Done.")
    ([{'ids': ['D1.1', '2.10'], 'text': 'A “STOP” sign'}], True)
    """
    found: list[Any] = []
    mended, at = False, 0
    while opening := _OPENING.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, opening.start())
            found.append(value)
            continue
        except (ValueError, RecursionError):
            mended = True
        reader = _Reader(text, opening.start())
        with contextlib.suppress(_TooDeep):
            found.append(reader.value(0))
        at = max(reader.at, opening.end())
    return found, mended


class _TooDeep(Exception):
    pass


class _Reader:
    """Reads one value from `at` on, whatever is there; every step moves on, so that it ends."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise _TooDeep
        char = self._next()
        if char == "{":
            return self._members(depth)
        if char == "[":
            return self._items(depth)
        return self._string() if char in _CLOSER else self._bare()

    def _next(self) -> str:
        """The next character that is no blank and no comment; "" at the end."""
        blank = _BLANK.match(self.text, self.at)
        self.at = blank.end() if blank else self.at
        return self.text[self.at : self.at + 1]

    def _items(self, depth: int) -> list[Any]:
        self.at += 1
        items: list[Any] = []
        while (char := self._next()) not in ("", "]", "}"):
            if char in ",:":
                self.at += 1
            else:
                items.append(self.value(depth + 1))
        self.at += char == "]"  # a brace closes what is around this
        return items

    def _members(self, depth: int) -> dict[str, Any]:
        self.at += 1
        members: dict[str, Any] = {}
        while (char := self._next()) not in ("", "]", "}"):
            if char in ",:":
                self.at += 1
                continue
            key = "" if char in "[{" else self._string() if char in _CLOSER else self._bare()
            value = None
            if char in "[{" or self._next() == ":":
                self.at += char not in "[{"
                value = self.value(depth + 1) if self._next() not in ("", ",", "]", "}") else None
            earlier = members.get(key)
            both = isinstance(earlier, list) and isinstance(value, list)
            members[key] = [*earlier, *value] if both else value  # type: ignore[misc]
        self.at += char == "}"
        return members

    def _bare(self) -> str:
        bare = _BARE.match(self.text, self.at)
        self.at = bare.end() if bare else self.at + 1
        return bare.group().strip() if bare else ""

    def _string(self) -> str:
        """What a quote opens. A quote closes it if the value could end there: others belong to the words."""
        closer, start = _CLOSER[self.text[self.at]], self.at + 1
        first = -1
        look, last = start, min(len(self.text), start + LONGEST)
        while close := closer.search(self.text, look, last):
            look = close.end()
            if self.text[close.start() - 1] == "\\" and close.start() > start:
                continue
            if _STRING_ENDS.match(self.text, look):
                break
            first = close.start() if first < 0 else first
        end = close.start() if close else first
        if end < 0:  # cut off, or never closed: to the end of its line
            line = self.text.find("\n", start)
            end = line if line >= 0 else len(self.text)
            self.at = end
        else:
            self.at = end + 1
        return _ESCAPE.sub(_unescaped, self.text[start:end])


def _unescaped(escape: re.Match[str]) -> str:
    what = escape.group(1)
    if len(what) > 1:
        char = chr(int(what[1:], 16))
        return "�" if "\ud800" <= char <= "\udfff" else char
    return _ESCAPED.get(what, what)
