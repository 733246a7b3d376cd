"""The text form of a reply: three headed lists, in which the model retypes the sentences.

Knows headings, bullets, labels, quotes and source tags as models write them. Must not know whether a claim
holds (`grouping.py`). The form is that of GeWu-Lab/Patch-Matters, commit bf3dfbc
(`aggregation/semantic_batch.py`); its three regular expressions miss bold text, `*` and numbered bullets,
quotes that are curly or absent, several sources in one tag, a full stop outside the quotes; they cut a
sentence at an inner quote and halve a pair without brackets; and what they miss is gone. All of these are
read here, each sentence matched with those that went in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from methods.patch_matters.catalogue import Catalogue
from methods.patch_matters.claims import ID, Claim, Claims, Kind, class_of
from methods.patch_matters.replies import Unreadable
from methods.patch_matters.sentences import Sentence

_NAME = r"(?:descriptions?|regions?|passages?|captions?|sources?|areas?|desc\.?|[dr])"
_TAG = re.compile(
    rf"[(\[]\s*{_NAME}\s*\#?\d{{1,3}}(?:(?:\s*(?:,|&|/|;|\band\b|\bor\b|\+))+\s*(?:{_NAME})?\s*\#?\d{{1,3}})*\s*[)\]]"
    r"|\(\s*\d{1,3}\.\d{1,3}(?:\s*,\s*\d{1,3}\.\d{1,3})*\s*\)",
    re.I,
)
_PREFIX = re.compile(rf"\b{_NAME}\s*#?(\d{{1,3}})\s*(?::|[-–—]\s)\s*", re.I)
_BULLET = re.compile(r"\s*(?:[-*•‣◦▪–—+]+|\(?\d{1,3}[.)](?!\d))\s+|\s*[-•‣◦▪](?=[\"\[(])")
_GROUP = re.compile(
    r"(?:group|set)\s*#?\d*[^\"\n:]{0,60}:\s*|(?:combined|merged)\s+(?:description|sentence|statement)s?\s*:\s*",
    re.I,
)
_LABEL = re.compile(
    r"(?:contradict\w*|conflict\w*|pair|unique|item|set|sentence|similar|consistent|group)"
    r"(?:\s+(?:pair|set|group|description|sentence|detail)s?)?\s*#?\d*\s*:\s*",
    re.I,
)
_HEADING = re.compile(
    r"(?:step\s*\d+\s*[:.-]\s*)?(?:for\s+|the\s+)*"
    r"(similar|consistent|same|shared|common|contradict\w*|conflict\w*|inconsistent|unique)\b"
    r"(?P<rest>[^\":]{0,60})(?P<colon>:?)\s*(?P<after>.*)\Z",
    re.I | re.S,
)
_HEADED = re.compile(
    r"\A(?:/[\s\w]+)?\W*(?:\w+\s+)?(?:descriptions?|sentences?|triples?|statements?|details?|facts?|information|"
    r"points?|items?|ones|content|groups?|pairs?|parts?)?\W*(?:\([^)]*\)\W*)?\Z",
    re.I,
)
_NOTHING = re.compile(
    r"\W*(?:none|n/?a|nothing|empty|not applicable|"
    r"(?:there (?:are|is|were) )?no(?:ne)? (?:contradict|conflict|unique|similar|consistent|such|other)\w*)"
    r"\b.{0,80}\Z",
    re.I,
)
_QUOTED = re.compile(r"\"((?:[^\"]|\"(?!\s*(?:,|;|\]|\Z|vs\b|and\b)))+)\"")
_EDGE = " \t,;:&-–—*_`[]/"


@dataclass
class _Line:
    """One entry: its class; whether a label or blank line came before it; whether it is surely of a list."""

    kind: Kind | None
    fresh: bool
    listed: bool
    text: str


def _straight(text: str) -> str:
    """Straight quotes, and none of Markdown's emphasis."""
    text = re.sub(r"[“”„‟«»]|''|``|\\\"", '"', text)
    text = re.sub("[‘’‛]", "'", text)
    return re.sub(r"\*\*+|__+|(?<!\w)`|`(?!\w)|(?<=[\s\"(])\*(?=\w)|(?<=[\w.\"])\*(?=[\s\"):,]|\Z)", "", text)


