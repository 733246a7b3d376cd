"""Families that cut a picture into tiles, on tiny random checkpoints, against transformers' plain calls.

Where the image tokens stand is found here from what transformers itself does, never from the layout.
"""

from __future__ import annotations

import dataclasses
import functools
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
from tiny_idefics3 import idefics3, smolvlm
from tiny_llava_next import llava_next
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from transformers.models.smolvlm import processing_smolvlm
from whitebox import (
    SHAPES,
    answered,
    ask,
    close,
    drawn,
    eager_rows,
    embedded,
    greedy,
    inputs_of,
    model_of,
    pixel_gradient,
    plain,
    row_of,
    set_apart,
    waves,
)

from adapters import hf
from harness.pictures import Picture
from harness.traces import trace_arrays
from harness.types import Box, Capability, Decoding, ImportanceMap, ReadMap

Grid = npt.NDArray[np.int64]

BUILDERS = {
    "vicuna": llava_next,
    "mistral": functools.partial(llava_next, mistral=True),
    "idefics3": idefics3,
    "smolvlm": smolvlm,
}
NAMES = list(BUILDERS)
KINDS: tuple[Any, ...] = ("attention", "gradient")


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
    return {name: model_of(folder) for name, folder in folders.items()}


# ---------------------------------------------------------------- where transformers puts image tokens


def _grids(folder: Path, inputs: Any, picture: Picture) -> list[Grid]:
    """Columns of the first picture's tokens by their place in the picture, the finest grid first."""
    model, processor = plain(folder)
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


# ---------------------------------------------------------------- tokens, pixels, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sizes",
    [[], [(100, 80)], [(57, 201), (300, 60)], [(1, 1)], [(3000, 40)], [(40, 3000)], [(90, 90), (1, 7)]],
)
def test_tokens_and_pixels_are_the_official_processors(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, sizes: list[tuple[int, int]]
) -> None:
    pictures = tuple(tiny.photo(seed, *size) for seed, size in enumerate(sizes))
    request = dataclasses.replace(ask(), images=pictures)
    inputs = inputs_of(folders[name], request)
    assert list(row_of(models[name], request).tokens) == inputs["input_ids"][0].tolist()
    family = waves(models[name])._family
    if pictures:
        official = inputs["pixel_values"].flatten(0, 1)
        tiles = torch.cat([family.leaf(family.pixels(picture)) for picture in pictures])
        assert torch.equal(tiles, official[official.flatten(1).any(dim=1)])  # the others only fill a batch


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_text_is_what_transformers_generates(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, processor = plain(folders[name])
    for number in (0, 2):
        request = ask(number, images)
        expected = greedy(model, processor, inputs_of(folders[name], request))
        assert answered(models[name], request).text == expected


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 2])
def test_attention_and_gradient_maps_are_those_of_the_whole_eager_graph(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, images: int
) -> None:
    model, _ = plain(folders[name])
    layers: list[Any] = [1, 2, "all"]
    for number in (0, 2, 4):
        request = dataclasses.replace(
            ask(number, images),
            decoding=Decoding(max_tokens=0),
            probes=tuple(ReadMap(layer, kind=kind) for kind in KINDS for layer in layers),
        )
        size = request.images[0].size
        inputs = inputs_of(folders[name], request)
        grids = _grids(folders[name], inputs, request.images[0])
        attention, weighted = eager_rows(model, inputs)
        maps = answered(models[name], request).maps
        for place, layer in enumerate(layers):
            for found, values, share in (
                (maps[place], attention, 1e-5),
                (maps[3 + place], weighted, 1e-4),
            ):
                wanted = values.mean(axis=0) if layer == "all" else values[layer]
                close(found, _laid_out(wanted, grids, found, size), share)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SHAPES)
def test_the_pixel_gradient_is_autograds_on_the_official_pixels(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, size: tuple[int, int]
) -> None:
    model, processor = plain(folders[name])
    request = dataclasses.replace(
        ask(), images=(tiny.photo(7, *size),), probes=(ReadMap(kind="pixels"),), decoding=Decoding(0)
    )
    inputs = inputs_of(folders[name], request)
    (found,) = answered(models[name], request).maps
    assert found.rectangle == (0.0, 0.0, *size)
    norm = pixel_gradient(model, inputs)[0].norm(dim=1).numpy()
    if model.config.model_type in ("idefics3", "smolvlm"):
        canvas, whole = _side_by_side(norm[:-1], _cut(processor, request.images[0])), norm[-1]
    else:
        side, pins = norm.shape[-1], model.config.image_grid_pinpoints
        canvas = _side_by_side(norm[1:], get_anyres_image_grid_shape(size[::-1], pins, side))
        canvas, whole = _unpadded(canvas, size), norm[0]
    close(found, canvas + _stretched(whole, canvas.shape), 1e-4)


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


# ---------------------------------------------------------------- where a cell is in the picture


