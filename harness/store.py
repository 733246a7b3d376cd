"""What a run leaves behind: `run.json`, `records.jsonl`, and one writer at a time.

    <out>/<task>/<model>/<method>-<id8>/
      run.json        header first; then status, summary, times and spending, atomically
      records.jsonl   one line per sample, appended and flushed as it completes
      traces/         maps and selections, one .npz per sample, where they were asked for

Two undisturbed runs agree byte for byte in `summary`. A torn last line is dropped on resume; a line that
cannot be read is set aside, never lost. It knows files and JSON; what the numbers mean, it does not.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from harness.errors import StoreError
from harness.types import Failure, Sample, Usage, digest

if TYPE_CHECKING:
    import numpy.typing as npt

SCHEMA = 1
RUN = "run.json"
HEADER = ("id", "identity", "selection", "metrics", "primary")
"""What every run.json has, from its first writing on."""
RECORDS = "records.jsonl"
SET_ASIDE = "records.unreadable.jsonl"
TRACES = "traces"
LOCK = ".lock"

_READ = 1 << 22  # bytes of records at once
_ALWAYS = ("sample_id", "text", "usage", "schema")
Key = tuple[str, int]
"""A sample's id and its repeat."""


@dataclass(frozen=True)
class Record:
    """One sample's end: enough to show, cluster and rescore it without the dataset.

    group: the digest of its first picture, or None; samples of one group are resampled together.
    answer: the text after the task's post-processing. measures: counts per metric key.
    """

    sample_id: str
    repeat: int = 0
    category: str | None = None
    group: str | None = None
    question: str = ""
    prompt: str = ""
    system: str | None = None
    pictures: tuple[Mapping[str, Any], ...] = ()
    targets: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    answer: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    trace: Mapping[str, Any] = field(default_factory=dict)
    option_nll: tuple[tuple[float, int], ...] = ()
    failure: Failure | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return (self.sample_id, self.repeat)

    def sample(self) -> Sample:
        """The sample as a metric may see it again; its pictures stay behind."""
        return Sample(self.sample_id, (), self.question, self.targets, category=self.category, meta=self.meta)

    def line(self) -> str:
        """Its JSON line; what is empty is left out."""
        fields = vars(self) | {"schema": SCHEMA, "usage": vars(self.usage)}
        if self.failure is not None:
            fields["failure"] = vars(self.failure)
        kept = {name: value for name, value in fields.items() if value or name in _ALWAYS}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def parse(cls, line: str) -> Record:
        """The record of a line. Raises ValueError, KeyError or TypeError where it is none."""
        fields = json.loads(line)
        if fields.pop("schema") > SCHEMA:
            raise ValueError("written by a newer Fovea")
        failure = fields.pop("failure", None)
        for name in ("pictures", "targets"):
            fields[name] = tuple(fields.get(name, ()))
        fields["option_nll"] = tuple((nll, n) for nll, n in fields.get("option_nll", ()))
        fields["usage"] = Usage(**fields["usage"])
        return cls(**fields, failure=Failure(**failure) if failure else None)


def read_records(directory: Path) -> Iterator[Record]:
    """The records of a run, in the order written.

    A torn last line is passed over (its sample is run again on resume). Raises StoreError, naming the
    line, where another line cannot be read.
    """
    path = directory / RECORDS
    for number, line, record in _lines(path):
        if record is None and line.endswith(b"\n"):
            raise _no_record(path, number)
        if record is not None:
            yield record


def _no_record(path: Path, number: int) -> StoreError:
    return StoreError(
        f"{path}, line {number} is not a record. Repeat the run's command: it sets the line "
        "aside and runs that sample again"
    )


def read_counts(directory: Path, metric: str) -> dict[Key, tuple[str, Any]]:
    """(cluster, counts) of each answered record that the metric of this key has measured; of several of one
    key the last. It is `read_records` in a third of the time, for who needs no more.

    cluster: the record's group, or its sample's id. Fields that are not read are not judged; what is no
    record raises as there.
    """
    path = directory / RECORDS
    found: dict[Key, tuple[str, Any]] = {}
    number = 0
    for lines in _line_blocks(path):
        try:
            records = _slim_records(lines)
        except ValueError:  # half a character, NaN, or no record at all: line by line, as a whole
            records = list(_whole_records(path, lines, number))
        number += len(records)
        for record in records:
            if not record.failure and metric in record.measures:
                cluster = record.group or record.sample_id
                found[record.sample_id, record.repeat] = cluster, record.measures[metric]
    return found