def heading_of(line: str) -> tuple[Kind, str] | None:
    """The class that a heading opens, and what follows it on its line; None for any other line."""
    line = _straight(line).strip().lstrip("#").strip()
    bullet = _BULLET.match(line)
    line = line[bullet.end() :] if bullet else line
    found = _HEADING.match(line)
    if not found or not _HEADED.match(found["rest"]):
        return None
    if found["after"] and not found["colon"]:
        return None
    kind = class_of(found.group(1))
    if kind is None or (found["colon"] and re.search(r"\d\s*\Z", found["rest"])):
        return None  # "Contradictory pair 1:" is the label of an entry
    return kind, found["after"]


def _lines(reply: str) -> Iterator[_Line]:
    """The entries of the reply, each on one line: continued ones are joined."""
    kind: Kind | None = None
    open_line: _Line | None = None
    fresh = True
    for raw in reply.splitlines():
        heading = heading_of(raw)
        line = "" if raw.lstrip().startswith("```") else " ".join(_straight(raw).split())
        bullet = _BULLET.match(line)
        body = (line[bullet.end() :] if bullet else line).strip().lstrip("#").strip()
        labelled = bool(_GROUP.match(body) or _LABEL.match(body))
        opened = bool(heading or not body or labelled or (bullet and not body.startswith(("]", ","))))
        if (
            open_line
            and _unfinished(open_line.text)
            and not (opened and not _in_bracket(open_line.text, body))
        ):
            open_line.text += " " + body
            continue
        if open_line:
            yield open_line
            open_line = None
        if heading:
            kind, body = heading
            fresh, labelled = True, False
        if not body:
            fresh = True
            continue
        label = None if kind == "consistent" or _GROUP.match(body) else _LABEL.match(body)
        if label and not body[label.end() :].strip():
            fresh = True
            continue
        body = body[label.end() :] if label else body
        listed = bool(bullet or heading or label or '"' in body)
        open_line = _Line(kind, fresh or bool(label), listed, body)
        fresh = False
    if open_line:
        yield open_line


def _in_bracket(text: str, body: str) -> bool:
    """Whether an entry that opened a bracket goes on with `body`, bulleted or not."""
    return text.startswith("[") and not body.startswith("[") and not _GROUP.match(body) and bool(body)


def _unfinished(text: str) -> bool:
    """Whether an entry goes on: a bracket or a quote is open, or it ends before its source."""
    if text.startswith("["):
        return text.count("[") > text.count("]")
    return text.count('"') % 2 == 1 or text.endswith((",", "("))


def _stripped(text: str) -> str:
    """The words of an entry, without separators and the quotes around them; inner quotes stay."""
    text = re.sub(
        r"\A[\s,;:\[\]&/–—*-]*(?:(?:vs\.?|versus|while|and|but|whereas)\s+)?(?=[\"'\[])",
        "",
        text.strip(_EDGE),
    )
    text = text.strip(_EDGE)
    for quote in "\"'":
        match = re.fullmatch(rf"{quote}(.*?){quote}\s*([.!?]?)", text, re.S)
        if match:
            inner, stop = match.groups()
            return (inner if inner.rstrip().endswith((".", "!", "?")) else inner + stop).strip()
    if text.count('"') == 1:  # the other was lost
        text = text.strip('"')
    return text.strip()


_Parts: TypeAlias = list[tuple[str, frozenset[int], list[str]]]
"""The sentences of an entry, each with its sources and, where its tag has any, ids."""


