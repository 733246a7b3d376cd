"""What every white-box family promises, whatever its layout; a new one is a line in `whitebox.FAMILIES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers.models.smolvlm import processing_smolvlm
from whitebox import FAMILIES, answered, ask, mixed, model_of, same

from adapters import _hf_layout, hf
from harness.pictures import Memory, Picture
from harness.taps import AttentionCall, Prompt, Tap
from harness.types import Capability, Decoding, ReadMap
from methods.sparc import Sparc, SparcSteering

KEPT = {"instructblip": 0, "paligemma": 0, "paligemma2": 0, "gemma3-narrow": 0}
"""Families whose beginnings cannot be shared; of any other, those of two pictures are kept."""
WINDOWED = {"gemma3"}
"""How many are kept depends on the windows: see test_hf_gemma.py."""


@pytest.fixture(scope="module", autouse=True)
def numbers_in_words() -> Iterator[None]:
    """SmolVLM's processor wants a package that only its videos use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str, raising=False)
        yield


@pytest.fixture(scope="module", params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[name](tmp_path_factory.mktemp("families") / name)


@pytest.fixture(scope="module")
def model(folder: Path) -> hf.Hf:
    return model_of(folder)


def test_everything_is_offered(model: hf.Hf) -> None:
    assert model.offers == set(Capability)


def test_eight_unequal_requests_at_once_are_eight_singles(model: hf.Hf) -> None:
    requests = mixed()
    many = model.generate(requests)
    assert len({response.text for response in many}) > 4
    for asked, response in zip(requests, many, strict=True):
        same(response, answered(model, asked))


def test_rows_that_share_a_beginning_are_what_each_is_alone(model: hf.Hf) -> None:
    """Of one picture and of two, so that the second one's positions go on from the first one's."""
    first, second = tiny.photo(1, 200, 60), tiny.photo(2, 60, 150)
    requests = [
        dataclasses.replace(ask(number), images=(first, second)[: 1 + number % 2]) for number in range(6)
    ]
    requests[3] = dataclasses.replace(requests[3], options=("yes", "a red car"))
    requests[4] = dataclasses.replace(requests[4], probes=(ReadMap(2),))
    for asked, response in zip(requests, model.generate(requests), strict=True):
        same(response, answered(model, asked))


def test_rows_that_run_apart_but_for_their_last_tokens_are_what_each_is_alone(
    model: hf.Hf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hf_layout, "PADDING", 0)  # every length by itself
    monkeypatch.setattr(_hf_layout, "ROOM", 3)  # less than is decoded
    requests = mixed() + [
        dataclasses.replace(ask(n, images=1 + n % 2), instruction=" Why?") for n in range(3)
    ]
    requests.append(ask(3, images=2, probes=(ReadMap(2, kind="gradient"),)))
    singles = [answered(model, asked) for asked in requests]
    for single, response in zip(singles, model.generate(requests), strict=True):
        same(response, single)
    sparc = Sparc(model, alpha=1.5, tau=0.05, layer=2)
    asked = [ask(number, images=1 + number % 2, decoding=Decoding(12)) for number in range(4)]
    alone = [sparc.generate([one])[0] for one in asked]
    assert [(one.text, one.trace) for one in sparc.generate(asked)] == [
        (one.text, one.trace) for one in alone
    ]


@pytest.mark.parametrize("fidelity", ["fixed", "released"])
def test_sparc_steers_eight_at_once_as_it_steers_one(model: hf.Hf, fidelity: Any) -> None:
    method = Sparc(model, alpha=1.5, tau=0.05, layer=2, fidelity=fidelity)
    decoding = Decoding(max_tokens=20)
    requests = [ask(number, images=1 + number % 2, decoding=decoding) for number in range(8)]
    many = method.generate(requests)
    singles = [method.generate([asked])[0] for asked in requests]
    assert [one.text for one in many] == [one.text for one in singles]
    assert [one.trace for one in many] == [one.trace for one in singles]
    assert [one.text for one in many] != [one.text for one in model.generate(requests)]


def test_a_beginning_that_was_kept_changes_no_answer(folder: Path, model: hf.Hf, name: str) -> None:
    looks = [ask(n, probes=(ReadMap(2, keep=True),), decoding=Decoding(0)) for n in range(4)]
    answers = [dataclasses.replace(ask(n, images=2), instruction=" Why?") for n in range(4)]
    keeper = model_of(folder)
    keeper.generate(looks)
    assert keeper._waves is not None
    family: Any = keeper._waves._family
    if name not in WINDOWED:
        assert len(family._beginnings._kept) == KEPT.get(name, 2)  # of four requests over two pictures
    for response, asked in zip(keeper.generate(answers), answers, strict=True):
        same(response, answered(model, asked))


def test_a_map_read_in_passing_is_the_map_read_alone_and_changes_no_word(model: hf.Hf) -> None:
    for asked in (ask(1), ask(2, images=2)):
        probed = dataclasses.replace(asked, probes=(ReadMap(2), ReadMap("all")))
        passing = answered(model, probed)
        assert passing.text == answered(model, asked).text
        alone = answered(model, dataclasses.replace(probed, decoding=Decoding(0)))
        same(dataclasses.replace(passing, text="", finish_reason=alone.finish_reason), alone)


@dataclasses.dataclass(frozen=True)
class _Faulty(SparcSteering):
    """Steering that fails in the middle of a forward."""

    def tap(self, prompt: Prompt) -> Any:
        class Broken(Tap):
            def before(self, call: AttentionCall) -> None:
                if call.layer == 2:
                    raise ValueError("broken")

        return Broken()


def test_answers_are_the_same_after_probes_and_after_a_tap_that_failed(model: hf.Hf) -> None:
    requests = [ask(number, images=number % 3) for number in range(6)]
    requests[5] = dataclasses.replace(requests[5], options=("yes", "no"))
    before = [(one.text, one.option_nll) for one in model.generate(requests)]
    model.generate(mixed())
    faulty = _Faulty(1.1, 0.1, 1.5, None, None, "relative", 0, False)
    with pytest.raises(ValueError, match="broken"):
        model.generate([ask(3, probes=(faulty,))])
    assert [(one.text, one.option_nll) for one in model.generate(requests)] == before


@pytest.mark.parametrize("kind", ["attention", "gradient", "pixels"])
def test_a_prompt_beyond_the_context_and_a_torn_picture_fail_alone(model: hf.Hf, kind: Any) -> None:
    whole = tiny.photo(5).source.read()  # type: ignore[union-attr]
    torn = Picture(Memory(whole[: len(whole) // 2], "torn.png"))
    fine = ask(1, probes=(ReadMap(kind=kind),))
    broken = dataclasses.replace(fine, images=(torn,))
    long = dataclasses.replace(fine, question="What is this? " * 1000)
    responses = model.generate([fine, broken, long, ask(2)])
    kinds = [response.failure and response.failure.kind for response in responses]
    assert kinds == [None, "damaged_picture", "too_long", None]
    same(responses[0], answered(model, fine))
    assert responses[3].text == answered(model, ask(2)).text