@pytest.fixture(scope="module")
def apart(folders: dict[str, Path]) -> dict[str, hf.Hf]:
    return {name: set_apart(folder, "vision", "out_proj") for name, folder in folders.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(400, 320), (228, 804), (1200, 240), (360, 360), (640, 480)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bright_square_is_found_in_the_cells_whose_rectangles_hold_it(
    apart: dict[str, hf.Hf], name: str, size: tuple[int, int], which: int
) -> None:
    model = apart[name]
    sizes = [(320, 400), (320, 400)]
    sizes[which] = size
    blank, row = embedded(model, [drawn(each) for each in sizes])
    span = waves(model)._family.span(size)
    rows, columns = span.views[0].cells.shape
    cells = _cells(span.views[0].rectangle, (rows, columns))
    for place in ((1, 1), (rows // 2, columns - 2), (rows - 2, columns // 3)):
        x1, y1, x2, y2 = cells[place]
        across, down = 0.2 * (x2 - x1), 0.2 * (y2 - y1)
        square = (x1 + across, y1 + down, x2 - across, y2 - down)
        pictures = [drawn(each) for each in sizes]
        pictures[which] = drawn(size, square)
        energy = (embedded(model, pictures)[0] - blank).norm(dim=1).numpy()
        for view in span.views:
            here = energy[row.starts[which] + view.cells]
            boxes = _cells(view.rectangle, here.shape)
            inside = sum(here[cell] for cell, box in boxes.items() if _common(box, square))
            assert inside > 0.9 * here.sum() > 0
        energy[row.starts[which] + np.arange(len(span.tokens))] = 0
        assert energy.max() == 0  # no other token moves


# ---------------------------------------------------------------- nothing is left behind


def _changed(folder: Path, copy: Path, part: str, **changes: Any) -> hf.Hf:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (config[part] if part else config).update(changes)
    (copy / "config.json").write_text(json.dumps(config))
    return model_of(copy)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [*SHAPES, (40, 400), (60, 130)])
def test_a_trace_counts_image_tokens_as_the_selections_do(
    folders: dict[str, Path], models: dict[str, hf.Hf], name: str, size: tuple[int, int]
) -> None:
    _require_cells(folders[name], models[name], tiny.photo(0, *size))


def test_a_trace_of_one_tile_does_not_count_the_tags_before_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = _unsplit(folders["idefics3"], tmp_path / "whole")
    assert _require_cells(copy, model_of(copy), tiny.photo(0, 100, 80)).tolist() == [
        list(range(first, first + 4)) for first in (0, 4, 8, 12)
    ]


def _require_cells(folder: Path, model: hf.Hf, picture: Picture) -> Any:
    """The image token of each cell as a trace says it, which must be the official ones, or not known."""
    inputs = inputs_of(folder, dataclasses.replace(ask(), images=(picture,)))
    rank = np.cumsum(inputs["input_ids"][0].numpy() == plain(folder)[0].config.image_token_id) - 1
    place = waves(model)._family.place(picture)
    tiles = _cut(plain(folder)[1], picture) if "idefics" in folder.name or "smol" in folder.name else (0, 0)
    if not place:
        assert tiles[1] > 1  # side by side, they are no lines
        return None
    cells = trace_arrays({"selected": [[0]], **place})["selected_cells"]
    finest = next(grid for grid in _grids(folder, inputs, picture) if grid.size)
    np.testing.assert_array_equal(cells, rank[finest])
    return cells


def _unsplit(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "processor_config.json").read_text())
    settings["image_processor"]["do_image_splitting"] = False
    (copy / "processor_config.json").write_text(json.dumps(settings))
    return copy


@pytest.mark.parametrize("longest", [64, 100, 129, 300])
@pytest.mark.parametrize("split", [True, False])
def test_idefics_tiles_are_the_official_ones_whatever_the_settings(
    folders: dict[str, Path], tmp_path: Path, longest: int, split: bool
) -> None:
    copy = shutil.copytree(folders["idefics3"], tmp_path / "changed")
    settings = json.loads((copy / "processor_config.json").read_text())
    settings["image_processor"] |= {"size": {"longest_edge": longest}, "do_image_splitting": split}
    (copy / "processor_config.json").write_text(json.dumps(settings))
    model = model_of(copy)
    pictures = [
        tiny.photo(seed, *size)
        for seed, size in enumerate([(64, 64), (101, 99), (1, 70), (129, 43), (43, 129)])
    ]
    requests = [dataclasses.replace(ask(), images=(one,), probes=(ReadMap(2),)) for one in pictures]
    for request, response in zip(requests, model.generate(requests), strict=True):
        inputs = inputs_of(copy, request)
        assert list(row_of(model, request).tokens) == inputs["input_ids"][0].tolist()
        cut = _cut(plain(copy)[1], request.images[0])
        assert response.maps[0].values.shape == (4 * max(1, cut[0]), 4 * max(1, cut[1]))
