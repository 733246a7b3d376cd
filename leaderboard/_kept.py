"""What a board has worked out about a run, kept beside the runs for as long as it is true.

One file per folder of runs (`<out>/.board.json`, beside <out>/<task>/<model>/<run>): for each run a key and
four numbers. The key is a digest of all that decides them, so that a file that changed, another identity arm
or another line of the arithmetic is another key, and the numbers are worked out anew. Removing the file is
harmless; where it cannot be written nothing is kept; two boards at once lose each other's additions at worst.
It knows files and keys; what the numbers mean, it does not.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import store
from harness.types import digest

FILE = ".board.json"
YOUNG = 2.0
"""Seconds for which a file may change again without a new time of change: younger ones are not trusted."""

Numbers = tuple[float | None, float | None, float | None, float | None]
Stamp = list[int]
Place = tuple[Path, str]


def stamp(run: Path) -> Stamp | None:
    """What changes with a run's files: sizes, times of change and places on the disk. None where one is
    missing, or so young that it might change unseen."""
    found: Stamp = []
    for name in (store.RUN, store.RECORDS):
        try:
            there = (run / name).stat()
        except OSError:
            return None
        if time.time() - max(there.st_mtime, there.st_ctime) < YOUNG:
            return None
        found += [there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino]
    return found


def key(stamps: Iterable[Stamp | None], decides: Any, code: Sequence[str]) -> str | None:
    """The digest of files' stamps and of all else that decides (JSON). None where a file is not to be
    trusted."""
    all_of = list(stamps)
    return None if None in all_of else digest([all_of, decides, code])


def code_of(*parts: ModuleType | type) -> list[str]:
    """Digests of the files of modules, and of classes and what they inherit from."""
    modules = [part.__name__ for part in parts if isinstance(part, ModuleType)]
    modules += [base.__module__ for part in parts if isinstance(part, type) for base in part.__mro__]
    return [_source(name) for name in dict.fromkeys(modules)]


@cache
def _source(module: str) -> str:
    """A digest of a module's file; without one, the interpreter's version."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return sha256(Path(file).read_bytes()).hexdigest() if file else sys.version


class Kept:
    """The numbers kept beside runs; `put` those that are new, and `write` them."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, tuple[str, Numbers]]] = {}
        self._new: dict[Path, dict[str, tuple[str, Numbers]]] = {}

    def get(self, place: Place | None, key: str | None) -> Numbers | None:
        if place is None or key is None:
            return None
        where, name = place
        if where not in self._read:
            self._read[where] = _load(where)
        kept_key, numbers = self._read[where].get(name, (None, None))
        return numbers if kept_key == key else None

    def put(self, place: Place | None, key: str | None, numbers: Numbers) -> None:
        finite = all(number is None or math.isfinite(number) for number in numbers)  # JSON has no others
        if place is not None and key is not None and finite:
            where, name = place
            self._new.setdefault(where, {})[name] = (key, numbers)

    def write(self) -> None:
        """Add what is new to what is there by now, without the runs that are gone."""
        import msgspec

        for where, new in self._new.items():
            runs = {name: entry for name, entry in (_load(where) | new).items() if (where / name).is_dir()}
            draft = where / f"{FILE}.{os.getpid()}"
            try:
                draft.write_bytes(msgspec.json.encode(runs))
                draft.replace(where / FILE)
            except OSError:  # a folder that cannot be written, a full disk
                with contextlib.suppress(OSError):
                    draft.unlink()


def place(run: Path, task: str) -> Place | None:
    """The folder of a run's runs, and its path there; None where it does not lie as it was written."""
    path = run.absolute()
    if len(path.parts) < 5 or path.parts[-3] != store.slug(task):
        return None
    return path.parents[2], "/".join(path.parts[-3:])


def _load(where: Path) -> dict[str, tuple[str, Numbers]]:
    """What the folder's file holds; nothing where there is none, or none that can be read."""
    import msgspec

    try:
        return msgspec.json.decode((where / FILE).read_bytes(), type=dict[str, tuple[str, Numbers]])
    except (OSError, ValueError):
        return {}
