"""Image-text scorers through transformers: how well sentences fit a picture, for the methods that filter.

Knows BLIP's image-text matching checkpoints, prepared as LAVIS prepares them, and dual encoders (CLIP,
SigLIP). Must not know where sentences come from, what is made of scores, requests or methods.

A picture passes through the vision tower once, whatever the number of its sentences, and what has been
scored is remembered. Pictures are prepared one by one with Pillow; scores do not depend on what else is
asked, beyond rounding. Weights are float32 and load from safetensors alone; no repository's code runs.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.checkpoints import (
    SMALL_FILES,
    WEIGHTS,
    explained,
    fetched,
    located,
    pick_device,
    quiet,
    read_config,
    require_whole,
)
from harness.errors import ModelError, PictureError, SpecError
from harness.pictures import Picture
from harness.types import Failure, Usage
from methods._specs import checkpoint_spec

PAPERS = "Salesforce/blip-itm-large-coco"
"""The hub's copy of what Patch Matters scores with: LAVIS's blip_image_text_matching, large."""

FORMULAS = {"blip-itm": "(itm + itc) / 2, v1", "clip": "cosine, v1"}
"""Per family what a score is, and the version of this computation."""

_CLIPS = ("clip", "siglip", "siglip2")
_WORDS, _TOKENS = 50, 35  # LAVIS: BlipCaptionProcessor.max_words, BlipITM.max_txt_len
_KEPT_PICTURES, _KEPT_SCORES = 64, 100_000  # a large BLIP's states of 64 pictures are 150 MB
_TEXTS = 64  # per pass of a text encoder alone
_SENTENCES, _ROWS = 16, 8  # of a matching pass: sentences of one picture per row, rows
_WIDEST = 200  # the longer side over the shorter, beyond which CLIP's resizing fills the memory

Item = TypeVar("Item")
Value = TypeVar("Value")


def lavis_text(text: str) -> str:
    """A sentence as LAVIS hands it to BLIP (lavis/processors/blip_processors.py: `pre_caption`).

    >>> lavis_text('A "red" bus,  parked: (left)!')
    'a red bus, parked left'
    """
    text = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text)
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:_WORDS])


class _Recent(Generic[Value]):
    """A dictionary of the `size` values that were put or got last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)


@dataclass(frozen=True)
class Scores:
    """Per sentence how well it fits the picture, in order, or why nobody can tell; what it cost.

    usage: one image and one forward pass if the vision tower looked at the picture for this answer.
    """

    values: tuple[float, ...] = ()
    usage: Usage = Usage()
    failure: Failure | None = None


