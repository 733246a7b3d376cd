"""ViCrop by gradients, and its edge mask, against mllms_know (commit a64c5d5) run beside it.

The goldens come from the reference's own functions with torchvision and scikit-image, in float32.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny
from PIL import Image

from adapters import hf
from adapters.scripted import Scripted
from harness.errors import CapabilityError, SpecError
from harness.pictures import Memory, Picture
from harness.resolve import make_method
from harness.types import Capability, Decoding, ImportanceMap, ReadMap, Request, Response
from methods._edges import block_mean, edge_mask
from methods.vicrop import GENERAL_QUESTION, Vicrop

GOLDENS = Path(__file__).parent / "goldens"
SUFFIX = " Answer the question using a single word or phrase."
PICTURE_SIZES = ((640, 480), (333, 500), (100, 700), (336, 336), (900, 640), (250, 180))
CASES = (
    ("What is the color of the bus?", (640, 480)),
    ("What does the sign read?", (333, 500)),
    ("one", (224, 224)),
)
CASES_HIGH = (("What does the sign read?", (1500, 1100)), ("one", (2100, 1030)))


def a_picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Soft blots under a texture of changing strength: detail everywhere, and of every size."""
    draw = np.random.RandomState(seed)
    width, height = size
    soft = np.asarray(tiny.photo(seed, width, height).open(), dtype=np.float64)
    strength = np.asarray(tiny.photo(seed + 100, width, height).open(), dtype=np.float64) / 255
    noisy = soft + 40 * strength * draw.randn(height, width, 3)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def gradients(seed: int, side: int) -> list[npt.NDArray[np.float32]]:
    """(3, side, side), of a question and of the general one."""
    draw = np.random.RandomState(seed)
    return [draw.randn(3, side, side).astype(np.float32) for _ in range(2)]


# ---------------------------------------------------------------- the edge mask and the blocks


@pytest.mark.parametrize("side", [224, 336])
def test_a_released_edge_mask_is_the_references_bit_for_bit(side: int) -> None:
    golden = np.load(GOLDENS / "vicrop_edges.npz")
    assert "a64c5d5" in str(golden["source"])
    for seed, size in enumerate(PICTURE_SIZES):
        found = edge_mask(a_picture(seed, size), (side, side), "released")
        np.testing.assert_array_equal(np.packbits(found), golden[f"masks_{side}"][seed])


@pytest.mark.parametrize("side", [224, 336])
def test_a_released_pure_grad_map_is_the_references(side: int) -> None:
    golden = np.load(GOLDENS / "vicrop_edges.npz")
    for seed, size in enumerate(PICTURE_SIZES):
        planes = [np.linalg.norm(gradient, axis=0) for gradient in gradients(seed, side)]
        model = Sees(dict(zip(("What?", GENERAL_QUESTION), planes, strict=True)), (0, 0, *size))
        picture = _held(a_picture(seed, size))
        (response,) = Vicrop(model, locate="pure_grad", fidelity="released").generate([_request(picture)])
        np.testing.assert_allclose(response.maps[0].values, golden[f"pure_{side}"][seed], rtol=1e-4)


def test_without_flat_regions_a_fixed_mask_is_the_released_one() -> None:
    image = a_picture(0, (640, 480))
    np.testing.assert_array_equal(edge_mask(image, (336, 336)), edge_mask(image, (336, 336), "released"))


@pytest.mark.parametrize("gray", [0, 17, 255])
def test_a_flat_picture_has_no_detail_whatever_rounding_says(gray: int) -> None:
    flat = Image.new("RGB", (300, 200), (gray, 90, gray))
    assert not edge_mask(flat, (224, 224)).any()


def test_flat_bands_beside_a_texture_have_no_detail_where_the_released_mask_sees_their_rounding() -> None:
    draw = np.random.RandomState(0)
    pixels = draw.randint(0, 256, (224, 224, 3)).astype(np.uint8)
    pixels[:, :192] = np.repeat(draw.randint(0, 256, (6, 3)), 32, axis=0)
    inside = np.zeros((224, 224), bool)
    inside[:, [32 * band + x for band in range(6) for x in range(8, 24)]] = True
    fixed = edge_mask(Image.fromarray(pixels), (224, 224))
    released = edge_mask(Image.fromarray(pixels), (224, 224), "released")
    assert not fixed[inside].any()
    assert fixed[:, 200:].all()
    assert released[inside].mean() > 0.1


def test_block_means_are_those_of_reshaped_blocks_and_cut_what_is_left_over() -> None:
    values = np.random.RandomState(0).rand(30, 44)
    expected = [[values[y : y + 14, x : x + 14].mean() for x in (0, 14, 28)] for y in (0, 14)]
    np.testing.assert_allclose(block_mean(values, 14), expected)


# ---------------------------------------------------------------- maps of a real decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> hf.Hf:
    folder = tiny.llava(tmp_path_factory.mktemp("llava") / "tiny", side=112, kv_heads=2)
    made = hf.model(str(folder), template="vicrop", device="cpu", dtype="float32")
    if Capability.GRADIENT not in made.offers:
        pytest.skip("the adapter offers no gradients")
    return made


