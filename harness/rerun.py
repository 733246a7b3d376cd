"""Runs made again: how a run's answers can be, and the rows of a baseline asked anew.

Nothing known is used: no cache, a folder of its own, and no money, so that what is judged is what the model
says now. Knows names and the engine. Must not know what a baseline is, or who is worse.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from harness import engine, matching, resolve, store
from harness.errors import FoveaError, SpecError
from harness.types import Model, Task

Show = Callable[[engine.Progress], None]


class Row(Protocol):
    """What is asked: specs, samples and the seed."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def repeats(self) -> int: ...
    @property
    def seed(self) -> int: ...


def recipes(models: Sequence[str]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function of a run's header: the specs of its task and model, and whether it is local.

    Of `models` and the header's own spec, it is the first that makes a run of the same id. The function
    raises FoveaError where there is none, and for what this machine cannot make.
    """
    make_task, make_model = functools.cache(resolve.make_task), functools.cache(resolve.make_model)

    def recipe(header: Mapping[str, Any]) -> dict[str, Any]:
        task_spec = portable(header["task"])
        task = make_task(task_spec)
        if matching.as_retrieval(task) is not None:
            raise SpecError("a retrieval run is not made again here")
        methods = [resolve.make_method(spec) for spec in header["methods"]]
        tried = list(dict.fromkeys(filter(None, [*models, header.get("model")])))
        for spec in map(portable, tried):
            model = make_model(spec)
            chain = engine.compose(model, methods)
            found = engine.identity(task, chain, header["identity"]["decoding"]["seed"])
            if store.run_id(found) == header["id"]:
                return {"task": task_spec, "model": spec, "local": _local(model, header)}
        why = (
            f"{', '.join(tried)} makes another run" if tried else "its header does not name its model's spec"
        )
        raise SpecError(f"{why}; name the model as --model SPEC")

    return recipe


def _local(model: Model, header: Mapping[str, Any]) -> bool:
    """Whether nothing stands behind a wire: the model states no price, and nothing around it was paid for."""
    return not hasattr(model, "estimate") and not header["spending"]["usage"]["dollars"]


def portable(spec: str) -> str:
    """A spec with paths as seen from here. SpecError for one that lies elsewhere: nobody else has it there.

    >>> portable(f"hf:{Path.cwd()}/assets/demo,dtype=float32"), portable("hf:llava-hf/llava-1.5-7b-hf")
    ('hf:assets/demo,dtype=float32', 'hf:llava-hf/llava-1.5-7b-hf')
    """

    def seen_from_here(found: re.Match[str]) -> str:
        path = Path(found[0]).expanduser()
        try:
            return path.relative_to(Path.cwd()).as_posix()
        except ValueError:
            raise SpecError(
                f"{found[0]} lies outside {Path.cwd()}, where nobody else could find it; run from a folder "
                "that holds it"
            ) from None

    return re.sub(r'(?<=[:=,("])(?:/(?!/)|~)[^,()"]*', seen_from_here, spec)


def run(
    rows: Sequence[Row],
    *,
    out: Path,
    progress: Callable[[str], AbstractContextManager[Show]],
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Ask every row anew, into `out`: the runs, by row's name, and why a row has none.

    Rows of one model follow each other, so that its weights load once. SpecError where `out` holds runs: they
    would be resumed, not made. KeyboardInterrupt ends it.
    """
    if store.find_runs(out):
        raise SpecError(f"{out} holds runs, and answers that are there are not asked for again; name another")
    make_task = functools.cache(resolve.make_task)
    make_model = functools.lru_cache(maxsize=1)(resolve.make_model)
    found: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    order = {model: place for place, model in enumerate(dict.fromkeys(row.model for row in rows))}
    for number, row in enumerate(sorted(rows, key=lambda row: order[row.model]), 1):
        try:
            with progress(f"{number}/{len(rows)} {row.name}") as show:
                found[row.name] = _ask(row, make_task(row.task), make_model(row.model), out, show, warn)
        except FoveaError as error:
            reasons[row.name] = f"it could not be run again: {error}"
    return found, reasons


def _ask(row: Row, task: Task, model: Model, out: Path, show: Show, warn: Callable[[str], None]) -> Path:
    result = engine.run(
        task,
        model,
        [resolve.make_method(spec) for spec in row.methods],
        out=out,
        samples=row.ids,
        repeats=row.repeats,
        seed=row.seed,
        budget=0.0,
        progress=show,
        warn=warn,
    )
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.path