@dataclass(frozen=True, eq=False)
class Scorer:
    """One checkpoint; `find` and `from_spec` make it. Its weights load when it is first asked.

    name: as records call it. folder: where its files are. hub: its repository, None for a folder.
    revision: the hub's commit, or `sha256:` of the folder's configs and weights. config: transformers'.
    device: auto, cpu, cuda, ... batch: pictures at once.

    family `blip-itm`: the mean of the positive probability of BLIP's image-text matching head and the
    cosine of its unimodal features, -0.5 to 1 (Patch Matters, aggregation/main.py: `BLIPScore`; LAVIS
    506965b, blip_image_text_matching.py). `clip`: the cosine of image and text features, -1 to 1.
    """

    name: str
    folder: Path
    hub: str | None
    revision: str
    config: Any
    device: str = "auto"
    batch: int = 8
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _seen: _Recent[Any] = field(default_factory=lambda: _Recent(_KEPT_PICTURES), init=False, repr=False)
    _known: _Recent[float] = field(default_factory=lambda: _Recent(_KEPT_SCORES), init=False, repr=False)

    @classmethod
    def from_spec(cls, text: str) -> Scorer:
        """The scorer that `[FAMILY:]CHECKPOINT[,revision=...][,device=...]` names; FAMILY is checked.

        Reads the config alone. Raises `SpecError` for what is not such a text, `ModelError` as `find` does.
        """
        family, checkpoint, knobs = checkpoint_spec("scorer", text, ("revision", "device"))
        if family and family not in FORMULAS:
            raise SpecError(f"scorer={text}: no family {family!r} (families: {', '.join(FORMULAS)})")
        found = cls.find(checkpoint, knobs.get("revision"), device=knobs.get("device", "auto"))
        if family and family != found.family:
            kind = found.config.model_type
            raise SpecError(f"scorer={text}: {checkpoint} is a {kind}; write {found.family}:{checkpoint}")
        return found

    @classmethod
    def find(cls, name: str, revision: str | None = None, **knobs: Any) -> Scorer:
        """The checkpoint in a folder, or else on the hub; knobs are the fields device and batch.

        Raises `ModelError` for one that is not there, has no safetensors or scores nothing.
        """
        folder, hub, version = located(name, revision)
        config = _scorer_config(name, folder)
        return cls(hub or folder.resolve().name, folder, hub, version, config, **knobs)

    @property
    def family(self) -> str:
        """`blip-itm` or `clip`."""
        return "blip-itm" if self.config.model_type == "blip" else "clip"

    def describe(self) -> dict[str, Any]:
        """Everything that decides its scores, as JSON."""
        return {
            "scorer": self.name,
            "revision": self.revision,
            "family": self.family,
            "formula": FORMULAS[self.family],
            "device": self._device.split(":")[0],
        }

    def score(self, asked: Sequence[tuple[Picture, Sequence[str]]]) -> list[Scores]:
        """Per picture the scores of its sentences, in order.

        No sentence, no score. A picture that cannot be read or prepared, and one with a score that is not
        a finite number, is a failure of its own. Raises `ModelError` if the weights do not load.
        """
        scores: list[Scores] = []
        with self._lock:
            for start in range(0, len(asked), self.batch):
                scores += self._score(asked[start : start + self.batch])
        return scores

    def _score(self, asked: Sequence[tuple[Picture, Sequence[str]]]) -> list[Scores]:
        began = time.perf_counter()
        digests, faults = _named(asked)
        values: dict[tuple[str, str], float | None] = {}
        missing: dict[str, tuple[Picture, list[str]]] = {}  # what must be computed, by the picture's digest
        for digest, (picture, sentences) in zip(digests, asked, strict=True):
            for sentence in sentences if digest not in faults else ():
                if (digest, sentence) not in values:
                    values[digest, sentence] = self._known.get((digest, sentence))
                    if values[digest, sentence] is None:
                        missing.setdefault(digest, (picture, []))[1].append(sentence)
        features, looked, unusable = self._features({digest: one for digest, (one, _) in missing.items()})
        faults.update(unusable)
        if features:
            matched = self._loaded.match([(features[digest], missing[digest][1]) for digest in features])
            for digest, scores in zip(features, matched, strict=True):
                for sentence, score in zip(missing[digest][1], scores, strict=True):
                    if math.isfinite(score):
                        values[digest, sentence] = score
                        self._known.put((digest, sentence), score)
        share = Usage(seconds=(time.perf_counter() - began) / len(asked))
        found = []
        for digest, (picture, sentences) in zip(digests, asked, strict=True):
            usage = share + Usage(images=1, forward_passes=1) if digest in looked else share
            looked.discard(digest)  # a picture that stands here twice was looked at once
            mine = [] if digest in faults else [values[digest, sentence] for sentence in sentences]
            numbers = tuple(value for value in mine if value is not None)
            failure = faults.get(digest)
            if len(numbers) < len(mine):
                odd = sentences[mine.index(None)]
                failure = Failure(
                    "not_finite",
                    f"{self.name} gives {odd!r} on {picture.source.label} no finite score; its weights are "
                    "damaged: fetch them again",
                )
            found.append(Scores(() if failure else numbers, usage, failure))
        return found

    def _features(self, pictures: dict[str, Picture]) -> tuple[dict[str, Any], set[str], dict[str, Failure]]:
        """By digest: what the vision tower makes of each picture, which it looked at, which are unusable."""
        import torch

        features: dict[str, Any] = {}
        faults: dict[str, Failure] = {}
        alike: dict[Any, dict[str, Any]] = {}  # by the shapes of their tensors
        for digest, picture in pictures.items():
            features[digest] = self._seen.get(digest)
            if features[digest] is not None:
                continue
            try:
                inputs = self._loaded.prepare(picture.open())
            except PictureError as error:
                faults[digest] = Failure(error.kind, str(error))
                continue
            except (ValueError, ZeroDivisionError) as error:
                message = f"{self.name} cannot prepare {picture.source.label}, {picture.size}: {error}"
                faults[digest] = Failure("unusable_picture", message)
                continue
            shapes = tuple((key, tuple(value.shape)) for key, value in sorted(inputs.items()))
            alike.setdefault(shapes, {})[digest] = inputs
        for group in alike.values():
            each = list(group.values())
            together = {key: torch.cat([one[key] for one in each]).to(self._device) for key in each[0]}
            for digest, one in zip(group, self._loaded.encode(together), strict=True):
                features[digest] = one
                self._seen.put(digest, one)
        looked = {digest for group in alike.values() for digest in group}
        return {digest: one for digest, one in features.items() if one is not None}, looked, faults

    @cached_property
    def _device(self) -> str:
        return pick_device(self.device)

    @cached_property
    def _loaded(self) -> _BlipItm | _Clip:
        """The weights, on their device, and what prepares pictures and texts. Raises `ModelError`."""
        import torch
        import transformers as hf

        if self.hub is not None:
            fetched(self.hub, self.revision, (*SMALL_FILES, WEIGHTS))
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        loader = hf.BlipForImageTextRetrieval if self.family == "blip-itm" else hf.AutoModel
        with quiet(), explained(f"the scorer {self.name} ({self.config.model_type})"):
            processor = hf.AutoProcessor.from_pretrained(self.folder, backend="pil", **options)
            model, report = loader.from_pretrained(
                self.folder,
                config=self.config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            model = model.to(self._device).eval().requires_grad_(False)
        require_whole(self.name, report["missing_keys"])
        if self.family == "clip":
            return _Clip(model, processor)
        return _BlipItm(model, processor, _enc_token(self.name, processor.tokenizer, self.config))


# ---------------------------------------------------------------- BLIP


@dataclass(frozen=True)
class _BlipItm:
    """BLIP's two heads over shared image states. enc: the token that asks for matching."""

    model: Any
    processor: Any
    enc: int

    def prepare(self, image: Any) -> dict[str, Any]:
        return dict(self.processor.image_processor(images=image, return_tensors="pt"))

    def encode(self, inputs: dict[str, Any]) -> list[Any]:
        """Per picture its image states, float32 (patches + 1, width)."""
        import torch

        with torch.inference_mode():
            return list(self.model.vision_model(**inputs).last_hidden_state)

    def match(self, pairs: Sequence[tuple[Any, Sequence[str]]]) -> list[list[float]]:
        """Per (states, sentences) the mean of both heads' answers, per sentence."""
        import torch

        texts = [[lavis_text(sentence) for sentence in sentences] for _, sentences in pairs]
        tokens = self._tokens({text for mine in texts for text in mine})
        with torch.inference_mode():
            itc = self._itc([states for states, _ in pairs], texts, tokens)
            itm = self._itm([states for states, _ in pairs], texts, tokens)
        return [
            [(probability + cosine) / 2 for probability, cosine in zip(one, other, strict=True)]
            for one, other in zip(itm, itc, strict=True)
        ]

    def _tokens(self, texts: Collection[str]) -> dict[str, list[int]]:
        """Per text its ids, from [CLS] to [SEP]; the shortest first, so that batches pad little."""
        options = {"truncation": True, "max_length": _TOKENS}
        found = self.processor.tokenizer(sorted(texts), **options)["input_ids"]
        return dict(sorted(zip(sorted(texts), found, strict=True), key=lambda pair: len(pair[1])))

    def _itc(
        self, images: Sequence[Any], texts: Sequence[Sequence[str]], tokens: dict[str, list[int]]
    ) -> list[list[float]]:
        """Cosines of the image's and the texts' own features; a text passes once for all its pictures."""
        import torch
        from torch.nn.functional import normalize

        words: dict[str, Any] = {}
        for some in _parts(list(tokens), _TEXTS):
            ids = [torch.tensor(tokens[text], device=self.model.device) for text in some]
            pad = torch.nn.utils.rnn.pad_sequence
            mask = pad([torch.ones_like(one) for one in ids], batch_first=True)
            states = self.model.text_encoder(pad(ids, batch_first=True), mask).last_hidden_state[:, 0]
            words.update(zip(some, normalize(self.model.text_proj(states), dim=-1), strict=True))
        seen = normalize(self.model.vision_proj(torch.stack([image[0] for image in images])), dim=-1)
        return [
            (torch.stack([words[text] for text in mine]) @ one).tolist()
            for one, mine in zip(seen, texts, strict=True)
        ]

    def _itm(
        self, images: Sequence[Any], texts: Sequence[Sequence[str]], tokens: dict[str, list[int]]
    ) -> list[list[float]]:
        """Positive probabilities of the matching head, the sentences of a picture side by side in rows."""
        rows = [
            (place, [tokens[text] for text in some])
            for place, mine in enumerate(texts)
            for some in _parts(mine, _SENTENCES)
        ]
        found: list[list[float]] = [[] for _ in texts]
        for part in _parts(rows, _ROWS):
            scored = self._rows([images[place] for place, _ in part], [row for _, row in part])
            for (place, _), probabilities in zip(part, scored, strict=True):
                found[place] += probabilities
        return found

    def _rows(self, images: Sequence[Any], rows: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
        """The same for rows of sentences, each a list of ids, and an image per row.

        A token sees its own sentence, whose positions begin at 0, and the image: what the others in its
        row say changes nothing, and the image's keys and values are computed once for all of them.
        """
        import torch

        shape = (len(rows), max(sum(map(len, row)) for row in rows))
        ids, positions, owner = torch.zeros(3, *shape, dtype=torch.long)
        heads = []  # where each sentence begins
        for number, row in enumerate(rows):
            begin = 0
            for sentence, tokens in enumerate(row, 1):  # 0 owns the padding
                part = (number, slice(begin, begin + len(tokens)))
                ids[part] = torch.tensor([self.enc, *tokens[1:]])
                positions[part] = torch.arange(len(tokens))
                owner[part] = sentence
                heads.append((number, begin))
                begin += len(tokens)
        together = owner[:, None, :, None] == owner[:, None, None, :]
        mask = torch.zeros(together.shape).masked_fill(~together, torch.finfo(torch.float32).min)
        device = self.model.device
        states = self.model.text_encoder(
            ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            encoder_hidden_states=torch.stack(list(images)),
        ).last_hidden_state
        logits = self.model.itm_head(states[tuple(zip(*heads, strict=True))])
        answers = iter(logits.softmax(dim=-1)[:, 1].tolist())
        return [[next(answers) for _ in row] for row in rows]


def _enc_token(name: str, tokenizer: Any, config: Any) -> int:
    """The id of [ENC], which LAVIS puts in the place of [CLS] for matching (BlipBase.init_tokenizer).

    LAVIS adds [DEC], then [ENC], to bert-base-uncased; the hub's tokenizers know neither of them, their
    text encoders do. Raises `ModelError` where the encoder has no such token.
    """
    known = tokenizer.get_vocab()
    enc = known.get("[ENC]", len(tokenizer) + ("[DEC]" not in known))
    size = config.text_config.vocab_size
    if enc >= size:
        raise ModelError(
            f"{name}: the matching token [ENC] would be {enc}, but its text encoder knows {size} tokens; "
            f"use a checkpoint of BLIP's image-text matching, such as {PAPERS}"
        )
    if tokenizer("a")["input_ids"][0] != tokenizer.cls_token_id:
        raise ModelError(f"{name}: its tokenizer does not begin with [CLS]; use BERT's, as {PAPERS} does")
    return int(enc)


def _as_lavis(config: Any) -> Any:
    """BLIP's config with LAVIS's two numbers where conversions to transformers got them wrong.

    LAVIS: vit.py has layer norms of 1e-6, med_config.json 12 heads for a width of 768. Configs on the hub
    said 1e-5 and 8 (salesforce/LAVIS issue 106, huggingface/transformers issue 22625).
    """
    config.vision_config.layer_norm_eps = 1e-6
    if (config.text_config.hidden_size, config.text_config.num_attention_heads) == (768, 8):
        config.text_config.num_attention_heads = 12
    return config


# ---------------------------------------------------------------- CLIP


@dataclass(frozen=True)
class _Clip:
    """A dual encoder: features of pictures and of texts in one space."""

    model: Any
    processor: Any

    def prepare(self, image: Any) -> dict[str, Any]:
        if max(image.size) > _WIDEST * min(image.size):
            raise ValueError(f"its sides differ by more than {_WIDEST} to 1; crop it")
        return dict(self.processor.image_processor(images=image, return_tensors="pt"))

    def encode(self, inputs: dict[str, Any]) -> list[Any]:
        """Per picture its feature, float32 (width) of length 1."""
        import torch

        with torch.inference_mode():
            return list(_unit(self.model.get_image_features(**inputs)))

    def match(self, pairs: Sequence[tuple[Any, Sequence[str]]]) -> list[list[float]]:
        """Per (feature, sentences) the cosines, per sentence; a text passes once for all its pictures."""
        import torch

        words: dict[str, Any] = {}
        with torch.inference_mode():
            for some in _parts(sorted({text for _, mine in pairs for text in mine}, key=len), _TEXTS):
                features = self.model.get_text_features(**self._tokens(some))
                words.update(zip(some, _unit(features), strict=True))
            return [(torch.stack([words[text] for text in mine]) @ one).tolist() for one, mine in pairs]

    def _tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        """Texts cut to the context. SigLIP reads the last position and no mask: all are padded to it."""
        siglip = self.model.config.model_type != "clip"
        tokens = self.processor.tokenizer(
            list(texts),
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            split_special_tokens=True,  # a caption that says "<|endoftext|>" does not end there
            return_tensors="pt",
        ).to(self.model.device)
        return {key: tokens[key] for key in ("input_ids",) + ("attention_mask",) * (not siglip)}


def _unit(features: Any) -> Any:
    """Rows of length 1: (rows, width)."""
    from torch.nn.functional import normalize

    return normalize(features.pooler_output, dim=-1)


# ---------------------------------------------------------------- what both need


def _scorer_config(name: str, folder: Path) -> Any:
    config = read_config(name, folder)
    if config.model_type in _CLIPS:
        return config
    made_for = next(iter(config.architectures or ()), "")
    if config.model_type != "blip" or made_for not in ("", "BlipForImageTextRetrieval"):
        raise ModelError(
            f"{name} is a {made_for or config.model_type}, which scores no sentences; use a BLIP for "
            f"image-text matching ({PAPERS}) or one of {', '.join(_CLIPS)} (openai/clip-vit-large-patch14)"
        )
    return _as_lavis(config)


def _named(asked: Sequence[tuple[Picture, Sequence[str]]]) -> tuple[list[str], dict[str, Failure]]:
    """Per place the picture's digest, or a name of its own in the failures; "" where nothing is asked."""
    digests: list[str] = []
    faults: dict[str, Failure] = {}
    for place, (picture, sentences) in enumerate(asked):
        try:
            digests.append(picture.digest if sentences else "")
        except PictureError as error:
            digests.append(f"unread {place}")
            faults[digests[-1]] = Failure(error.kind, str(error))
    return digests, faults


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