@pytest.mark.parametrize("locate", ["rel_att", "grad_att", "pure_grad"])
def test_maps_and_boxes_are_the_references_on_shared_weights(model: hf.Hf, locate: str) -> None:
    _agree(model, locate, CASES, locate)


@pytest.mark.parametrize("locate", ["rel_att", "grad_att", "pure_grad"])
def test_maps_of_tiles_are_the_references_on_shared_weights(model: hf.Hf, locate: str) -> None:
    _agree(model, f"{locate},high_res=on,base=336", CASES_HIGH, f"{locate}_high")


def _agree(model: hf.Hf, knobs: str, cases: tuple[tuple[str, tuple[int, int]], ...], key: str) -> None:
    golden = np.load(GOLDENS / "vicrop_gradients.npz")
    assert "a64c5d5" in str(golden["source"])
    layer = "" if "pure_grad" in knobs else ",layer=2"
    method = make_method(f"vicrop:locate={knobs}{layer},fidelity=released")(model)
    requests = [
        Request((tiny.photo(k, *size),), question, SUFFIX, decoding=Decoding(max_tokens=1))
        for k, (question, size) in enumerate(cases)
    ]
    for k, response in enumerate(method.generate(requests)):
        assert response.failure is None
        reference = golden[f"{key}_map_{k}"]
        np.testing.assert_allclose(
            response.maps[0].values, reference, rtol=1e-4, atol=1e-4 * np.nanmax(np.abs(reference))
        )
        assert response.trace["box"] == golden[f"{key}_box_{k}"].tolist()


def test_all_layers_are_the_mean_of_each_and_say_so(model: hf.Hf) -> None:
    request = _request(tiny.photo(0, 300, 300))
    (every,) = Vicrop(model, locate="grad_att", layer="all").generate([request])
    each = [Vicrop(model, locate="grad_att", layer=layer).generate([request])[0] for layer in range(4)]
    mean = np.mean([response.maps[0].values for response in each], axis=0)
    np.testing.assert_allclose(every.maps[0].values, mean, rtol=1e-4, atol=1e-4 * mean.max())
    assert every.trace["layer"] == "all"
    assert [response.trace["layer"] for response in each] == [0, 1, 2, 3]


@pytest.mark.parametrize("locate", ["grad_att", "pure_grad"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1000, 1), (1, 1000), (112, 112), (7680, 4320)])
def test_pictures_of_one_pixel_and_of_8k_are_answered(
    model: hf.Hf, locate: str, size: tuple[int, int]
) -> None:
    picture = _held(Image.new("RGB", size, (10, 200, 30)))
    (response,) = make_method(f"vicrop:locate={locate}")(model).generate([_request(picture)])
    assert response.failure is None
    x1, y1, x2, y2 = response.trace["box"]
    assert 0 <= x1 < x2 <= size[0]
    assert 0 <= y1 < y2 <= size[1]


# ---------------------------------------------------------------- the method, seen through a function


class Sees(Scripted):
    """A model whose map of pixels is what it is told for each question."""

    def __init__(self, planes: dict[str, npt.NDArray[np.float32]], rectangle: tuple[int, ...]) -> None:
        def answer(request: Request) -> Response:
            if not request.probes:
                return Response(str([picture.crops for picture in request.images]))
            asked.append(request)
            values = planes[request.question].astype(np.float32)
            return Response(maps=(ImportanceMap(values, rectangle),), trace={"map_layers": [None]})

        asked: list[Request] = []
        super().__init__(answer, offers=frozenset({Capability.GRADIENT}), name="sees")
        self.asked = asked


def _held(image: Image.Image) -> Picture:
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture(Memory(data.getvalue(), f"held {image.size}.png"))


def _noise(width: int, height: int) -> Picture:
    """Detail everywhere."""
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3))
    return _held(Image.fromarray(pixels.astype(np.uint8)))


def _request(picture: Picture) -> Request:
    return Request((picture,), "What?", SUFFIX, decoding=Decoding(max_tokens=1))


def _planes(side: int = 336) -> dict[str, npt.NDArray[np.float32]]:
    """A gradient that peaks in the block of row 5 and column 17, over a general one that is even."""
    specific = np.full((side, side), 0.1, np.float32)
    specific[70:84, 238:252] = 3
    return {"What?": specific, GENERAL_QUESTION: np.full((side, side), 0.5, np.float32)}


def test_pure_grad_asks_both_questions_at_pixels_and_grad_att_one_at_a_layer() -> None:
    picture = _held(a_picture(0, (640, 480)))
    pixels = Sees(_planes(), (80, 0, 560, 480))
    Vicrop(pixels, locate="pure_grad").generate([_request(picture)])
    assert [request.question for request in pixels.asked] == ["What?", GENERAL_QUESTION]
    assert [request.probes for request in pixels.asked] == [(ReadMap(None, "pixels", keep=True),)] * 2
    attention = Sees(_planes(24 * 14), (80, 0, 560, 480))
    Vicrop(attention, locate="grad_att", layer=3).generate([_request(picture)])
    assert [request.probes for request in attention.asked] == [(ReadMap(3, "gradient", keep=True),)]