def _tagged(text: str) -> _Parts:
    tags = list(_TAG.finditer(text))
    if tags:
        starts = [0, *(tag.end() for tag in tags)]
        found = []
        for start, tag in zip(starts, tags, strict=False):
            ids = [f"{int(a)}.{int(b)}" for a, b in ID.findall(tag.group())]
            numbers = [int(one) for one in re.findall(r"\d+", tag.group())] if not ids else []
            found.append((_stripped(text[start : tag.start()]), frozenset(numbers), ids))
        return [one for one in found if any(char.isalnum() for char in one[0])]
    prefixes = list(_PREFIX.finditer(text))
    if prefixes:
        ends = [*(prefix.start() for prefix in prefixes[1:]), len(text)]
        found = [
            (_stripped(text[prefix.end() : end]), frozenset({int(prefix.group(1))}), [])
            for prefix, end in zip(prefixes, ends, strict=True)
        ]
        return [one for one in found if any(char.isalnum() for char in one[0])]
    quoted = [one.strip() for one in _QUOTED.findall(text)]
    texts = quoted if len(quoted) > 1 else [_stripped(text)]
    return [(one, frozenset(), []) for one in texts if any(char.isalnum() for char in one)]


def from_text(reply: str, catalogue: Catalogue) -> Claims:
    claims = Claims()
    entries: list[tuple[_Line, _Parts]] = []
    told = False
    for line in _lines(reply):
        if _NOTHING.match(line.text):
            told = told or line.kind is not None
            continue
        group = _GROUP.match(line.text)
        parts = _tagged(line.text[group.end() :] if group else line.text)
        if group:
            line.kind, line.listed = "consistent", True
        elif line.kind is None and _TAG.search(line.text):
            line.kind = "contradictory" if len(parts) > 1 else "unique"
        if line.kind and parts:
            entries.append((line, parts))
    _facts(entries, catalogue, claims)  # first: what they leave of a sentence is for the others
    _others(entries, catalogue, claims)
    if not (told or claims.facts or claims.sets or claims.unique):
        raise Unreadable(
            "there was none of the three headed lists (similar, contradictory and unique descriptions)"
        )
    claims.unique += catalogue.untold()
    return claims


def _facts(entries: Sequence[tuple[_Line, _Parts]], catalogue: Catalogue, claims: Claims) -> None:
    for line, parts in entries:
        for text, sources, ids in parts if line.kind == "consistent" else ():
            known = tuple(one for one in ids if one in catalogue.by_id)
            found = known or catalogue.support(text, sources)
            if not (found or sources or line.listed):
                claims.faults.append(f"not an entry of a list: {text[:60]}")
                continue
            lacking = len({catalogue.by_id[one].source for one in found}) < 2
            ids_or_own = (*found, catalogue.loose()) if lacking else found
            claims.facts.append(Claim(text, ids_or_own, sources & catalogue.sources))


def _others(entries: Sequence[tuple[_Line, _Parts]], catalogue: Catalogue, claims: Claims) -> None:
    run: list[Sentence] = []  # contradictory sentences, one to a line

    def close() -> None:
        if run:
            claims.sets.append(run.copy())
            run.clear()

    for line, parts in entries:
        if line.kind == "consistent":
            close()
            continue
        sentences: list[Sentence] = []
        for text, sources, ids in parts:
            named = [catalogue.by_id[one] for one in ids if one in catalogue.by_id]
            meant = named[0] if named else catalogue.retyped(text, sources)
            if sources or line.listed or meant.id in catalogue.by_id:
                sentences.append(meant)
            else:
                claims.faults.append(f"not an entry of a list: {text[:60]}")
        if line.kind == "unique":
            claims.unique += sentences
        elif len(sentences) > 1:
            close()
            claims.sets.append(sentences)
        else:
            if line.fresh or {one.source for one in run} & {one.source for one in sentences}:
                close()
            run += sentences
    close()
