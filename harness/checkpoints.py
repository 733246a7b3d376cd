"""Checkpoints of transformers: where one is, which version it is, and how loading one behaves.

Knows folders, the Hugging Face hub, fingerprints, devices and the errors of all four. Must not know what a
checkpoint is of. Every room that loads weights stands on this, so that all of them are equally careful:
weights come from safetensors alone, and a message says what is wrong and what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ModelError

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
WEIGHTS = "*.safetensors"
_HASHED_WHOLE = 64 << 20
"""Bytes of a folder up to which its fingerprint reads all of them."""
_ENDS = 1 << 20
"""Bytes read at either end of each file of a larger folder."""


def located(name: str, revision: str | None) -> tuple[Path, str | None, str]:
    """A checkpoint's folder with its small files, its repository (None for a folder), and its version.

    A folder is looked for first, then the hub. The version is the hub's commit, or `sha256:` of a folder's
    content. Raises `ModelError` for a folder that is missing or holds no checkpoint, and a repository that
    is gated, unknown or out of reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"revision={revision} is for hub repositories; {folder} is a folder")
        _require_files(folder)
        return folder, None, f"sha256:{fingerprint(folder)}"
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name} (seen from {Path.cwd()})")
    folder = fetched(name, revision, SMALL_FILES)
    return folder, name, folder.name


def fingerprint(folder: Path) -> str:
    """sha256 (hex) of what decides a folder's answers: configs, tokenizer, template, weights.

    Up to 64 MiB every byte counts; a larger folder's files count with their size and their first and
    last MiB. A card, a licence or a picture beside them does not count.
    """
    patterns = (*SMALL_FILES, WEIGHTS)
    folders = (folder, folder / "qformer_tokenizer")  # InstructBLIP's second tokenizer
    files = sorted({path for place in folders for pattern in patterns for path in place.glob(pattern)})
    whole = sum(path.stat().st_size for path in files) <= _HASHED_WHOLE
    seen = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        seen.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if whole or size <= 2 * _ENDS:
                seen.update(file.read())
            else:
                seen.update(file.read(_ENDS))
                file.seek(-_ENDS, 2)
                seen.update(file.read())
    return seen.hexdigest()


def pick_device(device: str) -> str:
    """`auto` is CUDA where torch sees it, otherwise the CPU; of several processes that a launcher started,
    each takes the GPU of its LOCAL_RANK. Raises `ModelError` if it is not there."""
    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        place = os.environ.get("LOCAL_RANK", "")
        return f"cuda:{int(place) % torch.cuda.device_count()}" if place.isdigit() else "cuda"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ModelError(f"device={device} is unknown; use auto, cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device={device}, but torch sees no CUDA device (torch {torch.__version__}); "
            "use device=cpu or install a CUDA build of torch"
        )
    return device


def fetched(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files that match, from the hub or its cache. Raises `ModelError`."""
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no folder {repository} here (seen from {Path.cwd()}) and no such repository "
            "on the hub; a private one needs `hf auth login` or HF_TOKEN"
        ) from None
    except errors.HFValidationError:
        raise ModelError(
            f"{repository!r} is neither a folder here nor a name that a hub repository can have"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ModelError(
            f"there is no folder {repository} here (seen from {Path.cwd()}), and {repository}{at} is "
            "neither in the hub's cache nor can the hub be reached (offline, or HF_HUB_OFFLINE is "
            f"set). Download it once with a network: hf download {repository}"
        ) from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"the hub refused {repository}{at}: {error}") from None


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a checkpoint: it has no config.json. A checkpoint folder is what "
            "`save_pretrained` writes (config.json, *.safetensors, tokenizer and processor files)"
        )
    if not any(folder.glob(WEIGHTS)):
        raise ModelError(
            f"{folder} holds no *.safetensors. Other formats are pickles, which can run code when "
            "read; convert once with `from_pretrained(...).save_pretrained(...)`"
        )


# ---------------------------------------------------------------- transformers' manners


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No notes and no bars from transformers while it loads; its settings are put back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what goes wrong while loading into a `ModelError` that names what was to be loaded."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:500]
        raise ModelError(f"{what} does not load: {reason}") from error


def read_config(name: str, folder: Path, *, trust_remote_code: bool = False, own_code: str = "") -> Any:
    """transformers' config of the checkpoint in a folder; `name` is what messages call it.

    own_code: what the message adds where the config asks for code of its own and that is not trusted. Raises
    `ModelError` for a config.json that transformers cannot read or does not know.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError) as error:
        hint = own_code if "trust_remote_code" in str(error) else ""
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: config.json cannot be used{hint} ({reason})") from None


def require_whole(what: str, missing: Sequence[str]) -> None:
    """Raise `ModelError` if weights are missing: transformers goes on with random numbers in their place."""
    if missing:
        raise ModelError(f"{what} lacks {len(missing)} of its weights, {min(missing)} among them")
