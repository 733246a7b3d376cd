"""What every page shares: templates that escape, one style sheet, and a policy that forbids the network.

Pages are static files that work from `file://`. What a model or a dataset wrote reaches them as text only:
autoescaped in a template, or as JSON that no HTML parser can mistake for markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import FoveaError, StoreError

if TYPE_CHECKING:
    from jinja2 import Environment

PAGES = Path(__file__).parent / "pages"
POLICY = (
    "default-src 'none'; script-src 'self' file: 'unsafe-inline' blob:; style-src 'self' file: "
    "'unsafe-inline'; img-src 'self' file: data: blob:; font-src 'self' file: data:; base-uri 'none'; "
    "form-action 'none'"
)
"""The content security policy of every page: what is in its folder, and nothing else."""


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["policy"] = POLICY
    return made


def render(name: str, **values: Any) -> str:
    """The page of a template in `leaderboard/pages`; every value is escaped."""
    return _environment().get_template(name).render(**values)


def shared(name: str) -> str:
    """A style sheet or script of `leaderboard/pages`, to be written beside a page."""
    return (PAGES / name).read_text(encoding="utf-8")


def script(value: Any) -> str:
    r"""JSON for a script: nothing in it can end the element, and half a character becomes U+FFFD.

    >>> script({"text": "</script><b>\u2028"})
    '{"text":"\\u003c/script\\u003e\\u003cb\\u003e\\u2028"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "�")


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files below `folder`, each in one step. StoreError where that cannot be done."""
    for name, content in files.items():
        path = folder / name
        draft = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise StoreError(
                f"{path} cannot be written: {error.strerror}. Choose a folder with --out"
            ) from None


def packaged(package: str, name: str) -> str:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / name).is_file():
            return (Path(folder) / name).read_text(encoding="utf-8")
    raise FoveaError(f"a page needs {name} of {package}: pip install {package}")