def _whole_records(path: Path, lines: bytes, before: int) -> Iterator[Record]:
    for number, line in enumerate(io.BytesIO(lines), before + 1):
        record = _parsed(line)
        if record is None:
            raise _no_record(path, number)
        yield record


def _slim_records(lines: bytes) -> list[Any]:
    """Raises ValueError unless each line is a record of this schema or an older one."""
    if not lines.isascii():
        lines.decode()  # what is skipped is not decoded
    found: list[Any] = _slim_decoder()(lines)
    if len(found) != lines.count(b"\n") or any(record.schema > SCHEMA for record in found):
        raise ValueError
    return found


def _line_blocks(path: Path) -> Iterator[bytes]:
    """A file's whole lines, some at once, without a torn one; a missing file has none."""
    try:
        with path.open("rb") as file:
            while lines := file.read(_READ):
                lines += file.readline()
                yield lines if lines.endswith(b"\n") else lines[: lines.rfind(b"\n") + 1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


@cache
def _slim_decoder() -> Callable[[bytes], list[Any]]:
    """Of lines, the fields that `read_counts` reads; a line with other fields than a record's is refused.
    Its errors are ValueErrors."""
    import msgspec

    read: dict[str, Any] = {
        "repeat": (int, 0),
        "group": (str | None, None),
        "failure": (dict[str, Any] | None, None),
        "measures": (dict[str, Any], {}),
    }
    always: dict[str, Any] = {"sample_id": str, "schema": int, "text": msgspec.Raw, "usage": msgspec.Raw}
    skipped = {each.name for each in fields(Record)} - read.keys() - always.keys()
    line = msgspec.defstruct(
        "Line",
        [
            *always.items(),
            *((name, *kind) for name, kind in read.items()),
            *((name, msgspec.Raw, msgspec.Raw()) for name in skipped),
        ],
        gc=False,
        forbid_unknown_fields=True,
    )
    return msgspec.json.Decoder(line).decode_lines


def read_run(directory: Path) -> dict[str, Any]:
    """A run's header and, once it has ended, its summary. Raises StoreError where there is none."""
    path = directory / RUN
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError:
        raise StoreError(f"{directory} holds no {RUN}: it is not a run directory") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Move the directory away and run again") from None
    if not isinstance(content, dict) or content.get("schema", SCHEMA + 1) > SCHEMA:
        raise StoreError(f"{path} is of a newer schema than this Fovea reads ({SCHEMA}); upgrade fovea-eval")
    if missing := [name for name in HEADER if name not in content]:
        raise StoreError(f"{path} is no run's header: it lacks {', '.join(missing)}. Move its folder away")
    return content


def trace_path(directory: Path, key: Key) -> Path:
    """Where a sample's trace lies: the file's name follows from the sample's id and repeat."""
    return directory / TRACES / f"{file_name(key)}.npz"


def read_trace(directory: Path, key: Key) -> dict[str, npt.NDArray[Any]] | None:
    """A sample's arrays (`harness.traces.trace_arrays`), None where none were kept; pickles do not load.

    Raises StoreError where the file cannot be read.
    """
    import zipfile

    import numpy as np

    path = trace_path(directory, key)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Remove it") from None


def find_runs(root: Path) -> list[Path]:
    """Every run directory below `root` (or `root` itself), sorted."""
    if (root / RUN).is_file():
        return [root]
    return sorted(path.parent for path in root.rglob(RUN))


class RunDirectory:
    """One run's directory, held by one writer from `with` to its end.

    A writer that made the directory and fails before there is a record leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records_path = path / RECORDS
        self._made: list[Path] = []
        self._file: io.FileIO | None = None
        self._written = 0

    def __enter__(self) -> RunDirectory:
        from filelock import FileLock, Timeout

        try:
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK, timeout=0)
            self._lock.acquire()
        except Timeout:
            raise StoreError(
                f"another process is writing {self.path}. Wait for it, or stop it; then repeat the command"
            ) from None
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror}. Choose another folder with --out"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if error is not None and self._made:
            self._leave_nothing()
        self._lock.release()

    def resume(
        self, mend: Callable[[list[Record]], list[Record]] = lambda records: records
    ) -> tuple[list[Record], list[str]]:
        """What is already there: finished records (the last of each key; failures are dropped, to be
        tried again), as `mend` returns them, and warnings about lines that were set aside. Leaves the
        file clean and open."""
        records: dict[Key, Record] = {}
        unreadable: list[bytes] = []
        clean = True
        for _, line, record in _lines(self.records_path):
            if record is None and line.endswith(b"\n"):
                unreadable.append(line)
            elif record is not None and record.failure is None:
                clean &= record.key not in records
                records[record.key] = record
                continue
            clean = False  # torn, unreadable or failed
        found = list(records.values())
        mended = mend(found)
        warnings = []
        try:
            if unreadable:
                with (self.path / SET_ASIDE).open("ab") as aside:
                    aside.writelines(unreadable)
                warnings.append(
                    f"{len(unreadable)} unreadable record(s) set aside in {self.path / SET_ASIDE}; "
                    "their samples run again"
                )
            if not clean or mended != found:
                self.rewrite(mended)
            self._file = io.FileIO(self.records_path, "ab")
        except OSError as error:
            raise self._failed(error) from None
        self._written = os.fstat(self._file.fileno()).st_size
        return mended, warnings

    def append(self, records: Sequence[Record]) -> None:
        """Add finished records and flush them. Nothing is written if somebody else changed the file."""
        assert self._file is not None, "resume() opens the file"
        if not self._untouched():
            raise StoreError(
                f"{self.records_path} was changed by somebody else while this run was writing it. Nothing "
                "more was written; see what happened to it, then repeat the command to resume"
            )
        data = _encoded(record.line() + "\n" for record in records)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._written)
            raise self._failed(error) from None
        self._written += len(data)

    def keep_trace(self, key: Key, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write a sample's arrays in one step, in place of any before."""
        import numpy as np

        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        path = trace_path(self.path, key)
        try:
            path.parent.mkdir(exist_ok=True)
            _write_atomically(path, packed.getvalue())
        except OSError as error:
            raise StoreError(
                f"{path.parent} cannot be written: {error.strerror or error}. Every answer so far is kept; "
                "make room or mend the permissions, or repeat the command without --save-traces"
            ) from None

    def rewrite(self, records: Sequence[Record]) -> None:
        """Replace all records in one step, as scoring again does. Not for a file that is being appended."""
        try:
            _write_atomically(self.records_path, _encoded(record.line() + "\n" for record in records))
        except OSError as error:
            raise self._failed(error) from None

    def write_run(self, content: Mapping[str, Any]) -> None:
        """Replace run.json in one step."""
        text = json.dumps({"schema": SCHEMA, **content}, indent=1, ensure_ascii=False)
        try:
            _write_atomically(self.path / RUN, _encoded([text, "\n"]))
        except OSError as error:
            raise self._failed(error) from None

    def _leave_nothing(self) -> None:
        """Remove the folders that were made for this run, unless something was kept in them."""
        own = (RUN, RECORDS, LOCK)  # the lock goes last: who comes then finds no file of this run
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                if path.name not in own or (path.name == RECORDS and path.stat().st_size):
                    return
            for name in own:
                (self.path / name).unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()

    def _untouched(self) -> bool:
        assert self._file is not None
        try:
            there = self.records_path.stat()
        except OSError:
            return False
        return there.st_ino == os.fstat(self._file.fileno()).st_ino and there.st_size == self._written

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path} cannot be written: {error.strerror or error}. What was recorded stays; make room "
            "or mend the permissions, then repeat the command to resume"
        )


