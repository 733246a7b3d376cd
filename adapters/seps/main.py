"""SEPS and LAPS as matchers: checkpoints that `fovea train` made, evaluated (`docs/retrieval.md`).

Knows a checkpoint's folder. Must not know: benchmarks, which text describes which image, how it was trained.
SEPS: arXiv 2511.01390. LAPS: Fu et al., "Linguistic-Aware Patch Slimming Framework", CVPR 2024.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ModelError
from harness.types import Matcher, Pool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adapters.seps._scorer import Scorer

FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What decides the numbers of a checkpoint, and so its fingerprint."""


def model(
    checkpoint: Path,
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_word: int | None = None,
    dense_max_word: int | None = None,
    batch: int = 64,
) -> Matcher:
    """How alike images and texts are by a LAPS or SEPS trained here. The task's protocol says what of dense
    text it may see: none (S = H(V; T)), each image's, or, leaking, each query's. laps uses none.

    checkpoint: a folder that `fovea train seps:...` wrote. device: auto, cpu, cuda, cuda:1. precision: of the
    towers; scores are float32. Half precision changes which patches are kept where two are close. max_word,
    dense_max_word: words that count, [CLS] and [SEP] included [the checkpoint's: 90 as released; 256 reads
    nearly all of a dense text]. batch: images encoded at a time. ModelError: files missing or not fitting.
    """
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"precision={precision} does not exist; there are fp32, bf16, fp16")
    for name, value in (("max_word", max_word), ("dense_max_word", dense_max_word), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; it must be 1 or more")
    return SepsMatcher(
        Path(checkpoint), device, precision, max_word, dense_max_word, batch, _config(checkpoint)
    )


@dataclass(frozen=True)
class SepsMatcher:
    """A checkpoint's matcher; its weights load when it is first asked. config: its config.json as written."""

    checkpoint: Path
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    max_word: int | None
    dense_max_word: int | None
    batch: int
    config: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Everything that decides its numbers. dense: whether it has a use for dense text."""
        from harness.checkpoints import pick_device

        config = self.config
        return {
            "adapter": "seps",
            "model": self.checkpoint.resolve().name,
            "impl": config["impl"],
            "backbone": config["backbone"],
            "text": config["text"],
            "sparse_ratio": config["sparse_ratio"],
            "aggr_ratio": config["aggr_ratio"],
            "revision": f"sha256:{self.fingerprint}",
            "max_word": self.max_word or config["max_word"],
            "dense_max_word": self.dense_max_word or config["dense_max_word"],
            "dense": "ignored" if config["impl"] == "laps" else "used",
            "dtype": self.precision,
            "device": pick_device(self.device).partition(":")[0],
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over all bytes of `FILES`."""
        seen = hashlib.sha256()
        for name in FILES:
            path = self.checkpoint / name
            seen.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 24):
                    seen.update(part)
        return seen.hexdigest()

    def similarity(self, pool: Pool, rows: range) -> npt.NDArray[np.float32]:
        """(len(rows), texts), higher is more alike. Raises PictureError for an image that cannot be read."""
        return self._scorer.similarity(pool, rows)

    @cached_property
    def _scorer(self) -> Scorer:
        from adapters.seps._scorer import Scorer
        from adapters.seps.data import Vocabulary
        from adapters.seps.model import load
        from harness.checkpoints import pick_device

        device = pick_device(self.device)
        weights, vocabulary = load(self.checkpoint), Vocabulary.read(self.checkpoint)
        words = weights.config.text_config.get("vocab_size", vocabulary.size)
        if vocabulary.size > words:
            raise ModelError(
                f"{self.checkpoint / 'tokenizer.json'} has {vocabulary.size} pieces, the text tower {words}: "
                "it is another checkpoint's; copy the folder whole"
            )
        return Scorer(
            weights.to(device).requires_grad_(False),
            vocabulary,
            precision=self.precision,
            max_word=self.max_word,
            dense_max_word=self.dense_max_word,
            batch=self.batch,
        )


def _config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; ModelError where the folder is none."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder} here; `fovea train seps:...` makes one")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder} is not a SEPS checkpoint: it has no {', '.join(missing)}. `fovea train seps:...` "
            "writes them once its first epoch is over"
        )
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    needed = ("impl", "backbone", "text", "sparse_ratio", "aggr_ratio", "max_word", "dense_max_word")
    if not isinstance(config, dict) or any(name not in config for name in needed):
        raise ModelError(f"{path} is not a SEPS config: it must say {', '.join(needed)}")
    return config
