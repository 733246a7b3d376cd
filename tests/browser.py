"""A real browser for the tests of pages; where there is none, they skip, saying why.

The page may ask for nothing outside its folder, and its console must stay free of errors: both are checked
when the test ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WHERE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(WHERE is None, reason="no Chromium on this machine (apt install chromium)")


@contextmanager
def browser() -> Iterator[Browser]:
    """One Chromium, for a module's tests together."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=WHERE, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def page(
    started: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
) -> Iterator[Page]:
    """A page that fails the test for an error in its console and for a request outside `file:`."""
    context = started.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=touch,
        offline=True,
    )
    opened = context.new_page()
    faults: list[str] = []
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:", "blob:"))
            else faults.append(f"asked for {request.url}")
        ),
    )
    yield opened
    context.close()
    assert not faults, faults
