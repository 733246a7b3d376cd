"""Families that cut a picture into tiles, on tiny random checkpoints, against transformers' plain calls.

Where the image tokens stand is found here from what transformers itself does, never from the layout.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from PIL import Image
from tiny_idefics3 import idefics3, smolvlm
from tiny_llava_next import llava_next
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from transformers.models.smolvlm import processing_smolvlm

from adapters import hf
from adapters._hf_checkpoint import find, load_processor
from harness.pictures import Memory, Picture
from harness.taps import AttentionCall, Prompt, Tap
from harness.types import Box, Capability, Decoding, ImportanceMap, ReadMap, Request, Response
from methods.sparc import Sparc, SparcSteering

Grid = npt.NDArray[np.int64]

BUILDERS = {
    "vicuna": llava_next,
    "mistral": functools.partial(llava_next, mistral=True),
    "idefics3": idefics3,
    "smolvlm": smolvlm,
}
NAMES = list(BUILDERS)
KINDS: tuple[Any, ...] = ("attention", "gradient")
SHAPES = [(100, 80), (57, 201), (300, 60), (90, 90)]


@pytest.fixture(scope="module", autouse=True)
def numbers_in_words() -> Iterator[None]:
    """SmolVLM's processor does not load without num2words, which it calls for videos only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiles")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: _model(folder) for name, folder in folders.items()}


def _model(folder: Path) -> hf.Hf:
    model = hf.model(str(folder), device="cpu", batch=8)
    assert isinstance(model, hf.Hf)
    return model


