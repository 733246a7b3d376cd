"""What Fovea needs of this machine, and whether it is there. Each finding says how to mend it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

Finding = tuple[str, bool | None, str]
"""(name, good, message); good is None for what is only worth knowing."""

_NLTK = ("tokenizers/punkt_tab/english", "taggers/averaged_perceptron_tagger_eng", "corpora/wordnet")


def findings(out: Path) -> Iterator[Finding]:
    """Every check, one after the other. `out` is where runs will be written."""
    yield "python", sys.version_info >= (3, 11), sys.version.split()[0]
    yield from _packages()
    yield _accelerator()
    yield _words()
    java = shutil.which("java")
    yield "java", True if java else None, java or "absent: METEOR and SPICE need a Java runtime"
    yield _writable(out)
    yield _hub()


def _packages() -> Iterator[Finding]:
    for package in ("torch", "transformers", "accelerate", "datasets", "nltk", "pycocoevalcap"):
        try:
            yield package, True, metadata.version(package)
        except metadata.PackageNotFoundError:
            extra = {"nltk": "[chair]", "pycocoevalcap": "[captions]"}.get(package)
            remedy = f"pip install 'fovea-eval{extra or ''}'"
            yield package, None if extra else False, f"not installed: {remedy}"
    if importlib.util.find_spec("torchvision") is not None:
        yield "torchvision", None, "installed, not needed: pictures go through Pillow everywhere"


def _accelerator() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return "accelerator", False, "torch is not installed"
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return "accelerator", True, ", ".join(names)
    return "accelerator", None, f"none: models run on {os.cpu_count()} CPU cores"


def _words() -> Finding:
    """CHAIR's front ends need NLTK data; nothing is downloaded by itself."""
    if importlib.util.find_spec("nltk") is None:
        return "nltk data", None, "nltk is not installed; CHAIR then has front_end=rules only"
    import nltk.data

    missing = []
    for name in _NLTK:
        try:
            nltk.data.find(name)
        except LookupError:
            try:
                nltk.data.find(f"{name}.zip")
            except LookupError:
                missing.append(name.rsplit("/", 1)[-1] if "english" not in name else "punkt_tab")
    if not missing:
        return "nltk data", True, "complete"
    command = f"python -m nltk.downloader {' '.join(missing)}"
    return "nltk data", None, f"missing {', '.join(missing)}: {command}, or set NLTK_DATA"


def _writable(out: Path) -> Finding:
    there = out
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        return "room", False, f"{there} cannot be written; choose another folder with --out"
    free = shutil.disk_usage(there).free
    return "room", free > 2**30 or None, f"{free / 2**30:.0f} GiB free for {out}"


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "hub", None, "HF_HUB_OFFLINE=1: only local checkpoints and cached ones"
    return "hub", None, "used for hub ids; gated models need `hf auth login`"
