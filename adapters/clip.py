"""Dual encoders: CLIP, SigLIP and their kin compare images with texts by the cosine of two embeddings.

Knows checkpoints that transformers' `AutoModel` loads and that have `get_image_features` and
`get_text_features`, and how their texts are padded. Must not know benchmarks, which text describes which
image, or methods. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021; Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.

    clip:openai/clip-vit-base-patch32      clip:google/siglip-base-patch16-224,dtype=bfloat16
"""

from __future__ import annotations

import base64
import binascii
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
from harness.errors import ModelError, PictureError
from harness.pictures import Picture
from harness.types import Journal, Matcher, Pool, digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

Dtype = Literal["float32", "bfloat16", "float16"]
Item = TypeVar("Item")

FORMULA = "cosine, v1"
"""What a similarity is, and the version of this computation."""

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
_WIDEST = 200  # the longer side over the shorter, beyond which resizing the shorter fills the memory


def model(
    checkpoint: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    batch: int = 64,
    journal: Journal | None = None,
) -> Matcher:
    """A dual encoder from a folder or the Hugging Face hub: CLIP, SigLIP, ALIGN, AltCLIP, MetaCLIP 2, ...

    revision: a branch, tag or commit of the hub. device: auto (CUDA if there is any), cpu, cuda, cuda:1.
    dtype: of the towers; similarities are float32. batch: pictures, or texts, at a time. Its weights load
    with the first image or text that is new. Embeddings are kept, by the picture's or the text's digest, in
    the answer cache too (`--no-cache`: in memory alone): another run, or the same one resumed, encodes what
    is new to it.

    A text longer than the context is cut; no prompt is put around it. Dense texts are ignored. Raises
    `ModelError` for a checkpoint that is not there or is no dual encoder.
    """
    if batch < 1:
        raise ModelError(f"batch={batch}; it must be 1 or more")
    folder, hub, version = located(checkpoint, revision)
    return Clip(
        name=hub or folder.resolve().name,
        folder=folder,
        hub=hub,
        revision=version,
        config=_encoder_config(checkpoint, folder),
        device=pick_device(device),
        dtype=dtype,
        batch=batch,
        journal=journal,
    )


