"""Write docs/reference.md: every task, model, method and metric with its docstring and knobs.

python docs/tables.py            # writes the page
python docs/tables.py --check    # exit 1 where the page is not what the code says
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import resolve

PAGE = Path(__file__).parent / "reference.md"


def page() -> str:
    """The whole page as Markdown."""
    parts = ["# Reference", "Generated from the code by `docs/tables.py`."]
    for kind, room in resolve.ROOMS.items():
        parts.append(f"## {'Models' if kind == 'model' else room.capitalize()}")
        for name, where in resolve.names(kind).items():
            parts.append(f"### {name}\n\n{resolve.summary(where)}")
            parts.append("```text\n" + resolve.documentation(kind, name) + "\n```")
            knobs = resolve.knobs(kind, name)
            if knobs:
                rows = [f"| `{knob}` | {_cell(type_)} | {_cell(default)} |" for knob, type_, default in knobs]
                parts.append("\n".join(["| knob | type | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    shown = text.replace("|", "&#124;").replace("\n", " ")
    return f"`{shown}`" if "|" not in text else f"<code>{shown}</code>"


def main() -> None:
    if "--check" in sys.argv:
        sys.exit("docs/reference.md is stale: run python docs/tables.py" if PAGE.read_text() != page() else 0)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
