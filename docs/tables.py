"""Write docs/reference.md: every task, model, method and metric with its docstring and knobs.

    python docs/tables.py            # writes the page
    python docs/tables.py --check    # exit 1 where the page is not what the code says

The table of a metric's variants is read off the docstrings of its arithmetic: each item of the form
"- `variant` (who uses it): what it computes".
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import resolve

PAGE = Path(__file__).parent / "reference.md"
VARIANT = re.compile(r"^- `(\w+)`(?: \(([^)]*(?:\([^)]*\)[^)]*)*)\))?[:,] (.*?)(?=^- |^$|\Z)", re.M | re.S)


def page() -> str:
    """The whole page as Markdown."""
    parts = ["# Reference", "Generated from the code by `docs/tables.py`.", *_overview(), *_variants()]
    for kind, room in resolve.ROOMS.items():
        parts.append(f"## {'Models' if kind == 'model' else room.capitalize()}")
        for name, where in resolve.names(kind).items():
            parts.append(f"### {name}\n\n{resolve.summary(where)}")
            parts.append("```text\n" + resolve.documentation(kind, name) + "\n```")
            rows = [
                [f"`{knob}`", _code(hint), _code(default)]
                for knob, hint, default in resolve.knobs(kind, name)
            ]
            parts += [_table(["knob", "type", "default"], rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def _overview() -> Iterator[str]:
    """One table of tasks: what they are, where from, under which licence and protocols."""
    rows = []
    for name, where in resolve.names("task").items():
        source = getattr(importlib.import_module(f"tasks.{name}"), "SOURCE", None)
        protocols = [hint for knob, hint, _ in resolve.knobs("task", name) if knob == "protocol"]
        rows.append(
            [
                f"[{name}](#{name})",
                source.title if source else resolve.summary(where),
                source.size if source else "",
                source.licence if source else "",
                ", ".join(protocols[0].split("|")) if protocols else "",
                source.metric if source else "",
                ", ".join(source.hub) if source else "",
            ]
        )
    yield "## All tasks"
    yield "The first protocol is the default. Without `root=DIR`, rows come from the first hub id that works."
    yield _table(["task", "source", "samples", "licence", "protocols", "ranked by", "hub"], rows)


def _variants() -> Iterator[str]:
    """One table of metrics: every variant, who uses it, and what it computes."""
    rows = []
    for name in resolve.names("metric"):
        module = importlib.import_module(f"metrics.{name}")
        for _, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ or function.__module__.startswith("metrics._"):
                for variant, users, meaning in VARIANT.findall(inspect.getdoc(function) or ""):
                    rows.append([f"[{name}](#{name})", f"`{variant}`", _cell(users), _cell(meaning)])
    yield "## All variants of metrics"
    yield _table(["metric", "variant", "source and users", "what it computes"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>"


def main() -> None:
    if "--check" in sys.argv:
        sys.exit("docs/reference.md is stale: run python docs/tables.py" if PAGE.read_text() != page() else 0)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