def _request(number: int = 0, images: int = 1, **changes: Any) -> Request:
    """Requests differ in length; pictures in shape."""
    pictures = tuple(tiny.photo(number // 2 + k, *SHAPES[(number // 2 + k) % 4]) for k in range(images))
    question = "What is the color of the bus?" + " And the horse?" * (number % 4)
    return dataclasses.replace(Request(pictures, question, decoding=Decoding(max_tokens=8)), **changes)


def _answered(model: hf.Hf, request: Request) -> Response:
    (response,) = model.generate([request])
    assert response.failure is None, response.failure
    return response


@functools.cache
def _plain(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    if model.config.model_type == "smolvlm":  # transformers would load its processor with torchvision alone
        processor = load_processor(find(str(folder), None, trust_remote_code=False), trust_remote_code=False)
    else:
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
    return model.eval().requires_grad_(False), processor


def _inputs(folder: Path, request: Request) -> Any:
    """A request through the checkpoint's own processor alone."""
    _, processor = _plain(folder)
    content = [{"type": "image"} for _ in request.images]
    content.append({"type": "text", "text": request.text})
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [picture.open() for picture in request.images]
    bare = text.startswith(processor.tokenizer.bos_token)
    return processor(
        text=text, images=[images] if images else None, return_tensors="pt", add_special_tokens=not bare
    )


# ---------------------------------------------------------------- where transformers puts image tokens


def _grids(folder: Path, inputs: Any, picture: Picture) -> list[Grid]:
    """Columns of the first picture's tokens by their place in the picture, the finest grid first."""
    model, processor = _plain(folder)
    columns = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().numpy()
    if model.config.model_type in ("idefics3", "smolvlm"):
        return _idefics_grids(model, columns, _cut(processor, picture))
    return _next_grids(model, columns, picture.size)


def _cut(processor: Any, picture: Picture) -> tuple[int, int]:
    """Rows and columns of tiles."""
    prepared = processor.image_processor(images=[picture.open()], return_row_col_info=True)
    return prepared["rows"][0][0], prepared["cols"][0][0]


def _idefics_grids(model: Any, columns: Grid, cut: tuple[int, int]) -> list[Grid]:
    """Patches are numbered, and the model's own shuffle puts the numbers together to tokens."""
    connector, vision = model.model.connector, model.config.vision_config
    across = vision.image_size // vision.patch_size
    numbers = connector.pixel_shuffle(torch.arange(across**2).reshape(1, -1, 1), connector.scale_factor)[0]
    places: dict[tuple[int, ...], int] = {}
    for place, column in enumerate(columns[: (1 + cut[0] * cut[1]) * len(numbers)].tolist()):
        tile, token = divmod(place, len(numbers))
        first = int(numbers[token].min())
        row, at = first // across // connector.scale_factor, first % across // connector.scale_factor
        if tile == cut[0] * cut[1]:
            places[0, row, at] = column
        else:
            each = across // connector.scale_factor
            places[1, tile // cut[1] * each + row, tile % cut[1] * each + at] = column
    return [_grid({key[1:]: at for key, at in places.items() if key[0] == view}) for view in (1, 0)]


def _next_grids(model: Any, columns: Grid, size: tuple[int, int]) -> list[Grid]:
    """Patches are numbered, and the model puts the numbers in order instead of features."""
    side = model.config.vision_config.image_size
    across = side // model.config.vision_config.patch_size
    tiles = get_anyres_image_grid_shape(size[::-1], model.config.image_grid_pinpoints, side)
    numbers = torch.arange((1 + tiles[0] * tiles[1]) * across**2).reshape(-1, across**2, 1)
    newline = torch.tensor([-1])
    [packed], _ = model.pack_image_features([numbers], [size[::-1]], "default", newline)
    places: dict[tuple[int, ...], int] = {}
    for column, number in zip(columns, packed.flatten().tolist(), strict=False):
        tile, patch = divmod(number, across**2)
        if tile == 0:
            places[0, patch // across, patch % across] = column
        elif tile > 0:
            row = (tile - 1) // tiles[1] * across + patch // across
            places[1, row, (tile - 1) % tiles[1] * across + patch % across] = column
    return [_grid({key[1:]: at for key, at in places.items() if key[0] == view}) for view in (1, 0)]


def _grid(places: dict[tuple[int, ...], int]) -> Grid:
    rows, columns = (sorted({key[axis] for key in places}) for axis in (0, 1))
    return np.array([[places[row, column] for column in columns] for row in rows])


def _cells(rectangle: Box, shape: tuple[int, ...]) -> dict[tuple[int, int], Box]:
    x1, y1, x2, y2 = rectangle
    height, width = (y2 - y1) / shape[0], (x2 - x1) / shape[1]
    return {
        (row, column): (
            x1 + column * width,
            y1 + row * height,
            x1 + (column + 1) * width,
            y1 + (row + 1) * height,
        )
        for row, column in np.ndindex(*shape[:2])
    }


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _laid_out(values: Any, grids: Sequence[Grid], found: ImportanceMap, size: tuple[int, int]) -> Any:
    """Values by column on the finest grid, what the others hold shared out by area, cell by cell."""
    total = values[grids[0]].astype(np.float64)
    fine = _cells(found.rectangle, total.shape)
    for grid in grids[1:]:
        for cell, box in _cells((0.0, 0.0, *size), grid.shape).items():
            area = _common(box, box)
            for place, smaller in fine.items():
                total[place] += values[grid[cell]] * _common(box, smaller) / area
    return total


def _close(found: ImportanceMap, expected: Any, share: float) -> None:
    """No further off than a share of the largest value."""
    assert found.values.shape == expected.shape
    assert np.abs(found.values - expected).max() <= share * np.abs(expected).max()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max()  # flat maps would prove nothing


# ---------------------------------------------------------------- tokens, pixels, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sizes",
    [[], [(100, 80)], [(57, 201), (300, 60)], [(1, 1)], [(3000, 40)], [(40, 3000)], [(90, 90), (1, 7)]],
)
def test_tokens_and_pixels_are_the_official_processors(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, sizes: list[tuple[int, int]]
) -> None:
    models[name].generate([_request()])
    pictures = tuple(tiny.photo(seed, *size) for seed, size in enumerate(sizes))
    request = dataclasses.replace(_request(), images=pictures)
    waves = models[name]._waves
    assert waves is not None
    row = waves._row(request)
    inputs = _inputs(folders[name], request)
    assert list(row.tokens) == inputs["input_ids"][0].tolist()
    family: Any = waves._family
    if pictures:
        official = inputs["pixel_values"].flatten(0, 1)
        tiles = torch.cat([family.leaf(family.pixels(picture)) for picture in pictures])
        assert torch.equal(tiles, official[official.flatten(1).any(dim=1)])  # the others only fill a batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, processor = _plain(folders[name])
    for number in (0, 2):
        request = _request(number, images)
        inputs = _inputs(folders[name], request)
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert _answered(models[name], request).text == processor.tokenizer.decode(
            out, skip_special_tokens=True
        )


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_attention_and_gradient_maps_are_those_of_the_whole_eager_graph(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, _ = _plain(folders[name])
    layers: list[Any] = [1, 2, "all"]
    for number in (0, 2, 4):
        request = dataclasses.replace(
            _request(number, images),
            decoding=Decoding(max_tokens=0),
            probes=tuple(ReadMap(layer, kind=kind) for kind in KINDS for layer in layers),
        )
        size = request.images[0].size
        inputs = _inputs(folders[name], request)
        grids = _grids(folders[name], inputs, request.images[0])
        with torch.enable_grad():
            inputs["pixel_values"].requires_grad_()
            out = model(**inputs, output_attentions=True)
            best = out.logits[0, -1].log_softmax(dim=-1).max()
            gradients = torch.autograd.grad(best, out.attentions)
        attention = torch.stack([one[0, :, -1].mean(dim=0) for one in out.attentions]).detach().numpy()
        weighted = torch.stack(
            [
                (one[0, :, -1] * gradient[0, :, -1].clamp(min=0)).mean(dim=0)
                for one, gradient in zip(out.attentions, gradients, strict=True)
            ]
        )
        maps = _answered(models[name], request).maps
        for place, layer in enumerate(layers):
            for found, values, share in (
                (maps[place], attention, 1e-5),
                (maps[3 + place], weighted.detach().numpy(), 1e-4),
            ):
                wanted = values.mean(axis=0) if layer == "all" else values[layer]
                _close(found, _laid_out(wanted, grids, found, size), share)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SHAPES)
def test_the_pixel_gradient_is_autograds_on_the_official_pixels(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, size: tuple[int, int]
) -> None:
    model, processor = _plain(folders[name])
    request = dataclasses.replace(
        _request(), images=(tiny.photo(7, *size),), probes=(ReadMap(kind="pixels"),), decoding=Decoding(0)
    )
    inputs = _inputs(folders[name], request)
    with torch.enable_grad():
        pixels = inputs["pixel_values"].requires_grad_()
        best = model(**inputs).logits[0, -1].log_softmax(dim=-1).max()
        (gradient,) = torch.autograd.grad(best, [pixels])
    (found,) = _answered(models[name], request).maps
    assert found.rectangle == (0.0, 0.0, *size)
    norm = gradient[0].norm(dim=1).numpy()
    if model.config.model_type in ("idefics3", "smolvlm"):
        canvas, whole = _side_by_side(norm[:-1], _cut(processor, request.images[0])), norm[-1]
    else:
        side, pins = norm.shape[-1], model.config.image_grid_pinpoints
        canvas = _side_by_side(norm[1:], get_anyres_image_grid_shape(size[::-1], pins, side))
        canvas, whole = _unpadded(canvas, size), norm[0]
    _close(found, canvas + _stretched(whole, canvas.shape), 1e-4)


def _side_by_side(tiles: Any, cut: tuple[int, int]) -> Any:
    rows, columns = cut
    return np.concatenate(
        [np.concatenate(tiles[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    )


def _unpadded(canvas: Any, size: tuple[int, int]) -> Any:
    """The pixels of LLaVA-NeXT's canvas that show the picture, which is fitted into it."""
    scale = min(canvas.shape[0] / size[1], canvas.shape[1] / size[0])
    height, width = (
        min(int(np.ceil(one * scale)), most) for one, most in zip(size[::-1], canvas.shape, strict=True)
    )
    top, left = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    return canvas[top : top + height, left : left + width]


def _stretched(values: Any, shape: tuple[int, int]) -> Any:
    """Values on another grid over the same area, their sum kept: every cell cut up, the pieces collected."""
    for axis, cells in enumerate(shape):
        pieces = np.repeat(values, cells, axis=axis) / cells
        values = np.add.reduceat(pieces, np.arange(cells) * values.shape[axis], axis=axis)
    return values


# ---------------------------------------------------------------- batches


def _mixed() -> list[Request]:
    """Unequal prompts and pictures; answers, options and maps of every kind."""
    requests = [_request(number, images=number % 3) for number in range(8)]
    requests[1] = dataclasses.replace(requests[1], probes=(ReadMap(1), ReadMap("all")))
    requests[2] = dataclasses.replace(requests[2], options=("yes", "a red car", "no"))
    requests[4] = dataclasses.replace(requests[4], probes=(ReadMap(2, kind="gradient"), ReadMap(2)))
    requests[5] = dataclasses.replace(requests[5], probes=(ReadMap(1),), options=("two dogs", "yes"))
    requests[6] = dataclasses.replace(requests[6], options=("yes", "no"))
    requests[7] = dataclasses.replace(requests[7], probes=(ReadMap(kind="pixels"), ReadMap(3)))
    return requests


def _same(one: Response, other: Response) -> None:
    assert one.failure is None
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert one.usage.tokens_in == other.usage.tokens_in
    np.testing.assert_allclose(one.option_nll, other.option_nll, rtol=1e-4)
    for mine, its in zip(one.maps, other.maps, strict=True):
        assert mine.rectangle == its.rectangle
        _close(mine, its.values, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_eight_unequal_requests_at_once_are_eight_singles(models: dict[str, hf.Hf], name: str) -> None:
    requests = _mixed()
    many = models[name].generate(requests)
    assert len({response.text for response in many}) > 4
    for request, response in zip(requests, many, strict=True):
        _same(response, _answered(models[name], request))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fidelity", ["fixed", "released"])
def test_sparc_steers_eight_at_once_as_it_steers_one(
    models: dict[str, hf.Hf], name: str, fidelity: Any
) -> None:
    model = models[name]
    method = Sparc(model, alpha=1.5, tau=0.05, layer=2, fidelity=fidelity)
    requests = [_request(number, images=1 + number % 2) for number in range(8)]
    many = method.generate(requests)
    singles = [method.generate([request])[0] for request in requests]
    assert [one.text for one in many] == [one.text for one in singles]
    assert [one.trace for one in many] == [one.trace for one in singles]
    assert [one.text for one in many] != [one.text for one in model.generate(requests)]


@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_that_was_kept_changes_no_answer(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str
) -> None:
    looks = [
        dataclasses.replace(_request(n), probes=(ReadMap(2, keep=True),), decoding=Decoding(0))
        for n in range(4)
    ]
    answers = [dataclasses.replace(_request(n, images=2), instruction=" Why?") for n in range(4)]
    keeper = _model(folders[name])
    keeper.generate(looks)
    assert keeper._waves is not None
    family: Any = keeper._waves._family
    assert len(family._beginnings._kept) == 2  # of four requests over two pictures
    for response, request in zip(keeper.generate(answers), answers, strict=True):
        _same(response, _answered(models[name], request))


# ---------------------------------------------------------------- where a cell is in the picture


def _drawn(size: tuple[int, int], square: tuple[float, ...] | None = None) -> Picture:
    """A dark picture, or one with a bright square."""
    image = Image.new("RGB", size, (90, 90, 90))
    if square is not None:
        image.paste((255, 255, 255), tuple(map(round, square)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return Picture(Memory(data.getvalue(), "square.png"))


def _embedded(model: hf.Hf, pictures: Sequence[Picture]) -> tuple[torch.Tensor, Any]:
    """What the decoder is given for a prompt with pictures, and the prompt's row."""
    assert model._waves is not None
    request = dataclasses.replace(_request(), images=tuple(pictures))
    seen: list[torch.Tensor] = []
    core = model._waves._weights.model
    hook = core.get_decoder().register_forward_pre_hook(
        lambda _, __, named: seen.append(named["inputs_embeds"]), with_kwargs=True
    )
    _answered(model, dataclasses.replace(request, decoding=Decoding(max_tokens=1)))
    hook.remove()
    return seen[0][0], model._waves._row(request)


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    """The same models, but no patch attends to another: a token shows its own pixels alone."""
    models = {}
    for name, folder in folders.items():
        models[name] = _model(folder)
        _answered(models[name], _request(images=0))
        waves = models[name]._waves
        assert waves is not None
        for path, weights in waves._weights.named_parameters():
            if "vision" in path and "out_proj" in path:
                weights.zero_()
    return models


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(400, 320), (228, 804), (1200, 240), (360, 360), (640, 480)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_is_found_in_the_cells_whose_rectangles_hold_it(
    apart: dict[str, hf.Hf], name: str, size: tuple[int, int], which: int
) -> None:
    model = apart[name]
    sizes = [(320, 400), (320, 400)]
    sizes[which] = size
    blank, row = _embedded(model, [_drawn(each) for each in sizes])
    assert model._waves is not None
    family: Any = model._waves._family
    span = family.span(size)
    rows, columns = span.views[0].cells.shape
    cells = _cells(span.views[0].rectangle, (rows, columns))
    for place in ((1, 1), (rows // 2, columns - 2), (rows - 2, columns // 3)):
        x1, y1, x2, y2 = cells[place]
        across, down = 0.2 * (x2 - x1), 0.2 * (y2 - y1)
        square = (x1 + across, y1 + down, x2 - across, y2 - down)
        pictures = [_drawn(each) for each in sizes]
        pictures[which] = _drawn(size, square)
        energy = (_embedded(model, pictures)[0] - blank).norm(dim=1).numpy()
        for view in span.views:
            here = energy[row.starts[which] + view.cells]
            boxes = _cells(view.rectangle, here.shape)
            inside = sum(here[cell] for cell, box in boxes.items() if _common(box, square))
            assert inside > 0.9 * here.sum() > 0
        energy[row.starts[which] + np.arange(len(span.tokens))] = 0
        assert energy.max() == 0  # no other token moves


# ---------------------------------------------------------------- nothing is left behind


@dataclasses.dataclass(frozen=True)
class _Faulty(SparcSteering):
    """Steering that fails in the middle of a forward."""

    def tap(self, prompt: Prompt) -> Any:
        class Broken(Tap):
            def before(self, call: AttentionCall) -> None:
                if call.layer == 2:
                    raise ValueError("broken")

        return Broken()


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_same_after_probes_and_after_a_tap_that_failed(
    models: dict[str, hf.Hf], name: str
) -> None:
    model = models[name]
    requests = [_request(number, images=number % 3) for number in range(6)]
    before = [(one.text, one.option_nll) for one in model.generate(requests)]
    model.generate(_mixed())
    faulty = _Faulty(1.1, 0.1, 1.5, None, None, "relative", 0, False)
    with pytest.raises(ValueError, match="broken"):
        model.generate([_request(3, probes=(faulty,))])
    assert [(one.text, one.option_nll) for one in model.generate(requests)] == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*KINDS, "pixels"])
def test_a_prompt_beyond_the_context_and_a_torn_picture_fail_alone(
    models: dict[str, hf.Hf], name: str, kind: Any
) -> None:
    whole = tiny.photo(5).source.read()  # type: ignore[union-attr]
    torn = Picture(Memory(whole[: len(whole) // 2], "torn.png"))
    fine = _request(1, probes=(ReadMap(kind=kind),))
    broken = dataclasses.replace(fine, images=(torn,))
    long = dataclasses.replace(fine, question="What is this? " * 1000)
    responses = models[name].generate([fine, broken, long, _request(2)])
    kinds = [response.failure and response.failure.kind for response in responses]
    assert kinds == [None, "damaged_picture", "too_long", None]
    _same(responses[0], _answered(models[name], fine))
    assert responses[3].text == _answered(models[name], _request(2)).text


def _changed(folder: Path, copy: Path, part: str, **changes: Any) -> hf.Hf:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (config[part] if part else config).update(changes)
    (copy / "config.json").write_text(json.dumps(config))
    return _model(copy)


def test_a_decoder_that_forgets_and_another_tower_serve_no_maps(
    folders: dict[str, Path], models: dict[str, hf.Hf], tmp_path: Path
) -> None:
    mistral = folders["mistral"]
    assert models["mistral"].offers > {Capability.ATTENTION, Capability.GRADIENT, Capability.STEERING}
    sliding = _changed(mistral, tmp_path / "sliding", "text_config", sliding_window=64)
    assert "does not attend to everything" in sliding.why_not
    whole = _changed(mistral, tmp_path / "whole", "", vision_feature_select_strategy="full")
    assert "features: full" in whole.why_not
    for model in (sliding, whole):
        assert model.offers == {Capability.LIKELIHOOD}


@pytest.mark.parametrize("longest", [64, 100, 129, 300])
@pytest.mark.parametrize("split", [True, False])
def test_idefics_tiles_are_the_official_ones_whatever_the_settings(
    folders: dict[str, Path], tmp_path: Path, longest: int, split: bool
) -> None:
    copy = shutil.copytree(folders["idefics3"], tmp_path / "changed")
    settings = json.loads((copy / "processor_config.json").read_text())
    settings["image_processor"] |= {"size": {"longest_edge": longest}, "do_image_splitting": split}
    (copy / "processor_config.json").write_text(json.dumps(settings))
    model = _model(copy)
    pictures = [
        tiny.photo(seed, *size)
        for seed, size in enumerate([(64, 64), (101, 99), (1, 70), (129, 43), (43, 129)])
    ]
    requests = [dataclasses.replace(_request(), images=(one,), probes=(ReadMap(2),)) for one in pictures]
    for request, response in zip(requests, model.generate(requests), strict=True):
        inputs = _inputs(copy, request)
        assert model._waves is not None
        assert list(model._waves._row(request).tokens) == inputs["input_ids"][0].tolist()
        cut = _cut(_plain(copy)[1], request.images[0])
        assert response.maps[0].values.shape == (4 * max(1, cut[0]), 4 * max(1, cut[1]))