def test_pure_grad_crops_where_the_question_has_more_gradient_in_the_pixels_seen() -> None:
    model = Sees(_planes(), (80, 0, 560, 480))
    method = Vicrop(model, locate="pure_grad", base=60)
    (response,) = method.generate([_request(_noise(640, 480))])
    x1, y1, x2, y2 = response.trace["box"]
    assert response.trace["grid"] == [24, 24]
    assert response.trace["rectangle"] == [80, 0, 560, 480]
    assert response.trace["layer"] is None
    assert x1 <= 80 + 17.5 * 20 <= x2
    assert y1 <= 5.5 * 20 <= y2


def test_a_fixed_mask_is_of_the_pixels_that_the_model_sees() -> None:
    picture = _noise(640, 480)
    ones = np.ones((336, 336), np.float32)
    planes = {"What?": ones, GENERAL_QUESTION: ones}
    for fidelity, masked in (("fixed", picture.crop((80, 0, 560, 480))), ("released", picture)):
        method = make_method(f"vicrop:locate=pure_grad,fidelity={fidelity}")
        (response,) = method(Sees(planes, (80, 0, 560, 480))).generate([_request(picture)])
        expected = block_mean(ones * edge_mask(masked.open(), (336, 336), "released"), 14)
        np.testing.assert_array_equal(response.maps[0].values, expected)


def test_nothing_over_nothing_at_a_pixel_does_not_decide_a_fixed_box_as_it_does_a_released_one() -> None:
    planes = _planes()
    planes["What?"][300:, :30] = planes[GENERAL_QUESTION][300:, :30] = 0
    picture = _noise(480, 480)
    boxes = []
    for fidelity in ("fixed", "released"):
        method = make_method(f"vicrop:locate=pure_grad,base=60,fidelity={fidelity}")
        (response,) = method(Sees(planes, (0, 0, 480, 480))).generate([_request(picture)])
        assert np.isnan(response.maps[0].values).any() == (fidelity == "released")
        boxes.append(response.trace["box"])
    assert boxes[0][0] <= 17.5 * 20 <= boxes[0][2]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_gradients_that_say_nothing_give_the_whole_picture_and_say_so(value: float) -> None:
    planes = {"What?": np.full((336, 336), value), GENERAL_QUESTION: np.full((336, 336), 1.0)}
    method = Vicrop(Sees(planes, (0, 0, 480, 480)), locate="pure_grad")
    (response,) = method.generate([_request(_held(a_picture(0, (480, 480))))])
    assert (response.trace["degenerate"], response.trace["whole"], response.text) == (True, True, "[()]")


def test_a_picture_that_breaks_after_its_header_fails_its_own_request() -> None:
    data = _held(a_picture(0, (480, 480))).source.read()  # type: ignore[union-attr]
    broken = Picture(Memory(data[: len(data) // 2], "torn.png"))
    good = _held(a_picture(1, (480, 480)))
    method = Vicrop(Sees(_planes(), (0, 0, 480, 480)), locate="pure_grad")
    first, second = method.generate([_request(broken), _request(good)])
    assert first.failure is not None
    assert first.failure.kind == "damaged_picture"
    assert second.failure is None


@pytest.mark.parametrize("shape", [(1, 336), (336, 1), (1, 1), (6, 336), (336, 13)])
def test_a_picture_seen_on_less_than_a_patch_has_one_line_of_blocks_and_as_released_fails_alone(
    shape: tuple[int, int],
) -> None:
    even = np.ones(shape, np.float32)
    width, height = 20 * shape[1], 20 * shape[0]
    sees = Sees({"What?": even, GENERAL_QUESTION: even}, (0, 0, width, height))
    picture = _noise(width, height)
    (fixed,) = Vicrop(sees, locate="pure_grad").generate([_request(picture)])
    assert fixed.failure is None
    assert fixed.trace["grid"] == [max(1, side // 14) for side in shape]
    (released,) = Vicrop(sees, locate="pure_grad", fidelity="released").generate([_request(picture)])
    assert released.failure is not None
    assert released.failure.kind == "no_blocks"
    for says in (f"{shape[1]} x {shape[0]}", "14 x 14", "use fidelity=fixed"):
        assert says in released.failure.message


def test_a_model_without_gradients_is_refused_with_the_remedy() -> None:
    attentive = Scripted(lambda _: "", offers=frozenset({Capability.ATTENTION}), name="attentive")
    for locate in ("grad_att", "pure_grad"):
        with pytest.raises(CapabilityError, match=r"needs gradient; attentive .*vicrop:locate=detector"):
            make_method(f"vicrop:locate={locate}")(attentive)


@pytest.mark.parametrize("knobs", ["locate=pure_grad,layer=3", "locate=oracle,layer=all", "layer=-1"])
def test_a_layer_that_means_nothing_is_refused(knobs: str) -> None:
    with pytest.raises(SpecError, match="layer"):
        make_method(f"vicrop:{knobs}")(Sees({}, ()))
