"""The LLaVA-1.5 layout: where its image tokens stand, the grid they form, the rectangle it covers.

A fixed-size vision tower turns each picture into one grid of tokens that replaces its placeholder in
the text. Knows this architecture's tensors and how to spare work in a batch of them: a picture passes
the vision tower once, rows that begin with the same picture share the keys and values of that
beginning, and a map's forward ends at its layer. Must not know requests, templates or methods.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adapters._hf_prompts import PromptError
from adapters._hf_rows import Inputs, Pixels, Row, left_pad, pad_token, require_pictures, require_room
from harness import taps
from harness.errors import PictureError
from harness.pictures import Picture
from harness.types import Box, ImportanceMap

FEATURE_BYTES = 1 << 30
"""Image features kept: 218 pictures of LLaVA-1.5-7B in half precision, 14,000 of the demo model."""


@dataclass(frozen=True)
class Framing:
    """What an image processor does to a picture's frame, in this order.

    pad: to a centred square. resize: an int is the shortest edge, a pair is (height, width). crop: the
    centre (height, width).
    """

    pad: bool = False
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @classmethod
    def of(cls, image_processor: Any) -> Framing:
        """As a transformers image processor is configured."""
        size, crop = image_processor.size, None
        if getattr(image_processor, "do_center_crop", False):
            crop = (image_processor.crop_size.height, image_processor.crop_size.width)
        return cls(
            pad=bool(getattr(image_processor, "do_pad", False)),
            resize=(size.shortest_edge or (size.height, size.width)) if image_processor.do_resize else None,
            crop=crop,
        )

    def rectangle(self, size: tuple[int, int]) -> Box:
        """The pixels of a picture of `size` (width, height) that the model sees.

        LLaVA-1.5 resizes the shortest edge and crops the centre: the sides are invisible to it.

        >>> Framing(resize=336, crop=(336, 336)).rectangle((640, 480))
        (80.0, 0.0, 560.0, 480.0)
        >>> Framing(resize=(96, 96)).rectangle((640, 480))
        (0.0, 0.0, 640.0, 480.0)
        >>> Framing(pad=True, resize=336, crop=(336, 336)).rectangle((640, 480))
        (0.0, -80.0, 640.0, 560.0)
        """
        left, top, (width, height) = 0, 0, size
        if self.pad:
            side = max(size)
            left, top = -((side - width) // 2), -((side - height) // 2)
            width = height = side
        resized_width, resized_height = self._resized(width, height)
        if self.crop is None:
            return (float(left), float(top), float(left + width), float(top + height))
        x_scale, y_scale = width / resized_width, height / resized_height
        x = (resized_width - self.crop[1]) // 2
        y = (resized_height - self.crop[0]) // 2
        return (
            left + x * x_scale,
            top + y * y_scale,
            left + (x + self.crop[1]) * x_scale,
            top + (y + self.crop[0]) * y_scale,
        )

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return width, height
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        longest = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longest) if width <= height else (longest, self.resize)


class Llava:
    """Rows of a LLaVA-1.5 for `weights`, a `LlavaForConditionalGeneration`."""

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        self._weights = weights
        self._tokenizer = processor.tokenizer
        self._image_processor = processor.image_processor
        self._context = context
        self._image_token = int(weights.config.image_token_id)
        self._pad = pad_token(self._tokenizer)
        self._framing = Framing.of(processor.image_processor)
        self._grid, self._tokens = self._measure(processor)
        self._features = _Store(FEATURE_BYTES)
        self._pixels: Pixels[Tensor] = Pixels(self._pixels_of)

    def _measure(self, processor: Any) -> tuple[tuple[int, int], int]:
        """The grid (rows, columns) and the tokens of a picture: seen on one that nobody sent."""
        from PIL import Image

        height, width = self._process(Image.new("RGB", (8, 8))).shape[-2:]
        patch = self._weights.config.vision_config.patch_size
        grid = (height // patch, width // patch)
        dropped = 1 if self._weights.config.vision_feature_select_strategy == "default" else 0
        return grid, grid[0] * grid[1] + processor.num_additional_image_tokens - dropped

    def _process(self, image: Any) -> Tensor:
        pixels: Tensor = self._image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixels[0]

    def _pixels_of(self, picture: Picture) -> Tensor:
        return self._process(picture.open())

    # ------------------------------------------------------------ rows

    def tokenize(self, text: str, pictures: int) -> tuple[int, ...]:
        """Token ids, each placeholder repeated as often as a picture has tokens."""
        bos = self._tokenizer.bos_token
        bare = bos is not None and text.startswith(bos)  # a template that brought its own
        short = self._tokenizer(text, add_special_tokens=not bare)["input_ids"]
        if short.count(self._image_token) != pictures:
            raise PromptError(
                f"the prompt holds {short.count(self._image_token)} image placeholders for {pictures} "
                "pictures: either its template puts in none, or the text itself contains one"
            )
        return tuple(
            token
            for each in short
            for token in ([each] * self._tokens if each == self._image_token else [each])
        )

    def kind(self, row: Row) -> tuple[object, ...]:
        return (bool(row.pictures), row.steering)

    def prefix(self, row: Row) -> tuple[object, ...]:
        """The tokens up to the first picture's last one and that picture; () if nothing follows them."""
        if not row.pictures or (row.steering is not None and row.steering.whole_prompt):
            return ()
        end = row.tokens.index(self._image_token) + self._tokens
        if end >= len(row.tokens) - row.tail:
            return ()
        return (row.pictures[0].digest, row.tokens[:end])

    def ahead(self, rows: Iterable[Row]) -> None:
        self._pixels.ahead(
            picture for row in rows for picture in row.pictures if picture.digest not in self._features
        )

    def prepare(self, rows: Sequence[Row], layer: int | None = None) -> Inputs:
        """The batch's tensors; what follows goes no further than `layer`, if that is given."""
        require_room([len(row.tokens) for row in rows], self._context)
        features = self._encode(rows)
        prefixes = [self.prefix(row) for row in rows]
        distinct = list(dict.fromkeys(prefixes))
        if len(distinct) == len(rows) or () in distinct:
            ids, mask = self._padded([row.tokens for row in rows])
            pictures = [features[picture.digest] for row in rows for picture in row.pictures]
            return Inputs(ids, mask, extra=_images(pictures))
        firsts = [rows[prefixes.index(prefix)] for prefix in distinct]
        cache, begin_ids, begin_mask = self._begin(firsts, features, layer)
        owners = torch.tensor([distinct.index(prefix) for prefix in prefixes], device=begin_ids.device)
        rest = [row.tokens[len(self._beginning(row)) :] for row in rows]
        rest_ids, rest_mask = self._padded(rest)
        pictures = [features[picture.digest] for row in rows for picture in row.pictures[1:]]
        return Inputs(
            torch.cat([begin_ids[owners], rest_ids], dim=1),
            torch.cat([begin_mask[owners], rest_mask], dim=1),
            cache=_fork(cache, owners),
            cached=begin_ids.shape[1],
            extra=_images(pictures),
        )

    def logits(self, inputs: Inputs, keep: int) -> Tensor:
        logits: Tensor = self._weights(**inputs.rest(), logits_to_keep=keep).logits
        return logits

    def image_tokens(self, inputs: Inputs) -> Tensor:
        return inputs.ids == self._image_token

    def maps(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        """How the last token's heads, averaged, look at the first picture's tokens: fp32 (rows, cols)."""
        layers = {layer for row in rows for layer in row.layers}
        inputs = self.prepare(rows, layer=max(layers))
        tap = taps.RowTap(layers, columns=self._columns(inputs.ids), stop=True)
        with taps.active(tap), taps.stoppable():
            self._weights.model(**inputs.rest(), use_cache=inputs.cache is not None)
        read = {layer: values.cpu().numpy() for layer, values in tap.rows.items()}
        return [
            tuple(
                ImportanceMap(
                    read[layer][place].reshape(self._grid),
                    self._framing.rectangle(row.pictures[0].size),
                )
                for layer in row.layers
            )
            for place, row in enumerate(rows)
        ]

    # ------------------------------------------------------------ tensors

    def _beginning(self, row: Row) -> tuple[int, ...]:
        return row.tokens[: row.tokens.index(self._image_token) + self._tokens]

    def _begin(
        self, rows: Sequence[Row], features: dict[str, Tensor], layer: int | None
    ) -> tuple[Any, Tensor, Tensor]:
        """Run the shared beginnings: their cache (up to `layer`), ids and mask."""
        ids, mask = self._padded([self._beginning(row) for row in rows])
        images = _images([features[row.pictures[0].digest] for row in rows])
        cache = DynamicCache()
        inputs = Inputs(ids, mask, cache=cache, extra=images)
        stop = taps.RowTap(() if layer is None else (layer,), stop=True)
        with taps.active(stop), taps.stoppable():
            self._weights.model(**inputs.rest(), use_cache=True)
        return cache, ids, mask

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = left_pad(rows, self._pad)
        return ids.to(self._weights.device), mask.to(self._weights.device)

    def _columns(self, ids: Tensor) -> Tensor:
        """Where the grid of each row's first picture stands: (B, cells)."""
        cells = self._grid[0] * self._grid[1]
        lead = self._tokens - cells  # a class token, if the tower keeps one
        starts = (ids == self._image_token).int().argmax(dim=1, keepdim=True) + lead
        return starts + torch.arange(cells, device=ids.device)

    def _encode(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """By digest, the features (tokens, hidden) of all pictures of the rows."""
        wanted = {picture.digest: picture for row in rows for picture in row.pictures}
        found = {key: kept for key in wanted if (kept := self._features.get(key)) is not None}
        taken = self._pixels.take(picture for key, picture in wanted.items() if key not in found)
        whole = {key: one for key, one in taken.items() if not isinstance(one, PictureError)}
        if whole:
            pixels = torch.stack(list(whole.values())).to(self._weights.device, self._weights.dtype)
            encoded = self._weights.get_image_features(pixel_values=pixels, return_dict=True)
            for key, features in zip(whole, encoded.pooler_output, strict=True):
                found[key] = features
                self._features.put(key, features)
        broken = {key: one for key, one in taken.items() if isinstance(one, PictureError)}
        require_pictures(rows, broken)
        return found

    def forget(self) -> None:
        """Give the kept features' memory back."""
        self._features.clear()


class _Store:
    """Tensors by name, the least recently used dropped first, so many bytes at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, value: Tensor) -> None:
        self._kept[key] = value.clone()  # not a view that would hold its whole batch
        self._bytes += value.nbytes
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


def _images(features: Sequence[Tensor]) -> dict[str, Any]:
    """The argument by which a forward takes pictures that are encoded already."""
    if not features:
        return {}
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}


def _fork(cache: Any, owners: Tensor) -> Any:
    """A cache whose row r is row `owners[r]` of `cache`. Appending to it leaves `cache` as it is."""
    forked = DynamicCache()
    for layer in cache.layers:
        copy = DynamicLayer()
        copy.dtype, copy.device = layer.dtype, layer.device
        copy.keys, copy.values = layer.keys[owners], layer.values[owners]
        copy.is_initialized = True
        forked.layers.append(copy)
    return forked
