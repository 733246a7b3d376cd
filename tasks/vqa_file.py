"""Your own questions about your own images: a JSON-lines file, a metric, no code.

Knows the file's fields. Must not know: any benchmark, models, methods.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import SpecError
from harness.pictures import picture_in
from harness.types import Decoding, Hints, Metric, Request, Sample, Task
from metrics import exact
from tasks._source import SHORT, Row, check_folder, check_ids, fingerprint, rows


def task(
    path: Path,
    *,
    metric: Metric | None = None,
    instruction: str = f"\n{SHORT}",
    max_tokens: int = 128,
    images: Path | None = None,
) -> Task:
    """Questions from a file of your own, one object per line (or a JSON list of them):

        {"image": "a.jpg", "question": "What is on the sign?", "answer": "stop"}

    `image` is a path, `images` a list of them, from the file's folder (or from `images`, if given);
    neither means a question without a picture. `answer` is a text, `answers` a list: every one is right
    (for `vqa`, they are the humans' answers). `id` (else the line's number), `category` (scores are
    shown by it) and `short_question` (the question that attention maps are made with) may be left out.

    metric: exact (by default: without capitals, punctuation and outer spaces), vqa, yesno or any other,
    with its knobs in parentheses: metric=(vqa:variant=official). Its first number ranks. instruction:
    what follows the question, separator included. max_tokens: new tokens at most. Decoding is greedy.
    """
    if max_tokens < 1:
        raise SpecError(f"max_tokens={max_tokens}; an answer needs 1 or more")
    path = Path(path)
    found = rows(path)
    folder = path.parent if images is None else check_folder(Path(images), "the images")
    samples = [_sample(row, str(number), folder) for number, row in enumerate(found, 1)]
    check_ids((sample.id, row.where) for sample, row in zip(samples, found, strict=True))
    chosen = metric or exact.metric("lmms")

    def request(sample: Sample) -> Request:
        short = sample.meta.get("short_question")
        return Request(
            sample.images,
            sample.question,
            instruction,
            decoding=Decoding(max_tokens=max_tokens),
            hints=Hints(short_question=None if short is None else str(short)),
        )

    return Task(
        name=f"vqa_file-{path.stem}",
        version="1",
        protocol="plain",
        fingerprint=fingerprint([path]),
        samples=samples,
        request=request,
        metrics=(chosen,),
        primary=next(iter(chosen.higher_is_better)),
    )


def _sample(row: Row, number: str, folder: Path) -> Sample:
    names = row.texts("images", "image") if row.get("images", "image") is not None else ()
    optional = {key: row.text(key) for key in ("category", "short_question") if row.get(key) is not None}
    return Sample(
        id=number if row.get("id") is None else row.text("id"),
        images=tuple(picture_in(folder, name) for name in names),
        question=row.text("question"),
        targets=row.texts("answers", "answer"),
        category=optional.pop("category", None),
        meta={"images": names, **optional},
    )
