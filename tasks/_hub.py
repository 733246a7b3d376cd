"""Datasets of the Hugging Face hub, or folders of the same parquet files, as rows with pictures.

Knows the `datasets` library. Must not know: any benchmark's columns. Pictures stay where they are: a cell
is read when an adapter asks for its pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import DataError, PictureError
from harness.pictures import Deferred, File, Picture, Refused, picture_in
from harness.types import digest
from tasks._source import Loaded, Row

REMEDY = "Give root=DIR with the official files (`fovea data TASK` says which), or use a network"


def load(
    ids: Sequence[str], config: str | None, split: str, image: str = "image", revision: str | None = None
) -> Loaded:
    """The rows of `split`, from the first of `ids` that answers; `image` names the picture's column.

    revision: a commit, branch or tag; the fingerprint names the commit that was read. Offline, the copy in
    the hub's cache is read. An id that is a folder is read from disk. `config` may be missing where there
    is only one. Raises DataError where none answers.
    """
    reasons = []
    for name in ids:
        try:
            table, commit = _table(name, config, split, revision)
        except _unreachable() as error:
            reasons.append(f"{name}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        rows, pictures = _rows(table, _Place(name, split, commit, image))
        version = commit or digest([json.dumps(row.values, sort_keys=True, default=str) for row in rows])
        return Loaded(rows, pictures, digest([name, config, split, version]))
    raise DataError(f"the hub cannot be read ({'; '.join(reasons)}). {REMEDY}")


Tables = Callable[[str | None, str], Loaded]
"""The rows of a configuration and a split."""


def tables(ids: Sequence[str], hf_id: str | None, revision: str | None) -> Tables:
    """What reads the tables of `hf_id` (a hub's id, or a folder), else of the first of `ids` that answers."""
    return lambda config, split: load((hf_id,) if hf_id else ids, config, split, revision=revision)


def _unreachable() -> tuple[type[Exception], ...]:
    """What a hub, a dataset or a configuration that is not there raises, network errors included."""
    import httpx2
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return (OSError, ValueError, DatasetsError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError)


def _table(name: str, config: str | None, split: str, revision: str | None) -> tuple[Any, str | None]:
    """The table, and the hub's commit that it is of; None for a folder."""
    import datasets

    datasets.disable_progress_bars()
    folder = Path(name).expanduser()
    path, cache = (str(folder), _cache(folder)) if folder.is_dir() else (name, None)
    try:
        builder = datasets.load_dataset_builder(path, config, revision=revision, cache_dir=cache)
    except ValueError as error:
        if config is None or "BuilderConfig" not in str(error):
            raise
        builder = datasets.load_dataset_builder(path, revision=revision, cache_dir=cache)
    commit = None if cache else str(builder.hash)
    if commit and revision and re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
        # offline, `datasets` takes the newest copy that it has, whatever was asked for
        raise ValueError(f"commit {revision} is not in the hub's cache, but {commit}")
    builder.download_and_prepare()
    return builder.as_dataset(split=split), commit


def _cache(folder: Path) -> str:
    """A cache of its own for this state of a folder: `datasets` takes folders of one name for the same."""
    import datasets

    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    state = [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "fovea" / digest(state)[:16])


@dataclass(frozen=True)
class _Place:
    """Where a table's pictures are: its dataset, split, commit, and their column."""

    name: str
    split: str
    commit: str | None
    column: str


def _rows(table: Any, place: _Place) -> tuple[list[Row], list[Picture]]:
    import datasets

    words, column = table, place.column
    pictures: list[Picture]
    if column not in table.column_names:
        why = f"{place.name} has no column {column!r}"
        pictures = [Picture(Refused("none", why))] * len(table)
    elif table.features[column] == datasets.Value("string"):  # files of the repository, by their names
        pictures = [_named(place, str(file)) for file in table[column]]
    else:
        words = table.remove_columns([column])
        cells = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        labels = [f"{place.name}/{place.split}/{number}" for number in range(len(table))]
        pictures = [
            Picture(Deferred(label, partial(_cell, cells, number, column, label)))
            for number, label in enumerate(labels)
        ]
    where = f"{place.name}, {place.split}, row"
    rows = [Row(values, f"{where} {number}") for number, values in enumerate(words)]
    return rows, pictures


def _cell(cells: Any, number: int, column: str, label: str) -> bytes:
    """A cell's bytes. It may name a file beside them; no table is trusted with a path."""
    cell = cells[number][column]
    if not cell or not cell["bytes"]:
        raise PictureError(f"{label} holds no picture", "missing_picture")
    data: bytes = cell["bytes"]
    return data


def _named(place: _Place, name: str) -> Picture:
    """A picture that is a file of the dataset's folder or repository."""
    picture = picture_in(Path(place.name).expanduser(), name)
    if place.commit is None or not isinstance(picture.source, File):
        return picture
    return Picture(Deferred(f"{place.name}/{name}", partial(_fetched, place, name)))


def _fetched(place: _Place, name: str) -> bytes:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(place.name, name, repo_type="dataset", revision=place.commit)
        return Path(path).read_bytes()
    except _unreachable() as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise PictureError(f"{place.name}/{name} cannot be fetched: {why}", "missing_picture") from None
