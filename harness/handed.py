"""Answers in the files that others read: an evaluation server's, and dense texts for retrieval.

Knows runs, records and the tasks' formats by name. Must not know commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness import resolve, screen, store
from harness.errors import DataError, SpecError
from harness.types import Response

if TYPE_CHECKING:
    from harness.engine import Run
    from harness.resolve import DenseLines

DENSE = "dense.jsonl"
"""In a run's directory, where its answers are dense texts."""


def submit(runs: list[Path], file: Path) -> None:
    """The server's file of one complete run; what failed has no answer and is named."""
    if len(runs) != 1:
        raise SpecError(f"--submission takes one run; {len(runs)} were given")
    task = store.read_run(runs[0])["identity"]["task"]["name"]
    if (dense_lines := resolve.dense_lines_of(task)) is not None:
        _write_dense(runs[0], file, dense_lines)
        return
    records = list(store.read_records(runs[0]))
    pairs = [(record.sample(), record.answer) for record in records if record.failure is None]
    content = resolve.submission_of(task)(pairs)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    typer.echo(f"{file}: {len(pairs)} answers of {task}")
    if len(pairs) < len(records):
        screen.warn(f"{len(records) - len(pairs)} samples failed and have no answer; run again to retry them")


def leave_dense(result: Run) -> None:
    """RUN/dense.jsonl, where the run's answers are dense texts and none is missing."""
    lines = resolve.dense_lines_of(result.header["identity"]["task"]["name"])
    if lines is not None:
        try:
            _write_dense(result.path, result.path / DENSE, lines)
        except DataError as error:
            screen.warn(str(error))


def _write_dense(run: Path, file: Path, lines: DenseLines) -> None:
    """The dense texts of all images of a run's task, in the task's order; DataError while one is missing."""
    header = store.read_run(run)
    chosen = header["selection"]
    records = store.read_records(run)
    found = {each.sample_id: each for each in records if each.failure is None and each.repeat == 0}
    missing = chosen["of"] - sum(name in found for name in chosen["ids"])
    if missing:
        raise DataError(
            f"no dense texts were written: {missing:,} of {chosen['of']:,} images have none yet, and a file "
            "with gaps would give images their neighbours' texts. Repeat the run's command, without --limit "
            "or --samples, until none is missing"
        )
    ended = [found[name] for name in chosen["ids"]]
    answers = [(each.sample(), Response(each.answer, each.finish_reason)) for each in ended]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(header, answers))
    draft = file.with_name(file.name + ".new")
    try:
        draft.write_bytes(content.encode("utf-8", "replace"))  # half a character, which a model may write
        draft.replace(file)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}; name another file") from None
    typer.echo(f"{file}: {len(answers):,} dense texts")
