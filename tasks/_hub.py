"""Datasets of the Hugging Face hub, or folders of the same parquet files, as rows with pictures.

Knows the `datasets` library. Must not know: any benchmark's columns. Pictures stay where they are: a cell
is read when an adapter asks for its pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.pictures import Deferred, Picture, Refused
from harness.types import digest
from tasks._source import Loaded, Row, fingerprint

REMEDY = "Give root=DIR with the official files (`fovea data TASK` says which), or use a network"


def load(
    ids: Sequence[str], config: str | None, split: str, image: str = "image", revision: str | None = None
) -> Loaded:
    """The rows of `split`, from the first of `ids` that answers; `image` names the picture's column.

    revision: a commit, branch or tag; the fingerprint names the commit that was read. Offline, the copy in
    the hub's cache is read. An id that is a folder is read from disk. Raises DataError where none answers.
    """
    reasons = []
    for name in ids:
        try:
            table, version = _table(name, config, split, revision)
        except _unreachable() as error:
            reasons.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        return Loaded(*_rows(table, name, split, image), fingerprint=digest([name, config, split, version]))
    raise DataError(f"the hub cannot be read ({'; '.join(reasons)}). {REMEDY}")


def _unreachable() -> tuple[type[Exception], ...]:
    """What a hub, a dataset or a configuration that is not there raises, network errors included."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return (OSError, ValueError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError)


def _table(name: str, config: str | None, split: str, revision: str | None) -> tuple[Any, str]:
    """The table, and the version that was read: the hub's commit, or the sum of a folder's files."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset(name, config, split=split, revision=revision)
    if Path(name).is_dir():
        return table, fingerprint(sorted(Path(name).rglob("*.parquet")))
    read = " ".join(table.info.download_checksums or ())  # hf://datasets/owner/name@commit/file
    commit = re.search(r"@([0-9a-f]{40})/", read)
    return table, commit[1] if commit else revision or "unknown"


def _rows(table: Any, name: str, split: str, image: str) -> tuple[list[Row], list[Picture]]:
    import datasets

    words = table
    pictures: list[Picture] = [Picture(Refused("none", f"{name} has no column {image!r}"))] * len(table)
    if image in table.column_names:
        words = table.remove_columns([image])
        cells = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        pictures = [
            Picture(Deferred(f"{name}/{split}/{place}", partial(_bytes, cells, place, image)))
            for place in range(len(table))
        ]
    rows = [Row(values, f"{name}, {split}, row {place}") for place, values in enumerate(words)]
    return rows, pictures


def _bytes(cells: Any, place: int, image: str) -> bytes:
    cell = cells[place][image]
    data: bytes = cell["bytes"] or Path(cell["path"]).read_bytes()
    return data
