"""Pictures and texts of a pool as tensors: cropping, WordPiece, augmentation, and the loader that trains on
them.

Knows pixels, basic tokens and their pieces, and how an epoch is ordered. Must not know: the model, the loss,
which benchmark it is. What LAPS and SEPS do to their data (CrossmodalGroup/LAPS: lib/image_caption.py), but
for two things: a damaged picture is an error here, not half a picture; and a text longer than its tower can
read is cut.

Nothing here has a state: the order of an epoch follows from (seed, epoch), and what is done to a pair from
(seed, epoch, index), however many workers load it, so that a training that was stopped goes on as if it had
not been.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.errors import DataError, ModelError, PictureError
from harness.pictures import Picture

if TYPE_CHECKING:
    from PIL import Image

Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, for every backbone."""

SCALE, RATIO = (0.6, 1.0), (3 / 4, 4 / 3)
"""Share of a picture's area, and width by height, of a training crop."""

ALTERED, MASKED, REPLACED = 0.2, 0.5, 0.6
"""Of basic tokens a fifth is altered: half of these are masked, a tenth is replaced, the others are
deleted."""

ORDER, PAIR = 1, 2  # streams of random numbers: of an epoch's order, of one pair


# ---------------------------------------------------------------- pixels


def crop_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A training crop (x1, y1, x2, y2) of a picture of (width, height): of `SCALE` of its area and of a shape
    within `RATIO`; after ten that do not fit, the largest centred one of such a shape (torchvision:
    RandomResizedCrop)."""
    width, height = size
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return (x, y, x + w, y + h)
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    x, y = (width - w) // 2, (height - h) // 2
    return (x, y, x + w, y + h)


def training_pixels(image: Image.Image, side: int, rng: np.random.Generator) -> Bytes:
    """A random crop, resized (bicubic), flipped half of the time: (side, side, 3)."""
    from PIL import Image

    crop = image.crop(crop_box(image.size, rng)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def evaluation_pixels(image: Image.Image, side: int) -> Bytes:
    """The whole picture, resized (bicubic) to a square whatever its shape: (side, side, 3)."""
    from PIL import Image

    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def normalised(pixels: Tensor) -> Tensor:
    """Bytes (B, side, side, 3) -> float32 (B, 3, side, side), by ImageNet's mean and deviation."""
    scale = pixels.new_tensor(STD, dtype=torch.float32) * 255
    mean = pixels.new_tensor(MEAN, dtype=torch.float32) * 255
    return ((pixels.float() - mean) / scale).permute(0, 3, 1, 2).contiguous()


def reduced(image: Image.Image, side: int) -> Image.Image:
    """A picture whose shorter side is at most 2 * side, its shape kept: what a training keeps in memory."""
    from PIL import Image

    factor = 2 * side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


# ---------------------------------------------------------------- texts


@dataclass(frozen=True)
class Packed:
    """Many texts as pieces. pieces: vocabulary ids of all, one text after the other; words: which basic token
    of its text each piece belongs to; starts (texts + 1,): where each text begins."""

    pieces: Ids
    words: Ids
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, text: int) -> tuple[Ids, Ids]:
        """(pieces, words) of one text."""
        part = slice(self.starts[text], self.starts[text + 1])
        return self.pieces[part], self.words[part]


