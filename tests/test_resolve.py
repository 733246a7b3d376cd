"""The spec grammar and the finding of names."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.scripted import Scripted
from harness import resolve
from harness.cache import Answers
from harness.errors import SpecError
from harness.types import Journal, Model


def test_a_spec_has_a_name_positional_values_and_knobs() -> None:
    spec = resolve.parse("hf:llava-hf/llava-1.5-7b-hf,dtype=bfloat16")
    assert (spec.name, spec.positional) == ("hf", ("llava-hf/llava-1.5-7b-hf",))
    assert spec.knobs == {"dtype": "bfloat16"}


def test_nested_specs_stand_in_parentheses_and_keep_their_commas() -> None:
    spec = resolve.parse("pm:aggregator=(openai:gpt-4o,temperature=0),detector=(detr:a/b)")
    assert spec.knobs == {"aggregator": "openai:gpt-4o,temperature=0", "detector": "detr:a/b"}


def test_quotes_protect_commas_and_equals_signs_in_paths() -> None:
    assert resolve.parse('t:root="/a,b=c (d)"').knobs == {"root": "/a,b=c (d)"}
    assert resolve.parse("hf:/models/a=b/c").positional == ("/models/a=b/c",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a spec"),
        ("a:b,,c", "empty part"),
        ("a:", "empty part"),
        ("a:b=(c", "unbalanced"),
        ("a:b=c)", "unbalanced"),
        ('a:b="c', "open quote"),
        ("a:b=1,b=2", "twice"),
        ("a:b=1,c", "Positional values come first"),
    ],
)
def test_a_malformed_spec_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        resolve.parse(text)


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_raise_anything_else(text: str) -> None:
    with contextlib.suppress(SpecError):
        resolve.parse(text)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"no method 'vicrob'. Did you mean vicrop\?"):
        resolve.make_method("vicrob")
    with pytest.raises(SpecError, match=r"no task 'popo'. Did you mean pope\?"):
        resolve.make_task("popo:root=/")


def test_an_unknown_knob_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(SpecError, match=r"no knob 'locat'. Did you mean locate\?.*knobs: .*layer"):
        resolve.make_method("vicrop:locat=rel_att")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("small_detail:size=many", "size='many' is not a whole number"),
        ("small_detail:question=smell", "question='smell' is not one of digit, attribute"),
        ("small_detail:glyph=12", "needs 2 values, such as 16-24"),
        ("small_detail:glyph=90-99", "use a range within 7-60"),
        ("small_detail:size=0", "it must be 1 or more"),
        ("vqa_file", "vqa_file needs path="),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named_with_what_would_do(spec: str, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        resolve.make_task(spec)


def test_a_method_is_checked_before_it_meets_its_model() -> None:
    with pytest.raises(SpecError, match="layer='low' is not a whole number"):
        resolve.make_method("vicrop:layer=low")


def test_listing_reads_first_lines_without_importing() -> None:
    listed = {name: resolve.summary(where) for name, where in resolve.names("task").items()}
    assert listed["small_detail"].startswith("Small details in drawn scenes")
    assert all(not name.startswith("_") for name in listed)


def test_every_name_of_every_room_loads_and_shows_its_knobs() -> None:
    kinds: list[resolve.Kind] = ["task", "model", "method", "metric"]
    for kind in kinds:
        assert resolve.names(kind), kind
        for name, where in resolve.names(kind).items():
            assert resolve.summary(where), f"{name} has no docstring"
            for knob, type_name, default in resolve.knobs(kind, name):
                assert knob and type_name and default


def test_a_metric_is_made_again_from_a_runs_header() -> None:
    from harness.summary import metric_json

    metric = resolve.make_metric("exact:variant=lmms")
    assert resolve.metric_from(metric_json(metric)) == metric


def test_a_path_knob_expands_the_home_folder() -> None:
    with pytest.raises(Exception, match=str(Path.home())):
        resolve.make_task("pope:root=~/no/such/folder")


def test_a_factory_that_asks_for_a_journal_gets_one_and_it_is_no_knob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Journal | None] = []

    def batcher(name: str, *, journal: Journal | None = None) -> Model:
        got.append(journal)
        return Scripted(lambda _: name)

    monkeypatch.setattr(resolve, "load", lambda *_: batcher)
    answers = Answers(tmp_path / "cache.sqlite")
    resolve.make_model("batcher:a", answers)
    resolve.make_model("batcher:a")
    assert got[0] is not None and got[1] is None
    got[0].put("id", "x")
    assert answers.journal("batcher").get("id") == "x"
    assert [name for name, _, _ in resolve.knobs("model", "batcher")] == ["name"]
    with pytest.raises(SpecError, match="no knob 'journal'"):
        resolve.make_model("batcher:a,journal=x", answers)
