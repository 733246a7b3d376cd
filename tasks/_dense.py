"""Dense texts: what a model says at length of a retrieval benchmark's images, and the file of it.

Knows the prompt, the sampling and the file's lines. Must not know: which benchmark it is, models, methods,
what a matcher does with the texts (`tasks._retrieval.dense_texts` reads them again).

SEPS, arXiv 2511.01390 (prompt, sampling and the limit of 500 tokens), and its released files: `text`,
`model_id` and `metadata.length`, in characters, per line. Those name no image, so that a lost line gives
every later image its neighbour's text; ours do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from harness.types import Decoding, Json, Request, Response, Retrieval, Sample, Task
from tasks._captions import captioning_metrics

PROMPT = "Provide a comprehensive description of this image"
DECODING = Decoding(max_tokens=500, temperature=0.2, top_p=0.9)


def describing(name: str, of: Retrieval) -> Task:
    """The task to describe each image of `of`, whose captions are its references, in their order."""
    captions: list[list[str]] = [[] for _ in of.ids]
    for image, text in zip(of.owner, of.pool.texts, strict=True):
        captions[image].append(text)
    metrics, primary = captioning_metrics(None, None)
    return Task(
        name=name,
        version="1",
        protocol="seps",
        fingerprint=of.fingerprint,
        samples=[
            Sample(image, (picture,), PROMPT, tuple(references))
            for image, picture, references in zip(of.ids, of.pool.images, captions, strict=True)
        ],
        request=lambda sample: Request(sample.images, sample.question, decoding=DECODING),
        metrics=metrics,
        primary=primary,
    )


def lines(run: Mapping[str, Any], answers: Sequence[tuple[Sample, Response]]) -> list[Json]:
    """A line per image. run: the run's header (run.json). answers: all of its images', in their order.

    `truncated`: the text ended at the limit of tokens; of a method's text it is what the method says of it.
    `sampling` is what was asked for; a method may ask otherwise, which `method` and `run` tell.

    >>> model = {"method": "full_twice", "model": {"adapter": "hf", "model": "org/vlm"}}
    >>> run = {"id": "ab", "methods": ["full_twice"], "identity": {"model": model, "decoding": {}}}
    >>> [line] = lines(run, [(Sample("25", (), "Describe!"), Response("A man ", "length"))])
    >>> line["image_id"], line["text"], line["model_id"]
    ('25', 'A man ', 'org/vlm')
    >>> {name: line["metadata"][name] for name in ("length", "truncated", "adapter", "method")}
    {'length': 6, 'truncated': True, 'adapter': 'hf', 'method': 'full_twice'}
    """
    model = run["identity"]["model"]
    while isinstance(model.get("model"), Mapping):
        model = model["model"]
    shared = {
        "adapter": model.get("adapter"),
        "method": " > ".join(run["methods"]) or "none",
        "sampling": run["identity"]["decoding"],
        "run": run["id"],
    }
    return [
        {
            "text": response.text,
            "model_id": model.get("model"),
            "image_id": sample.id,
            "metadata": {
                "length": len(response.text),
                "truncated": response.finish_reason == "length",
                "prompt_sha256": hashlib.sha256(sample.question.encode()).hexdigest(),
                **shared,
            },
        }
        for sample, response in answers
    ]