class Vocabulary:
    """WordPiece as BERT uses it: a basic tokeniser cuts words and signs, each becomes one piece or more.

    What a text says counts as text: "[MASK]" in a caption is three basic tokens, as with LAPS. Texts are
    encoded as [CLS] pieces [SEP], and those two count as words.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        found = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")}
        if missing := [token for token, number in found.items() if number is None]:
            raise ModelError(f"the tokenizer of {name} has no {', '.join(missing)}; take a BERT's")
        if tokenizer.post_processor is None:
            from tokenizers.processors import TemplateProcessing

            frame = [(token, found[token]) for token in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
        self.tokenizer = tokenizer
        self.cls, self.sep, self.mask, self.pad = found.values()
        self.size: int = tokenizer.get_vocab_size()

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """Of a checkpoint's folder: its tokenizer.json, or its vocab.txt. ModelError where there is
        neither."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordPiece

        whole, words = folder / "tokenizer.json", folder / "vocab.txt"
        if whole.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(whole))
            except Exception as error:  # tokenizers raises plain Exceptions
                raise ModelError(f"{whole} is not a tokenizer: {error}") from None
            return cls(tokenizer, str(folder))
        if not words.is_file():
            raise ModelError(
                f"{folder} has no tokenizer: tokenizer.json or vocab.txt must lie beside the weights"
            )
        tokenizer = _bert(WordPiece.from_file(str(words), unk_token="[UNK]"), _lowercase(folder))
        return cls(tokenizer, str(folder))

    @classmethod
    def trained(cls, texts: Iterable[str], size: int = 8000) -> Vocabulary:
        """A vocabulary made from `texts`, for a text tower that begins with nothing: their `size` commonest
        basic tokens whole, and all their characters, which spell the others.

        The trainer of the tokenizers library is not used: among pairs that are equally common it takes one
        or another from run to run.
        """
        from tokenizers.models import WordPiece

        tokenizer = _bert(WordPiece({"[UNK]": 0}, unk_token="[UNK]"), lowercase=True)
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            plain = tokenizer.normalizer.normalize_str(text)
            counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain))
        letters = sorted({letter for word in counts for letter in word})
        common = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *common, *letters]
        pieces += [f"##{letter}" for letter in letters]
        numbered = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return cls(_bert(WordPiece(numbered, unk_token="[UNK]"), lowercase=True), "the training captions")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and what transformers wants beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        names = {
            name: f"[{name[:-6].upper()}]" for name in ("cls_token", "sep_token", "mask_token", "pad_token")
        }
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **names}
        text = json.dumps(settings, indent=1) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def pack(self, texts: Sequence[str]) -> Packed:
        """Texts in pieces, without [CLS] and [SEP]."""
        pieces: list[Ids] = []
        words: list[Ids] = []
        for start in range(0, len(texts), 10_000):
            part = list(texts[start : start + 10_000])
            for found in self.tokenizer.encode_batch(part, add_special_tokens=False):
                pieces.append(np.asarray(found.ids, np.int32))
                words.append(np.asarray(found.word_ids, np.int32))
        starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        empty = np.zeros(0, np.int32)
        return Packed(np.concatenate([empty, *pieces]), np.concatenate([empty, *words]), starts)

    def framed(self, pieces: Ids, limit: int | None = None) -> Ids:
        """[CLS] pieces [SEP]; of at most `limit` ids, what is too long cut off before [SEP]."""
        kept = pieces if limit is None else pieces[: limit - 2]
        return np.concatenate([[self.cls], kept, [self.sep]]).astype(np.int32)

    def padded(self, texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Ids (texts, longest), int64, and lengths (texts,)."""
        lengths = [len(text) for text in texts]
        ids = np.full((len(texts), max(lengths)), self.pad, np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        return torch.from_numpy(ids), torch.tensor(lengths)


def _bert(model: Any, lowercase: bool) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPiece()
    return tokenizer


def _lowercase(folder: Path) -> bool:
    """Whether a folder that has only vocab.txt is of an uncased BERT; they are, unless they say otherwise."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(settings.get("do_lower_case", True)) if isinstance(settings, dict) else True


def augmented(pieces: Ids, words: Ids, rng: np.random.Generator, vocabulary: int, mask: int) -> Ids:
    """A text's pieces after training's augmentation.

    One basic token in five is altered: half of these have all their pieces turned into `mask`, a tenth into
    random ids below `vocabulary`, and the others are deleted.

    >>> pieces, words = np.arange(10, 20, dtype=np.int32), np.arange(10, dtype=np.int32)
    >>> augmented(pieces, words, np.random.default_rng(3), vocabulary=100, mask=4)
    array([ 4, 11, 12, 13,  4, 15, 16, 18, 45], dtype=int32)
    """
    if not len(pieces):
        return pieces
    fate = rng.random(int(words[-1]) + 1)[words] / ALTERED
    found = np.where(fate < MASKED, np.int32(mask), pieces)
    replaced = (fate >= MASKED) & (fate < REPLACED)
    found[replaced] = rng.integers(vocabulary, size=int(replaced.sum()))
    kept: Ids = found[(fate < REPLACED) | (fate >= 1)]
    return kept


# ---------------------------------------------------------------- batches


class Batch(NamedTuple):
    """Pairs of an image and one of its texts. pixels (B, side, side, 3), bytes; ids (B, L), lengths (B,);
    dense texts of the pairs' images likewise, or None; images (B,), which image of the pool each is."""

    pixels: Tensor
    ids: Tensor
    lengths: Tensor
    dense_ids: Tensor | None
    dense_lengths: Tensor | None
    images: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in self))  # type: ignore[arg-type]


class Pair(NamedTuple):
    pixels: Bytes
    text: Ids
    dense: Ids | None
    image: int


