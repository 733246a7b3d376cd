"""Run directories: what is written can be read, and nothing that was finished is lost."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import StoreError
from harness.store import HEADER, SET_ASIDE, Record, RunDirectory, find_runs, read_records, read_run, slug
from harness.types import Failure, Usage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
records = st.builds(
    Record,
    sample_id=st.text(),
    repeat=st.integers(0, 9),
    category=st.none() | st.text(min_size=1),
    group=st.none() | st.text(min_size=1),
    question=st.text(),
    prompt=st.text(),
    system=st.none() | st.text(min_size=1),
    targets=st.lists(st.text(), max_size=3).map(tuple),
    meta=st.dictionaries(st.text(), json_values, max_size=2),
    text=st.text(),
    answer=st.text(),
    usage=st.builds(Usage, calls=st.integers(0, 9), dollars=st.none() | st.floats(0, 1)),
    trace=st.dictionaries(st.text(), json_values, max_size=2),
    option_nll=st.lists(st.tuples(st.floats(0, 9), st.integers(1, 9)), max_size=2).map(tuple),
    failure=st.none() | st.builds(Failure, st.text(), st.text(), st.booleans()),
    measures=st.dictionaries(st.text(), json_values, max_size=2),
)


@given(records)
def test_a_record_survives_its_line(record: Record) -> None:
    line = record.line()
    assert "\n" not in line
    assert Record.parse(line) == record


def write(path: Path, *found: Record) -> None:
    with RunDirectory(path) as directory:
        directory.write_run({"status": "running"})
        directory.resume()
        directory.append(found)


A, B = Record("a", text="yes", usage=Usage(1)), Record("b", text="no \ud800 ü", usage=Usage(1))
FAILED = Record("c", failure=Failure("timeout", "too slow", True))


def test_a_torn_last_line_is_dropped_and_its_sample_runs_again(tmp_path: Path) -> None:
    write(tmp_path, A, B)
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert list(read_records(tmp_path)) == [A]
    with RunDirectory(tmp_path) as directory:
        assert directory.resume() == ([A], [])
        directory.append([B])
    assert list(read_records(tmp_path)) == [A, B]


def test_an_unreadable_line_is_set_aside_never_lost(tmp_path: Path) -> None:
    write(tmp_path, A, B)
    file = tmp_path / "records.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    broken = first.replace(b"schema", b"\xff\xfe")
    file.write_bytes(broken + second)
    with pytest.raises(StoreError, match="line 1 is not a record"):
        list(read_records(tmp_path))
    with RunDirectory(tmp_path) as directory:
        known, warnings = directory.resume()
    assert known == [B]
    assert "1 unreadable record(s) set aside" in warnings[0]
    assert (tmp_path / SET_ASIDE).read_bytes() == broken
    assert list(read_records(tmp_path)) == [B]


def test_a_failed_sample_is_tried_again_on_resume(tmp_path: Path) -> None:
    write(tmp_path, A, FAILED)
    assert list(read_records(tmp_path)) == [A, FAILED]
    with RunDirectory(tmp_path) as directory:
        assert directory.resume()[0] == [A]
    assert list(read_records(tmp_path)) == [A]


def test_there_is_one_writer_at_a_time(tmp_path: Path) -> None:
    complaints = []

    def second() -> None:
        try:
            with RunDirectory(tmp_path):
                pass
        except StoreError as error:
            complaints.append(str(error))

    with RunDirectory(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another process is writing" in complaints[0]
    with RunDirectory(tmp_path):
        pass


@pytest.mark.parametrize("meddle", ["append", "replace", "remove"])
def test_a_file_that_changes_under_its_writer_stops_it(tmp_path: Path, meddle: str) -> None:
    file = tmp_path / "records.jsonl"
    with RunDirectory(tmp_path) as directory:
        directory.resume()
        directory.append([A])
        if meddle == "append":
            file.write_bytes(file.read_bytes() + b"x\n")
        elif meddle == "replace":
            (tmp_path / "new").write_bytes(file.read_bytes())
            (tmp_path / "new").replace(file)
        else:
            file.unlink()
        with pytest.raises(StoreError, match="changed by somebody else"):
            directory.append([B])


def test_a_full_disk_leaves_whole_records_and_says_what_to_do(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with RunDirectory(tmp_path) as directory:
        directory.resume()
        directory.append([A])
        assert directory._file is not None
        real = os.dup(directory._file.fileno())
        with Path("/dev/full").open("wb", buffering=0) as full:
            os.dup2(full.fileno(), directory._file.fileno())
            directory._untouched = lambda: True  # type: ignore[method-assign]
            directory._file.truncate = lambda size=None: 0  # type: ignore[method-assign,assignment]
            with pytest.raises(StoreError, match=r"No space left.*repeat the command to resume"):
                directory.append([B])
        os.dup2(real, directory._file.fileno())
        os.close(real)
    assert list(read_records(tmp_path)) == [A]


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match="Choose another folder with --out"),
        RunDirectory(tmp_path / "file" / "run"),
    ):
        pass


def test_run_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        header = dict.fromkeys(HEADER, "")
        directory.write_run({**header, "status": "running"})
        directory.write_run({**header, "status": "complete", "text": "\ud800 ü"})
    assert read_run(tmp_path)["status"] == "complete"
    assert not list(tmp_path.glob("*.new"))


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(StoreError, match="upgrade fovea-eval"):
        read_run(tmp_path)


def test_a_file_of_somebody_else_is_no_header_and_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "id": "x", "metrics": []}))
    with pytest.raises(StoreError, match=r"lacks identity, selection, primary\. Move its folder away"):
        read_run(tmp_path)


def test_runs_are_found_below_a_folder_or_at_it(tmp_path: Path) -> None:
    for name in ("t/m/b", "t/m/a"):
        write(tmp_path / name, A)
    assert [path.name for path in find_runs(tmp_path)] == ["a", "b"]
    assert find_runs(tmp_path / "t/m/a") == [tmp_path / "t/m/a"]


@given(st.text())
def test_a_slug_is_one_safe_path_part(text: str) -> None:
    made = slug(text)
    assert made and "/" not in made and "\0" not in made and made not in (".", "..")