def run_id(identity: Mapping[str, Any]) -> str:
    """The hash of how the answers were made (sha256, hex)."""
    return digest(identity)


def slug(text: str) -> str:
    """A file name made of `text`, readable and safe.

    >>> slug("llava-hf/llava-1.5-7b-hf")
    'llava-hf--llava-1.5-7b-hf'
    >>> slug("../../etc")
    'etc'
    """
    cleaned = re.sub(r"[^\w.+-]+", "-", text.strip("/.").replace("/", "--")).strip("-.")
    return cleaned[-80:] or "unnamed"


def file_name(key: Key) -> str:
    """A sample's name for files: what is readable of its id, and a digest that tells it from any other.

    >>> file_name(("../../etc/passwd", 0))
    'etc--passwd-cbbd64c5082c'
    """
    readable = key[0][-40:].encode("ascii", "replace").decode()
    return f"{slug(readable)}-{digest(key)[:12]}"


def _lines(path: Path) -> Iterator[tuple[int, bytes, Record | None]]:
    """(number, line, its record or None) of a records file; a missing file has none."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield number, line, _parsed(line) if line.endswith(b"\n") else None
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(line: bytes) -> Record | None:
    try:
        return Record.parse(line.decode("utf-8", "surrogatepass"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _encoded(texts: Iterable[str]) -> bytes:
    return "".join(texts).encode("utf-8", "surrogatepass")


def _write_atomically(path: Path, data: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
