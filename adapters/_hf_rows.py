"""What passes between a wave and a family of models: rows, tensors, and rows that do not fit.

Values only. They know pictures and tensors, and nothing of requests, templates or architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from harness.errors import PictureError
from harness.pictures import Picture
from harness.taps import Steering, Tap
from harness.types import Decoding, Failure, ImportanceMap, Json

T = TypeVar("T")


class Tokens(NamedTuple):
    """A text's token ids, and where each picture's part begins among them (in prompt order)."""

    ids: tuple[int, ...]
    starts: tuple[int, ...] = ()


class Read(NamedTuple):
    """One importance map that is wanted: its kind and the decoder layers whose mean it is."""

    kind: Literal["attention", "gradient", "pixels"]
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence for the model: a prompt, or a prompt with an option behind it.

    text: as rendered. tokens: of the text; where the layout is known, with all tokens that a picture
    becomes, otherwise with the placeholders of the text. starts: where each picture's tokens begin.
    pictures: in prompt order. tail: how many tokens at the end belong to the option. seed: of the row's
    sampler. reads: the maps wanted. keep: another row with this beginning will follow. steering: of its
    generation. prompt: the text without an option behind it.
    """

    text: str
    tokens: tuple[int, ...]
    starts: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tail: int = 0
    decoding: Decoding = Decoding()
    seed: int = 0
    reads: tuple[Read, ...] = ()
    keep: bool = False
    steering: Steering | None = None
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch as the model takes it. B rows, L tokens, padded on the left.

    ids: (B, L). mask: (B, L), 1 where a token counts. cache: keys and values of the first `cached`
    columns, or None. positions: (B, L), or (N, B, L) where a family counts in N ways; None counts the
    mask. along: what else goes with each token, (B, L) by argument. extra: what the pictures of the
    columns that are not cached become (pixels, or their features). starts: the column at which each
    row's first picture begins.
    """

    ids: Tensor
    mask: Tensor
    cache: Any = None
    cached: int = 0
    positions: Tensor | None = None
    along: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    starts: tuple[int, ...] = ()

    def whole(self) -> dict[str, Any]:
        """Arguments of `generate`, which skips the cached columns by itself."""
        cache = {} if self.cache is None else {"past_key_values": self.cache}
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            **positions,
            **cache,
            **self.along,
            **self.extra,
        }

    def rest(self) -> dict[str, Any]:
        """Arguments of a forward over the columns that are not cached."""
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0) if self.positions is None else self.positions
        return {
            "input_ids": self.ids[:, self.cached :],
            "attention_mask": self.mask,
            "position_ids": positions[..., self.cached :],
            "past_key_values": self.cache,
            **{name: values[:, self.cached :] for name, values in self.along.items()},
            **self.extra,
        }

    def before_last(self) -> Inputs:
        """Without the last column."""
        return replace(
            self,
            ids=self.ids[:, :-1],
            mask=self.mask[:, :-1],
            positions=None if self.positions is None else self.positions[..., :-1],
            along={name: values[:, :-1] for name, values in self.along.items()},
        )


class Unfit(Exception):
    """Some rows of a batch cannot run; `failures` maps their place in it to the reason."""

    def __init__(self, failures: dict[int, Failure]) -> None:
        super().__init__(f"{len(failures)} rows do not fit")
        self.failures = failures


class Family(Protocol):
    """How one architecture takes rows. decoder: the part of the weights that generates from inputs."""

    decoder: Any

    def tokenize(self, text: str, pictures: Sequence[Picture]) -> Tokens:
        """A text's tokens. Raises `PromptError` if the placeholders do not match, or `PictureError`."""

    def kind(self, row: Row) -> tuple[object, ...]:
        """Rows of different kinds do not go into one batch."""

    def prefix(self, row: Row) -> tuple[object, ...]:
        """Rows with equal prefixes are cheaper in one batch."""

    def ahead(self, rows: Iterable[Row]) -> None:
        """Begin to decode the pictures of rows that are about to be prepared."""

    def prepare(self, rows: Sequence[Row]) -> Inputs:
        """A batch's tensors. Raises `Unfit` if some rows cannot run."""

    def logits(self, inputs: Inputs, keep: int) -> Tensor:
        """Of the last `keep` positions: (B, keep, vocabulary)."""

    def maps(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        """The maps that each row wants, all of the same kinds. Raises `Unfit` as `prepare` does."""

    def reading(self, rows: Sequence[Row], inputs: Inputs) -> Reading:
        """What reads the rows' attention maps while `inputs` runs."""

    def image_tokens(self, inputs: Inputs) -> Tensor:
        """Where a batch's image tokens stand: bool (B, L). Raises `CapabilityError` if not known."""

    def place(self, picture: Picture) -> dict[str, Json]:
        """How a picture's tokens lie in it, for traces: see `harness.traces.trace_arrays`."""

    def forget(self) -> None:
        """Give back the memory of what was kept for later batches."""

    def turn(self) -> None:
        """A new list of requests begins."""


class Reading(Protocol):
    """Reads attention maps in passing: a tap for the forward, and afterwards the maps."""

    @property
    def tap(self) -> Tap: ...

    def maps(self) -> list[tuple[ImportanceMap, ...]]: ...


class Pixels(Generic[T]):
    """Decodes pictures on a few threads, at most one batch ahead. `make` turns one into what is kept."""

    def __init__(self, make: Callable[[Picture], T], workers: int = 4) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fovea-pictures")
        self._begun: dict[str, Future[T]] = {}

    def ahead(self, pictures: Iterable[Picture]) -> None:
        for picture in pictures:
            if picture.digest not in self._begun:
                self._begun[picture.digest] = self._pool.submit(self._make, picture)

    def take(self, pictures: Iterable[Picture]) -> dict[str, T | PictureError]:
        """By digest, each picture or the reason why there is none."""
        wanted = {picture.digest: picture for picture in pictures}
        self.ahead(wanted.values())
        taken: dict[str, T | PictureError] = {}
        for key in wanted:
            try:
                taken[key] = self._begun.pop(key).result()
            except PictureError as error:
                taken[key] = error
        return taken


def require_pictures(rows: Sequence[Row], broken: dict[str, PictureError]) -> None:
    """Raise `Unfit` for the rows that hold a broken picture."""
    failures = {
        place: Failure(broken[picture.digest].kind, str(broken[picture.digest]))
        for place, row in enumerate(rows)
        for picture in reversed(row.pictures)
        if picture.digest in broken
    }
    if failures:
        raise Unfit(failures)


def require_room(lengths: Sequence[int], context: int | None) -> None:
    """Raise `Unfit` for the rows that are longer than the model's context."""
    failures = {
        place: Failure(
            "too_long",
            f"the prompt has {length} tokens, the model's context {context}; shorten the question, show "
            "fewer or smaller pictures, or use a model with a longer context",
        )
        for place, length in enumerate(lengths)
        if context is not None and length > context
    }
    if failures:
        raise Unfit(failures)


def pad_token(tokenizer: Any) -> int:
    """What fills the left of a shorter row; the mask hides it, so any token will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def left_pad(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (B, longest), padded on the left.

    >>> ids, mask = left_pad([[5], [6, 7]], pad=0)
    >>> ids.tolist(), mask.tolist()
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        if row:
            ids[place, -len(row) :] = torch.tensor(row)
            mask[place, -len(row) :] = 1
    return ids, mask
