"""What the command line says of a run that ended with failures, and of a request that cannot be met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.scripted import Scripted
from harness import engine, screen
from harness.errors import SpecError
from harness.types import Request, Response
from tasks import vqa_file
from tests.test_engine import make_task


@pytest.mark.parametrize(
    ("retries", "says"),
    [
        ([False, False], "2 samples failed, and would again as things are: "),
        ([True, True], "2 samples failed; repeat the command to try them again"),
        ([True, False], "2 samples failed; repeat the command to try the 1 that may pass again"),
    ],
)
def test_a_command_is_to_be_repeated_only_where_that_may_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], retries: Sequence[bool], says: str
) -> None:
    left = list(retries)

    def answer(_: Request) -> Response | str:
        return Response.failed("trouble", "it did not work", retry=left.pop()) if left else "yes"

    result = engine.run(make_task(4), Scripted(answer), out=tmp_path)
    assert result.failed == 2
    screen.show_result(result)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(says)
    assert ("repeat the command" in said) == any(retries)
    assert (f"{result.path}/records.jsonl says why" in said) == (not any(retries))


@pytest.mark.parametrize("tokens", [-1, 0])
def test_an_answer_of_no_tokens_is_refused_in_a_sentence(tmp_path: Path, tokens: int) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Is it?", "answer": "yes"}\n')
    with pytest.raises(SpecError, match=f"max_tokens={tokens}; an answer needs 1 or more"):
        vqa_file.task(path, max_tokens=tokens)
