"""docs/extending.md, run as it stands: each file is saved into its room and used."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.types import Pace, Request

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The page's files, saved into rooms that the resolver looks into."""
    saved = []
    for name, code in re.findall(r'```python title="(.+?)"\n(.*?)```', PAGE.read_text(), re.DOTALL):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        room = importlib.import_module(path.parent.name)
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(path.parent)])
        assert room.__spec__ is not None
        monkeypatch.setattr(room.__spec__, "submodule_search_locations", room.__path__)
        saved.append(name)
    resolve.names.cache_clear()
    yield saved
    resolve.names.cache_clear()
    for name in saved:
        sys.modules.pop(name.removesuffix(".py").replace("/", "."), None)


def test_the_pages_files_work_together(files: list[str], tmp_path: Path) -> None:
    assert files == ["tasks/brightness.py", "methods/vote.py", "metrics/brevity.py"]

    def answer(request: Request) -> str:
        pixels = request.images[0].open()
        left, right = pixels.getpixel((0, 0)), pixels.getpixel((63, 0))
        right_side = left < right  # type: ignore[operator]
        return ("right" if right_side else "left") if request.decoding.seed % 3 else "no idea"

    model = Scripted(answer, pace=Pace(free=True))
    task = resolve.make_task("brightness:size=30")
    result = engine.run(task, model, [resolve.make_method("vote:votes=3")], out=tmp_path / "runs")
    assert result.summary["metrics"]["exact[lmms]"]["scores"]["accuracy"]["value"] == 1.0
    assert result.spending["usage"]["calls"] == 90
    summary = engine.score(result.path, [resolve.make_metric("brevity")])
    assert summary["metrics"]["brevity"]["scores"]["single"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_pages_files_are_listed_by_their_first_line(files: list[str]) -> None:
    assert resolve.summary(resolve.names("method")["vote"]).startswith("Self-consistency")
    assert ("votes", "int", "5") in resolve.knobs("method", "vote")