class Pairs(Dataset[Pair]):
    """The pairs of a training split, one per text; an item is asked for by (epoch, index).

    owner: per text, its image. texts, dense: in pieces; dense_of: per text, its dense text. side: of the
    model's pictures. limit: ids that the text tower reads. augment: whether texts are augmented (pictures
    always are). keep: hold all pictures in memory, `reduced`, and crop those: for trainings whose pictures
    are few.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        owner: Sequence[int],
        vocabulary: Vocabulary,
        texts: Packed,
        dense: Packed | None = None,
        dense_of: Sequence[int] | None = None,
        *,
        side: int,
        limit: int | None = None,
        seed: int = 0,
        augment: bool = True,
        keep: bool = False,
    ) -> None:
        self._pictures = pictures
        self._owner = np.asarray(owner, np.int64)
        self._texts, self._dense = texts, dense
        self._dense_of = None if dense_of is None else np.asarray(dense_of, np.int64)
        self._size, self._mask, self._framed = vocabulary.size, vocabulary.mask, vocabulary.framed
        self._side, self._limit, self._seed, self._augment = side, limit, seed, augment
        self._kept = [np.asarray(picture) for picture in opened(pictures, side)] if keep else None

    def __len__(self) -> int:
        return len(self._owner)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        from PIL import Image

        epoch, index = key
        rng = np.random.default_rng((PAIR, self._seed, epoch, index))
        image = int(self._owner[index])
        picture = _open(self._pictures[image]) if self._kept is None else Image.fromarray(self._kept[image])
        pixels = training_pixels(picture, self._side, rng)
        text = self._text(self._texts, index, rng)
        dense = None
        if self._dense is not None and self._dense_of is not None:
            dense = self._text(self._dense, int(self._dense_of[index]), rng)
        return Pair(pixels, text, dense, image)

    def _text(self, texts: Packed, number: int, rng: np.random.Generator) -> Ids:
        pieces, words = texts[number]
        if self._augment:
            pieces = augmented(pieces, words, rng, self._size, self._mask)
        return self._framed(pieces, self._limit)


def opened(pictures: Sequence[Picture], side: int) -> Iterator[Image.Image]:
    """All pictures, `reduced`, in order, several being read at a time."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda picture: reduced(_open(picture), side), pictures)


def _open(picture: Picture) -> Image.Image:
    try:
        return picture.open()
    except PictureError as error:
        raise DataError(f"{error}. Mend the file, and repeat the command to resume") from None


def order(pairs: int, batch: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The pairs of an epoch in batches, (batches, batch); those too few for a last one are left out.

    >>> order(5, 2, seed=0, epoch=1)
    array([[2, 4],
           [0, 1]])
    """
    shuffled = np.random.default_rng((ORDER, seed, epoch)).permutation(pairs)
    return shuffled[: pairs // batch * batch].reshape(-1, batch)


def loader(
    pairs: Pairs,
    vocabulary: Vocabulary,
    *,
    batch: int,
    seed: int,
    epochs: Iterable[int],
    skip: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader[Any]:
    """Batches of these epochs, `skip` of the first one left out; of each the part of process `rank` of
    `world`.

    batch: pairs of a step, over all processes. workers: processes that load in the background, for all
    epochs.
    """
    own = slice(rank * batch // world, (rank + 1) * batch // world)

    def keys() -> Iterator[list[tuple[int, int]]]:
        left = skip
        for epoch in epochs:
            for row in order(len(pairs), batch, seed, epoch)[left:]:
                yield [(epoch, int(index)) for index in row[own]]
            left = 0

    return DataLoader(
        pairs,
        batch_sampler=_Keys(keys),
        num_workers=workers,
        collate_fn=_Collate(vocabulary),
        pin_memory=pin,
        worker_init_fn=_quietly,
    )


@dataclass(frozen=True)
class _Keys:
    make: Any

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        found: Iterator[list[tuple[int, int]]] = self.make()
        return found


@dataclass(frozen=True)
class _Collate:
    vocabulary: Vocabulary

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        ids, lengths = self.vocabulary.padded([pair.text for pair in pairs])
        dense = [pair.dense for pair in pairs if pair.dense is not None]
        dense_ids, dense_lengths = self.vocabulary.padded(dense) if dense else (None, None)
        pixels = torch.from_numpy(np.stack([pair.pixels for pair in pairs]))
        images = torch.tensor([pair.image for pair in pairs])
        return Batch(pixels, ids, lengths, dense_ids, dense_lengths, images)


def _quietly(_: int) -> None:
    """A worker leaves Ctrl-C to the process that it works for, and its one thread to its work."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
