"""A family whose layout is known: where its image tokens stand, what they show, and how to spare work.

`Layout` runs rows for any such family; a subclass, one file per family, says what a picture becomes. What
is shared by all: a picture passes the vision tower once, rows that begin with the same picture share the
keys and values of that beginning (across waves too, if one was told to keep it), rows of very different
lengths run apart until their last tokens, a map's forward ends at its layer, and a map of an answer's own
prompt is read in passing. Knows transformers' calling conventions.
Must not know requests, templates or methods.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adapters._hf_prompts import PromptError
from adapters._hf_rows import (
    Inputs,
    Pixels,
    Read,
    Row,
    Tokens,
    left_pad,
    pad_token,
    require_pictures,
    require_room,
)
from harness import taps
from harness.errors import PictureError
from harness.pictures import Picture
from harness.types import Box, Capability, ImportanceMap, Json

FEATURE_BYTES = 1 << 30
"""Image features kept: 218 pictures of LLaVA-1.5-7B in half precision, 14,000 of the demo model."""
CPU_BEGINNINGS = 2 << 30
"""Keys and values of beginnings kept on a CPU; a GPU keeps a quarter of what it has free at first."""

ROOM = 512
"""Tokens for which a cache has room at first."""
PADDING = 256
"""Columns of padding that are dearer than another forward."""

Features = tuple[Tensor, ...]
"""What a picture becomes: its tokens' embeddings (N, hidden), and whatever else a family needs of it."""


@dataclass(frozen=True, eq=False)
class View:
    """A grid of one picture's tokens.

    cells: int (rows, cols), how many tokens after the picture's first one each cell stands, row 0 at the
    top. rectangle: the pixels of the original picture that the grid covers.
    """

    cells: npt.NDArray[np.int64]
    rectangle: Box


@dataclass(frozen=True, eq=False)
class Span:
    """What a picture becomes in a row: tokens in its placeholder's place, and views, the finest first."""

    tokens: tuple[int, ...]
    views: tuple[View, ...]