@dataclass(frozen=True, eq=False)
class Clip:
    """One checkpoint. folder: where its small files are. hub: its repository, None for a folder. revision:
    the hub's commit, or `sha256:` of the folder's content. config: transformers'. The others: see `model`."""

    name: str
    folder: Path
    hub: str | None
    revision: str
    config: Any
    device: str = "cpu"
    dtype: Dtype = "float32"
    batch: int = 64
    journal: Journal | None = None
    _kept: dict[str, Floats] = field(default_factory=dict, init=False, repr=False)
    _pool: list[Any] = field(default_factory=list, init=False, repr=False)

    def describe(self) -> dict[str, Any]:
        return {
            "adapter": "clip",
            "model": self.name,
            "revision": self.revision,
            "family": self.config.model_type,
            "formula": FORMULA,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "dense": "ignored",
        }

    def similarity(self, pool: Pool, rows: range) -> Floats:
        """(len(rows), texts): cosines, -1 to 1. Raises PictureError for a picture that cannot be read or
        prepared, and ModelError if the weights do not load or give no embeddings."""
        import numpy as np

        if not rows or not pool.texts:
            return np.zeros((len(rows), len(pool.texts)), np.float32)
        pictures = [pool.images[row] for row in rows]
        keys = [f"image/{picture.digest}" for picture in pictures]
        self._learn(dict(zip(keys, pictures, strict=True)), self._see)
        images = np.stack([self._kept[key] for key in keys]).astype(np.float64)
        return (images @ self._texts(pool.texts).T).astype(np.float32)

    def _texts(self, texts: tuple[str, ...]) -> npt.NDArray[np.float64]:
        """(texts, width): the embeddings of a pool's texts, as the pool before had them if it is the same.

        In double precision, so that equal texts tie: a product in single precision sums the columns at its
        edge in another order.
        """
        import numpy as np

        if not self._pool or self._pool[0] is not texts:
            keys = {text: f"text/{digest(text)}" for text in texts}
            # The shortest first, so that batches pad little; a pool's order does not change what is in one.
            by_length = sorted(keys, key=lambda text: (len(text), text))
            self._learn({keys[text]: text for text in by_length}, self._read)
            self._pool[:] = [texts, np.stack([self._kept[keys[text]] for text in texts]).astype(np.float64)]
        found: npt.NDArray[np.float64] = self._pool[1]
        return found

    # ------------------------------------------------------------ embeddings, and where they are kept

    def _learn(self, items: Mapping[str, Item], encode: Callable[[list[Item]], Floats]) -> None:
        """Have an embedding of each item in memory: from the journal, or else encoded.

        A batch with something new in it is encoded whole, so that an embedding does not depend, down to its
        last bit, on what was known before.
        """
        import numpy as np

        for part in _parts(list(items), self.batch):
            new = [key for key in part if not self._remember(key)]
            if not new:
                continue
            fresh = dict(zip(part, encode([items[key] for key in part]), strict=True))
            for key in new:
                self._kept[key] = fresh[key]
                if self.journal is not None and np.isfinite(fresh[key]).all():
                    packed = base64.b64encode(fresh[key].astype("<f4").tobytes()).decode()
                    self.journal.put(f"{self._owner}/{key}", packed)

    def _remember(self, key: str) -> bool:
        """Whether an embedding is in memory, now that the journal has been asked."""
        import numpy as np

        if key not in self._kept and self.journal is not None:
            packed = self.journal.get(f"{self._owner}/{key}")
            try:
                stored = np.frombuffer(base64.b64decode(packed), "<f4") if isinstance(packed, str) else None
            except (binascii.Error, ValueError):
                stored = None  # damaged: it is encoded again
            if stored is not None and len(stored):
                self._kept[key] = stored.astype(np.float32)
        return key in self._kept

    @cached_property
    def _owner(self) -> str:
        return digest(self.describe())

    # ------------------------------------------------------------ the towers

    def _see(self, pictures: list[Picture]) -> Floats:
        """(pictures, width). Pictures whose tensors have equal shapes pass together; nothing is padded."""
        import numpy as np
        import torch

        alike: dict[Any, dict[int, Any]] = {}  # by the shapes of their tensors
        for place, picture in enumerate(pictures):
            inputs = self._prepared(picture)
            shapes = tuple((key, tuple(value.shape)) for key, value in sorted(inputs.items()))
            alike.setdefault(shapes, {})[place] = inputs
        found: dict[int, Floats] = {}
        for group in alike.values():
            each = list(group.values())
            together = {key: torch.cat([one[key] for one in each]) for key in each[0]}
            found.update(zip(group, self._features("get_image_features", together), strict=True))
        return np.stack([found[place] for place in range(len(pictures))])

    def _prepared(self, picture: Picture) -> dict[str, Any]:
        image = picture.open()
        if max(image.size) > _WIDEST * min(image.size):
            raise PictureError(
                f"{picture.source.label} is {image.width} x {image.height}: its sides differ by more than "
                f"{_WIDEST} to 1; crop it",
                "unusable_picture",
            )
        try:
            return dict(self._loaded[1].image_processor(images=image, return_tensors="pt"))
        except (ValueError, ZeroDivisionError) as error:
            message = f"{self.name} cannot prepare {picture.source.label}, {image.size}: {error}"
            raise PictureError(message, "unusable_picture") from None

    def _read(self, texts: list[str]) -> Floats:
        """(texts, width). Texts are cut to the context. SigLIP looks at the last position and was trained on
        texts padded to the context without a mask; the others are padded to the longest, with one."""
        encoder, processor = self._loaded
        tokens = processor.tokenizer(
            texts,
            padding="max_length" if self._siglip else True,
            truncation=True,
            max_length=self._context,
            split_special_tokens=True,  # a caption that says "<|endoftext|>" does not end there
            return_tensors="pt",
        )
        takes = inspect.signature(encoder.get_text_features).parameters
        left_out = {"attention_mask"} if self._siglip else set()
        return self._features(
            "get_text_features",
            {key: value for key, value in tokens.items() if key in takes and key not in left_out},
        )

    @cached_property
    def _context(self) -> int:
        """Tokens that a text may have."""
        positions = getattr(getattr(self.config, "text_config", None), "max_position_embeddings", None)
        stated = self._loaded[1].tokenizer.model_max_length
        return int(positions if self._siglip and positions else min(positions or stated, stated))

    @property
    def _siglip(self) -> bool:
        return str(self.config.model_type).startswith("siglip")

    def _features(self, which: str, inputs: Mapping[str, Any]) -> Floats:
        """(n, width), float32, rows of length 1: what a tower makes of a batch."""
        import torch

        encoder, _ = self._loaded
        dtype = getattr(torch, self.dtype)
        moved = {
            key: value.to(self.device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        with torch.inference_mode():
            given = getattr(encoder, which)(**moved)
            features = given if isinstance(given, torch.Tensor) else given.pooler_output
            if not isinstance(features, torch.Tensor) or features.ndim != 2:
                raise ModelError(
                    f"{self.name} ({self.config.model_type}): {which} gives no embedding per item, so there "
                    "is no cosine; use a CLIP or a SigLIP"
                )
            unit: Floats = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
        return unit

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The weights, on their device, and what prepares pictures and texts. Raises `ModelError`."""
        import torch
        import transformers as hf

        if self.hub is not None:
            fetched(self.hub, self.revision, (*SMALL_FILES, WEIGHTS))
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with quiet(), explained(f"{self.name} ({self.config.model_type})"):
            processor = hf.AutoProcessor.from_pretrained(self.folder, backend="pil", **options)
            self._require_files(processor)
            encoder, report = hf.AutoModel.from_pretrained(
                self.folder,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            encoder = encoder.to(self.device).eval().requires_grad_(False)
        require_whole(self.name, report["missing_keys"])
        return encoder, processor

    def _require_files(self, processor: Any) -> None:
        """Raise `ModelError` without a picture processor, or a vocabulary: transformers makes one up."""
        words = any(path for pattern in _VOCABULARIES for path in self.folder.glob(pattern))
        has = {
            "picture processor (preprocessor_config.json)": hasattr(processor, "image_processor"),
            "tokenizer (tokenizer.json, vocab.json or the like)": hasattr(processor, "tokenizer") and words,
        }
        for part, there in has.items():
            if not there:
                raise ModelError(f"{self.name} has no {part}; `processor.save_pretrained` writes its files")


def _encoder_config(name: str, folder: Path) -> Any:
    """transformers' config of a dual encoder. Raises `ModelError` for any other."""
    from transformers import MODEL_MAPPING

    config = read_config(name, folder)
    kind = MODEL_MAPPING.get(type(config), None)
    if not (hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")):
        raise ModelError(
            f"{name} is a {config.model_type} model, which does not embed images and texts in one space; "
            "clip takes CLIP, SigLIP, ALIGN, AltCLIP and their kin (openai/clip-vit-base-patch32)"
        )
    return config


def _parts(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
