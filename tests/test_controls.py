"""The controls: what is cropped, what is sent, and how they nest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from adapters import hf
from adapters.scripted import Scripted
from harness.errors import SpecError
from harness.pictures import File, Picture
from harness.types import Decoding, Method, Request, Response, Usage
from methods._crops import square
from methods.center_crop import CenterCrop
from methods.full_twice import FullTwice
from methods.random_crop import RandomCrop


def _shows(request: Request) -> Response:
    """A response whose text is what the model was shown: the crop chains of all pictures."""
    return Response(str([picture.crops for picture in request.images]), usage=Usage(calls=1))


MODEL = Scripted(_shows)


def _request(width: int = 400, height: int = 300, **changes: object) -> Request:
    return dataclasses.replace(Request((tiny.photo(1, width, height),), "What?"), **changes)  # type: ignore[arg-type]


def test_the_centre_is_appended_to_the_picture() -> None:
    (response,) = CenterCrop(MODEL, side=100).generate([_request()])
    assert response.text == "[(), ((150, 100, 250, 200),)]"
    assert response.trace == {"method": "center_crop", "box": [150, 100, 250, 200], "whole": False}


def test_the_whole_picture_is_sent_twice() -> None:
    (response,) = FullTwice(MODEL).generate([_request()])
    assert response.text == "[(), ()]"
    assert response.usage.calls == 1


@pytest.mark.parametrize("method", [CenterCrop, RandomCrop])
def test_a_picture_no_larger_than_the_crop_is_sent_alone(method: type[Method]) -> None:
    (response,) = method(MODEL, side=400).generate([_request()])  # type: ignore[call-arg]
    assert response.text == "[()]"
    assert response.trace["whole"] is True


@pytest.mark.parametrize("method", [CenterCrop, RandomCrop])
def test_a_narrow_picture_is_cropped_along_its_length(method: type[Method]) -> None:
    (response,) = method(MODEL, side=100).generate([_request(400, 50)])  # type: ignore[call-arg]
    x1, y1, x2, y2 = response.trace["box"]
    assert (x2 - x1, y1, y2) == (100, 0, 50)


def test_the_default_side_is_the_models_resolution(tmp_path: Path) -> None:
    model = hf.model(str(tiny.llava(tmp_path / "tiny", side=56)), device="cpu")
    nested = FullTwice(model)
    (response,) = CenterCrop(nested).generate([_request(decoding=Decoding(max_tokens=1))])
    assert response.trace["box"] == [172, 122, 228, 178]
    (without,) = CenterCrop(MODEL).generate([_request(1000, 1000)])
    assert without.trace["box"] == [332, 332, 668, 668]


def test_a_random_place_depends_on_the_request_and_the_seed_and_on_nothing_else() -> None:
    method = RandomCrop(MODEL, side=64)
    requests = [_request(question=f"Question {number}?") for number in range(20)]
    forth = [response.text for response in method.generate(requests)]
    back = [response.text for response in method.generate(requests[::-1])][::-1]
    other = [response.text for response in RandomCrop(MODEL, side=64, seed=1).generate(requests)]
    assert forth == back
    assert len(set(forth)) > 15
    assert forth != other


def test_random_places_cover_the_picture_evenly() -> None:
    requests = [_request(question=str(number)) for number in range(2000)]
    boxes = [response.trace["box"] for response in RandomCrop(MODEL, side=100).generate(requests)]
    xs = [box[0] for box in boxes]
    assert min(xs) < 5
    assert max(xs) > 295
    assert abs(sum(xs) / len(xs) - 150) < 10
    assert all(0 <= box[1] <= 200 for box in boxes)


def test_crops_of_crops_are_of_the_original_and_pile_up_at_the_end() -> None:
    inner = CenterCrop(MODEL, side=100)
    (response,) = RandomCrop(inner, side=50).generate([_request()])
    x1, y1, x2, y2 = response.trace["box"]
    assert response.text == f"[(), (({x1}, {y1}, {x2}, {y2}),), ((150, 100, 250, 200),)]"
    assert response.trace["inner"]["method"] == "center_crop"
    described = RandomCrop(inner, side=50).describe()
    assert described["model"]["method"] == "center_crop"
    assert described["model"]["model"]["adapter"] == "scripted"


@pytest.mark.parametrize("method", [CenterCrop(MODEL), RandomCrop(MODEL), FullTwice(MODEL)])
def test_a_request_without_a_picture_goes_on_as_it_came(method: Method) -> None:
    (response,) = method.generate([_request(images=())])
    assert response.text == "[]"
    assert response.trace["skipped"] == "no image"


@pytest.mark.parametrize("method", [CenterCrop(MODEL), RandomCrop(MODEL), FullTwice(MODEL)])
def test_a_missing_picture_fails_alone(method: Method, tmp_path: Path) -> None:
    gone = Picture(File(tmp_path / "gone.png"))
    broken, good = method.generate([_request(images=(gone,)), _request()])
    assert broken.failure is not None
    assert broken.failure.kind == "missing_picture"
    assert good.failure is None


@pytest.mark.parametrize("method", [CenterCrop, RandomCrop, FullTwice])
def test_a_failure_of_the_model_is_passed_on(method: type[Method]) -> None:
    model = Scripted(lambda _: Response.failed("broken", "it broke", usage=Usage(calls=1)))
    (response,) = method(model).generate([_request()])
    assert response.failure is not None
    assert response.usage.calls == 1


@pytest.mark.parametrize("method", [CenterCrop, RandomCrop])
def test_a_side_of_nothing_is_refused(method: type[Method]) -> None:
    with pytest.raises(SpecError, match="side=0"):
        method(MODEL, side=0)  # type: ignore[call-arg]


@given(
    st.floats(-50, 900), st.floats(-50, 900), st.integers(1, 500), st.integers(1, 800), st.integers(1, 800)
)
def test_a_square_is_as_large_as_it_can_be_and_inside(
    x: float, y: float, side: int, width: int, height: int
) -> None:
    x1, y1, x2, y2 = square((x, y), side, (width, height))
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