class Layout:
    """Rows of `weights` for one family. Its methods fall in two: what a family says, and what all do.

    image_token: the id of the tokens that pictures replace. placeholder: the id that stands for one
    whole picture in a tokenized prompt.
    """

    offers: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LIKELIHOOD, Capability.ATTENTION, Capability.GRADIENT, Capability.STEERING}
    )
    """What the family is able to do with the "fovea" kernel."""

    attention: ClassVar[dict[str, str]] = {"text_config": taps.KERNEL, "vision_config": "sdpa"}
    """Attention kernels by part, when taps are wanted."""

    causal: ClassVar[bool] = True
    """Whether a prompt's token sees only what is before it: then beginnings can be shared."""

    masked: ClassVar[bool] = False
    """Whether some tokens see what comes after them, which flash attention cannot do."""

    limited: ClassVar[bool] = False
    """Whether a picture keeps its own size between limits, the upper of which is a knob."""

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        self.weights = weights
        self.decoder = weights  # what runs over tokens: a family may run its pictures by itself
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.context = context
        self.image_token = int(weights.config.image_token_id)
        self.placeholder = self.image_token
        self._pad = pad_token(self.tokenizer)
        self._features = _Store(FEATURE_BYTES)
        self._beginnings = _Beginnings(weights)
        self._pixels: Pixels[Any] = Pixels(self.pixels)

    # ------------------------------------------------------------ what a family says

    def span(self, size: tuple[int, int]) -> Span:
        """What a picture of `size` (width, height) becomes."""
        raise NotImplementedError

    def pixels(self, picture: Picture) -> Any:
        """A picture as its image processor prepares it. Runs on several threads. Raises `PictureError`."""
        raise NotImplementedError

    def encode(self, pixels: Sequence[Any]) -> list[Features]:
        """What pictures become, from their prepared pixels. Must be differentiable by them."""
        raise NotImplementedError

    def plane(self, gradient: Any, picture: Picture) -> ImportanceMap:
        """The gradient's L2 norm over the channels at each pixel that the model sees of a picture.

        gradient: by what `pixels` gave for it.
        """
        raise NotImplementedError

    def handed(self, features: Sequence[Features]) -> dict[str, Any]:
        """The argument by which a forward takes pictures that are encoded already, in prompt order."""
        encoded = BaseModelOutputWithPooling(pooler_output=[tokens for tokens, *_ in features])
        return {"mm_encoder_outputs": {"image": encoded}}

    def positions(self, rows: Sequence[Row], ids: Tensor, mask: Tensor) -> Tensor | None:
        """Positions of whole, left-padded rows, as `Inputs.positions`; None counts the tokens."""
        return None

    def along(self, ids: Tensor) -> dict[str, Tensor]:
        """What else a forward wants beside each token, (B, L) by argument."""
        return {}

    # ------------------------------------------------------------ rows

    def tokenize(self, text: str, pictures: Sequence[Picture]) -> Tokens:
        """Token ids, each placeholder replaced by what its picture becomes."""
        bos = self.tokenizer.bos_token
        bare = bos is not None and text.startswith(bos)  # a template that brought its own
        short = self.tokenizer(text, add_special_tokens=not bare)["input_ids"]
        found = short.count(self.placeholder)
        if found != len(pictures):
            raise PromptError(
                f"the prompt holds {found} image placeholders {self.tokenizer.decode([self.placeholder])!r} "
                f"for {len(pictures)} pictures: either its template puts in none (use template=plain), "
                "or the text itself contains one (reword it)"
            )
        return self._expanded(short, pictures)

    def _expanded(self, short: Sequence[int], pictures: Sequence[Picture]) -> Tokens:
        spans = iter([self.span(picture.size).tokens for picture in pictures])
        ids: list[int] = []
        starts = []
        for token in short:
            if token == self.placeholder:
                starts.append(len(ids))
                ids += next(spans)
            else:
                ids.append(token)
        return Tokens(tuple(ids), tuple(starts))

    def kind(self, row: Row) -> tuple[object, ...]:
        return (bool(row.pictures), row.steering, *sorted({read.kind for read in row.reads}))

    def prefix(self, row: Row) -> tuple[object, ...]:
        """The tokens up to the first picture's last one and that picture; () if they cannot be shared."""
        if not (row.pictures and self.causal) or (row.steering is not None and row.steering.whole_prompt):
            return ()
        begin = self._beginning(row)
        if len(begin) >= len(row.tokens) - row.tail:
            return ()  # nothing follows
        return (row.pictures[0].digest, begin)

    def _beginning(self, row: Row) -> tuple[int, ...]:
        return row.tokens[: row.starts[0] + len(self.span(row.pictures[0].size).tokens)]

    def ahead(self, rows: Iterable[Row]) -> None:
        self._pixels.ahead(
            picture for row in rows for picture in row.pictures if picture.digest not in self._features
        )

    def prepare(self, rows: Sequence[Row], layer: int | None = None) -> Inputs:
        """The batch's tensors; what follows goes no further than `layer`, if that is given."""
        require_room([len(row.tokens) for row in rows], self.context)
        features = self._encoded(rows)
        firsts = self._beginnings_of(rows, features, layer)
        done = [len(first.tokens) if first is not None else 0 for first in firsts]
        groups = [list(range(len(rows)))]
        if layer is None and all(map(self._parts, rows)):
            groups = alike([len(row.tokens) - begun for row, begun in zip(rows, done, strict=True)])
        batches = [
            self._batch([rows[at] for at in places], [firsts[at] for at in places], features)
            for places in groups
        ]
        return batches[0] if len(batches) == 1 else self._joined(rows, groups, batches)

    def _beginnings_of(
        self, rows: Sequence[Row], features: dict[str, Features], layer: int | None
    ) -> list[_Beginning | None]:
        """Each row's beginning where rows share it, or another list of requests will; otherwise None."""
        keys = [self.prefix(row) for row in rows]
        distinct = list(dict.fromkeys(keys))
        kept = [row.keep and self._beginnings.has_room(len(self._beginning(row))) for row in rows]
        worth = len(distinct) < len(rows) or any(kept) or any(key in self._beginnings for key in distinct)
        if () in distinct or not worth:
            return [None] * len(rows)
        firsts = [rows[keys.index(key)] for key in distinct]
        begun = self._begin(firsts, distinct, features, None if any(kept) else layer)
        for key, keep in zip(keys, kept, strict=True):
            if keep:
                self._beginnings.put(key, begun[key])
        return [begun[key] for key in keys]

    def _batch(
        self, rows: Sequence[Row], firsts: Sequence[_Beginning | None], features: dict[str, Features]
    ) -> Inputs:
        begun = [first for first in firsts if first is not None]
        return self._continued(rows, begun, features) if begun else self._from_scratch(rows, features)

    def _parts(self, row: Row) -> bool:
        """Whether a prompt may run in two forwards, all but its last token in the first."""
        whole = row.steering is not None and row.steering.whole_prompt
        return self.causal and not (
            self.masked or whole or row.tail or row.tokens[-1:] == (self.image_token,)
        )

    def _joined(
        self, rows: Sequence[Row], groups: Sequence[Sequence[int]], batches: Sequence[Inputs]
    ) -> Inputs:
        """Groups of rows that run each by itself, but for the last tokens, which go on side by side."""
        ended: dict[int, _Beginning] = {}
        for places, inputs in zip(groups, batches, strict=True):
            begin = replace(inputs, cache=inputs.cache or DynamicCache()).before_last()
            self._fill(begin)
            for number, place in enumerate(places):
                ended[place] = _Beginning.of(begin.cache, number, rows[place].tokens[:-1], begin.mask[number])
        return self._continued(rows, [ended[place] for place in range(len(rows))], None)

    def _from_scratch(self, rows: Sequence[Row], features: dict[str, Features]) -> Inputs:
        ids, mask = self._padded([row.tokens for row in rows])
        pictures = [features[picture.digest] for row in rows for picture in row.pictures]
        steered = any(row.steering is not None for row in rows)
        return Inputs(
            ids,
            mask,
            cache=DynamicCache() if steered else None,  # one that keeps what slides out of a window
            positions=self.positions(rows, ids, mask),
            along=self.along(ids),
            extra=self.handed(pictures) if pictures else {},
            starts=_starts(rows, [ids.shape[1] - len(row.tokens) for row in rows]),
        )

    def _begin(
        self,
        rows: Sequence[Row],
        keys: Sequence[tuple[object, ...]],
        features: dict[str, Features],
        layer: int | None,
    ) -> dict[tuple[object, ...], _Beginning]:
        """By key, the beginnings of rows: kept ones, or run now in one forward (up to `layer`).

        Nothing but keys and values is wanted, so what comes after the last layer's is never computed.
        """
        begun = {key: kept for key in keys if (kept := self._beginnings.take(key)) is not None}
        new = [(key, row) for key, row in zip(keys, rows, strict=True) if key not in begun]
        if not new:
            return begun
        texts = [self._beginning(row) for _, row in new]
        ids, mask = self._padded(texts)
        cache = DynamicCache()
        inputs = Inputs(
            ids,
            mask,
            cache=cache,
            positions=self._positions_of([row for _, row in new], texts, ids, mask),
            along=self.along(ids),
            extra=self.handed([features[row.pictures[0].digest] for _, row in new]),
        )
        self._fill(inputs, layer)
        for place, ((key, _), text) in enumerate(zip(new, texts, strict=True)):
            begun[key] = _Beginning.of(cache, place, text, mask[place])
        return begun

    def _fill(self, inputs: Inputs, layer: int | None = None) -> None:
        """A forward for its keys and values alone, up to those of `layer` (None: the last one)."""
        last = self.weights.config.get_text_config().num_hidden_layers - 1
        with taps.active(taps.StopTap(last if layer is None else layer)), taps.stoppable():
            self.decoder.model(**inputs.rest(), use_cache=True)

    def _positions_of(
        self, rows: Sequence[Row], texts: Sequence[tuple[int, ...]], ids: Tensor, mask: Tensor
    ) -> Tensor | None:
        cut = [
            Row(row.text, text, row.starts[:1], row.pictures[:1])
            for row, text in zip(rows, texts, strict=True)
        ]
        return self.positions(cut, ids, mask)

    def _continued(
        self, rows: Sequence[Row], first: Sequence[_Beginning], features: dict[str, Features] | None
    ) -> Inputs:
        """Rows whose beginnings are there already: [padding, beginning, padding, rest].

        features: of the pictures after each row's first; None where no rest has any.
        """
        begin_ids, begin_mask = self._padded([one.tokens for one in first])
        rest_ids, rest_mask = self._padded(
            [row.tokens[len(one.tokens) :] for row, one in zip(rows, first, strict=True)]
        )
        ids, mask = torch.cat([begin_ids, rest_ids], dim=1), torch.cat([begin_mask, rest_mask], dim=1)
        positions = self.positions(rows, *self._padded([row.tokens for row in rows]))
        pictures = (
            [features[picture.digest] for row in rows for picture in row.pictures[1:]] if features else []
        )
        return Inputs(
            ids,
            mask,
            cache=_gathered(first, max(map(_room, rows))),
            cached=begin_ids.shape[1],
            positions=None if positions is None else _spread(positions, mask),
            along=self.along(ids),
            extra=self.handed(pictures) if pictures else {},
            starts=_starts(rows, [begin_ids.shape[1] - len(one.tokens) for one in first]),
        )

    def logits(self, inputs: Inputs, keep: int) -> Tensor:
        logits: Tensor = self.decoder(**inputs.rest(), logits_to_keep=keep).logits
        return logits

    def image_tokens(self, inputs: Inputs) -> Tensor:
        return inputs.ids == self.image_token

    def place(self, picture: Picture) -> dict[str, Json]:
        """Of a picture's finest view: its grid (rows, columns), rectangle, first image token and image tokens
        per row. Tags between them do not count."""
        span = self.span(picture.size)
        view = span.views[0]
        cells = (np.cumsum(np.array(span.tokens) == self.image_token) - 1)[view.cells]
        rows, columns = cells.shape
        first = int(cells[0, 0])
        stride = int(cells[1, 0]) - first if rows > 1 else columns
        if (cells != first + stride * np.arange(rows)[:, None] + np.arange(columns)).any():
            return {}
        return {
            "grid": [rows, columns],
            "rectangle": list(view.rectangle),
            "first": first,
            "stride": stride,
        }

    # ------------------------------------------------------------ maps

    def maps(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        """The maps of rows over their first pictures, each row's in the order of its reads."""
        kinds = {read.kind for row in rows for read in row.reads}
        found: dict[str, list[tuple[ImportanceMap, ...]]] = {}
        if "attention" in kinds:
            inputs = self.prepare(rows, layer=max(_layers(rows, "attention")))
            reading = self.reading(rows, inputs, stop=True)
            with taps.active(reading.tap), taps.stoppable():
                self._to_the_top(inputs)
            found["attention"] = reading.maps()
        if "gradient" in kinds:
            found["gradient"] = self._gradients(rows)
        if "pixels" in kinds:
            require_room([len(row.tokens) for row in rows], self.context)
            self._encoded(rows)  # a row whose picture is broken is told apart before any runs
            found["pixels"] = [
                tuple(self._pixel_gradient(row) for read in row.reads if read.kind == "pixels")
                for row in rows
            ]
        return [
            _in_order(row.reads, {kind: maps[place] for kind, maps in found.items()})
            for place, row in enumerate(rows)
        ]

    def reading(self, rows: Sequence[Row], inputs: Inputs, *, stop: bool = False) -> AttentionReading:
        return AttentionReading(self, rows, inputs, stop)

    def _to_the_top(self, inputs: Inputs) -> None:
        """A forward without logits."""
        self.decoder.model(**inputs.rest(), use_cache=inputs.cache is not None)

    def _gradients(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        """mean over heads of a * relu(dv/da), where v = log p of the likeliest next token.

        Nothing but the last token depends on the last row of attention, so all before it runs without a
        graph, and the graph is one token wide (not where a prompt's tokens see what comes after them).
        """
        layers = _layers(rows, "gradient")
        inputs = self.prepare(rows)
        if self.causal and inputs.ids.shape[1] - inputs.cached > 1:
            inputs = replace(inputs, cache=inputs.cache or DynamicCache())
            self._fill(inputs.before_last())
            inputs = replace(inputs, cached=inputs.ids.shape[1] - 1, extra={})
        tap = taps.GradientTap(layers)
        with torch.enable_grad(), taps.active(tap):
            chances = torch.log_softmax(self.logits(inputs, keep=1)[:, -1].float(), dim=-1)
            best = chances.max(dim=-1).values.sum()  # rows do not see each other
            gradients = torch.autograd.grad(best, [tap.zeros[layer] for layer in layers])
        weighted = {
            layer: (tap.rows[layer] * gradient.clamp(min=0)).mean(dim=1).cpu().numpy()
            for layer, gradient in zip(layers, gradients, strict=True)
        }
        return self.laid_out(rows, inputs, weighted, "gradient")

    def _pixel_gradient(self, row: Row) -> ImportanceMap:
        """How log p of the likeliest next token changes with the first picture's pixels."""
        features = self._encoded([row])
        first = row.pictures[0]
        with torch.enable_grad():
            leaf = self.differentiable(self.pixels(first))
            [encoded] = self.encode([leaf])
            inputs = self._from_scratch([row], {**features, first.digest: encoded})
            chances = torch.log_softmax(self.logits(inputs, keep=1)[:, -1].float(), dim=-1)
            [gradient] = torch.autograd.grad(chances.max(), [self.leaf(leaf)])
        return self.plane(gradient, first)

    def differentiable(self, pixels: Any) -> Any:
        """What `pixels` gave, its tensor on the model's device and part of a graph."""
        moved = pixels.to(self.weights.device, self.weights.dtype, copy=True)
        return moved.requires_grad_()

    def leaf(self, pixels: Any) -> Tensor:
        """The tensor among what `differentiable` gave."""
        tensor: Tensor = pixels
        return tensor

    def laid_out(
        self, rows: Sequence[Row], inputs: Inputs, read: dict[int, npt.NDArray[np.float32]], kind: str
    ) -> list[tuple[ImportanceMap, ...]]:
        """Maps of a kind, from values (B, L) by layer."""
        return [
            tuple(
                merged(
                    self.span(row.pictures[0].size).views,
                    np.mean([read[layer][place, start:] for layer in want.layers], axis=0),
                )
                for want in row.reads
                if want.kind == kind
            )
            for place, (row, start) in enumerate(zip(rows, inputs.starts, strict=True))
        ]

    # ------------------------------------------------------------ tensors

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = left_pad(rows, self._pad)
        return ids.to(self.weights.device), mask.to(self.weights.device)

    def _encoded(self, rows: Sequence[Row]) -> dict[str, Features]:
        """By digest, the features of all pictures of the rows."""
        wanted = {picture.digest: picture for row in rows for picture in row.pictures}
        found = {key: kept for key in wanted if (kept := self._features.get(key)) is not None}
        taken = self._pixels.take(picture for key, picture in wanted.items() if key not in found)
        whole = {key: one for key, one in taken.items() if not isinstance(one, PictureError)}
        if whole:
            for key, features in zip(whole, self.encode(list(whole.values())), strict=True):
                found[key] = features
                self._features.put(key, features)
        broken = {key: one for key, one in taken.items() if isinstance(one, PictureError)}
        require_pictures(rows, broken)
        return found

    def forget(self) -> None:
        """Give the memory of kept features and beginnings back."""
        self._features.clear()
        self._beginnings.clear()

    def turn(self) -> None:
        """A new list of requests begins: beginnings that the last one did not use will not be used."""
        self._beginnings.turn()


class AttentionReading:
    """Reads the attention that the last token of each row pays to its first picture."""

    def __init__(self, layout: Layout, rows: Sequence[Row], inputs: Inputs, stop: bool) -> None:
        self._layout = layout
        self._rows = rows
        self._inputs = inputs
        self.tap = taps.RowTap(_layers(rows, "attention"), stop=stop)

    def maps(self) -> list[tuple[ImportanceMap, ...]]:
        read = {layer: values.cpu().numpy() for layer, values in self.tap.rows.items()}
        return self._layout.laid_out(self._rows, self._inputs, read, "attention")


def merged(views: Sequence[View], values: npt.NDArray[np.floating[Any]]) -> ImportanceMap:
    """One map of several views of a picture: on the finest grid, the others' cells shared out by area.

    values: (N,), by tokens after the picture's first one. Where no view overlaps another this is the
    finest view's own; sums are kept, but for what a coarser view shows beyond the finest one's rectangle.

    >>> left_half = View(np.array([[0, 1]]), (0.0, 0.0, 2.0, 1.0))
    >>> merged([left_half, View(np.array([[2]]), (0.0, 0.0, 4.0, 1.0))], np.float32([5, 7, 8])).values
    array([[7., 9.]], dtype=float32)
    """
    finest = views[0]
    total = values[finest.cells].astype(np.float64)
    for view in views[1:]:
        down = _overlap(finest, view, 1)
        across = _overlap(finest, view, 0)
        total += down @ values[view.cells].astype(np.float64) @ across.T
    return ImportanceMap(total.astype(np.float32), finest.rectangle)


def _overlap(fine: View, coarse: View, axis: int) -> npt.NDArray[np.float64]:
    """(fine cells, coarse cells) along x (axis 0) or y (1): the part of a coarse cell in a fine one."""
    edges = [
        np.linspace(view.rectangle[axis], view.rectangle[axis + 2], view.cells.shape[1 - axis] + 1)
        for view in (fine, coarse)
    ]
    low = np.maximum(edges[0][:-1, None], edges[1][None, :-1])
    high = np.minimum(edges[0][1:, None], edges[1][None, 1:])
    shared: npt.NDArray[np.float64] = (high - low).clip(min=0) / np.diff(edges[1])
    return shared


def sliding_gap(config: Any) -> str:
    """For `gap`: a decoder whose tokens do not attend to everything before them; empty if they do."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    slides = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
    if slides or kinds - {"full_attention"}:
        return f"this {config.model_type}'s decoder does not attend to everything before a token"
    return ""


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True, eq=False)
class _Beginning:
    """A row's first tokens, with the keys and values of each layer that ran: (kv heads, L, dim)."""

    tokens: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, cache: Any, place: int, tokens: tuple[int, ...], mask: Tensor) -> _Beginning:
        """Row `place` of a cache, without its padding. mask: (L,), that row's."""
        seen: Any = mask.bool()
        if seen[-len(tokens) :].all():
            seen = slice(-len(tokens), None)  # a view
        return cls(
            tokens,
            tuple((layer.keys[place, :, seen], layer.values[place, :, seen]) for layer in cache.layers),
        )


class _Beginnings:
    """Beginnings that a later list of requests is going to use, so many bytes at most.

    What does not fit is not kept (dropping the oldest would drop each just before its turn). A beginning
    is handed out once, and forgotten when the list after the next one begins.
    """

    def __init__(self, weights: Any) -> None:
        text = weights.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = torch.empty((), dtype=weights.dtype).element_size()
        self._per_token = 2 * text.num_hidden_layers * heads * dim * size
        self._limit = CPU_BEGINNINGS
        if weights.device.type == "cuda":
            self._limit = torch.cuda.mem_get_info(weights.device)[0] // 4
        self._bytes = 0
        self._turn = 0
        self._kept: dict[tuple[object, ...], tuple[int, _Beginning]] = {}

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return key in self._kept

    def has_room(self, tokens: int) -> bool:
        return bool(self._bytes + tokens * self._per_token <= self._limit)

    def put(self, key: tuple[object, ...], begun: _Beginning) -> None:
        if key in self._kept or not self.has_room(len(begun.tokens)):
            return
        self._bytes += len(begun.tokens) * self._per_token
        own = tuple((_own(keys), _own(values)) for keys, values in begun.layers)
        self._kept[key] = (self._turn, _Beginning(begun.tokens, own))

    def take(self, key: tuple[object, ...]) -> _Beginning | None:
        if key not in self._kept:
            return None
        _, begun = self._kept.pop(key)
        self._bytes -= len(begun.tokens) * self._per_token
        return begun

    def turn(self) -> None:
        self._turn += 1
        for key in [key for key, (turn, _) in self._kept.items() if turn < self._turn - 1]:
            self.take(key)

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


class _Store:
    """Features by name, the least recently used dropped first, so many bytes at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[str, Features] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> Features | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, value: Features) -> None:
        self._kept[key] = tuple(_own(one) for one in value)
        self._bytes += sum(one.nbytes for one in value)
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= sum(one.nbytes for one in dropped)

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


# ---------------------------------------------------------------- small parts


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows that may be padded to one length: groups with at most `PADDING` columns of it each.

    >>> alike([600, 30, 610, 35])
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    spare = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups:
            spare -= lengths[groups[-1][0]] - lengths[place]
        if not groups or spare < 0:
            groups.append([])
            spare = PADDING
        groups[-1].append(place)
    return [sorted(group) for group in groups]


def _own(tensor: Tensor) -> Tensor:
    """Not a view that would hold the memory of its batch."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _layers(rows: Sequence[Row], kind: str) -> list[int]:
    return sorted({layer for row in rows for read in row.reads if read.kind == kind for layer in read.layers})


def _in_order(reads: Sequence[Read], maps: dict[str, tuple[ImportanceMap, ...]]) -> tuple[ImportanceMap, ...]:
    """One map per read, from the maps of each kind in their order."""
    left = {kind: iter(found) for kind, found in maps.items()}
    return tuple(next(left[read.kind]) for read in reads)


def _starts(rows: Sequence[Row], padding: Sequence[int]) -> tuple[int, ...]:
    return tuple(pad + row.starts[0] if row.starts else 0 for row, pad in zip(rows, padding, strict=True))


def _spread(positions: Tensor, mask: Tensor) -> Tensor:
    """Positions (..., B, L) of left-padded rows, moved to where `mask` (B, M), M >= L, has its tokens."""
    spread = positions.new_zeros((*positions.shape[:-1], mask.shape[1]))
    for row, seen in enumerate(mask.bool()):
        length = int(seen.sum())
        spread[..., row, seen] = positions[..., row, positions.shape[-1] - length :]
    return spread


def _room(row: Row) -> int:
    """How many tokens a row is going to add to its cache, one by one."""
    return 0 if row.tail else min(row.decoding.max_tokens, ROOM)


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values with room for more, so that a token is added without a copy of all before it.

    What it hands out are views, (B, kv heads, L, dim), of a longer tensor.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._spaces: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        length = self.keys.shape[-2]
        total = length + key_states.shape[-2]
        if not self._spaces or total > self._spaces[0].shape[-2]:
            known = (self.keys, self.values)
            self._spaces = [
                one.new_empty((*one.shape[:2], total + self._room, one.shape[-1])) for one in known
            ]
            for space, one in zip(self._spaces, known, strict=True):
                space[:, :, :length] = one
        for space, new in zip(self._spaces, (key_states, value_states), strict=True):
            space[:, :, length:total] = new
        self.keys, self.values = (space[:, :, :total] for space in self._spaces)
        return self.keys, self.values


def _gathered(beginnings: Sequence[_Beginning], room: int) -> Any:
    """A cache with one row per beginning, padded on the left. Appending to it changes no beginning.

    It is as deep as the shallowest of them: what runs on it stops there. room: for tokens to come.
    """
    longest = max(len(one.tokens) for one in beginnings)
    cache = DynamicCache()
    for pairs in zip(*(one.layers for one in beginnings), strict=False):
        layer = _Roomy(room) if room else DynamicLayer()
        layer.keys, layer.values = (_stacked(tensors, longest) for tensors in zip(*pairs, strict=True))
        layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache


def _stacked(tensors: Sequence[Tensor], longest: int) -> Tensor:
    """(B, kv heads, longest, dim) of (kv heads, L, dim), zeros on the left; a view where all are one."""
    if all(one is tensors[0] for one in tensors):
        return tensors[0].expand(len(tensors), -1, -1, -1)
    if all(one.shape[1] == longest for one in tensors):
        return torch.stack(list(tensors))
    heads, _, dim = tensors[0].shape
    stacked = tensors[0].new_zeros((len(tensors), heads, longest, dim))
    for place, one in enumerate(tensors):
        stacked[place, :, longest - one.shape[1] :] = one
    return stacked
