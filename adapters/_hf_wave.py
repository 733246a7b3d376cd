"""A wave of requests through a loaded checkpoint: prompts, rows, batches, and back.

Knows which forward passes a request needs, and packs those of all requests into batches: equal requests
once, long rows first, rows with the same beginning side by side, fewer at a time when memory runs out.
Must not know architectures (a `Family` does) or where weights come from.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from adapters._hf_checkpoint import full_layers
from adapters._hf_decoding import Ending, Finite, Sampler, finish
from adapters._hf_prompts import PromptError, Template, render
from adapters._hf_rows import Family, Read, Row, Unfit, pad_token
from harness import events, taps
from harness.errors import CapabilityError, PictureError
from harness.types import (
    Capability,
    Failure,
    ImportanceMap,
    Json,
    Probe,
    ReadMap,
    Request,
    Response,
    Usage,
)


@dataclass(eq=False)
class _Draft:
    """A response in the making."""

    request: Request
    tokens_in: int = 0
    text: str = ""
    finish_reason: str = "stop"
    tokens_out: int = 0
    passes: int = 0
    seconds: float = 0.0
    maps: tuple[ImportanceMap, ...] = ()
    options: dict[int, tuple[float, int]] = field(default_factory=dict)
    trace: dict[str, Json] = field(default_factory=dict)
    failure: Failure | None = None

    def response(self, sharers: int) -> Response:
        """For one of `sharers` equal requests: each counts what it asked for, and a share of the time."""
        if self.failure is not None and not self.passes:
            return Response(finish_reason="failure", usage=Usage(), failure=self.failure)
        usage = Usage(
            calls=1,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            images=len(self.request.images),
            forward_passes=self.passes,
            seconds=self.seconds / sharers,
        )
        if self.failure is not None:
            return Response(finish_reason="failure", usage=usage, failure=self.failure)
        return Response(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=usage,
            trace=self.trace,
            maps=self.maps,
            option_nll=tuple(self.options[place] for place in sorted(self.options)),
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """A row, and the draft that waits for it. option: its place among the request's options."""

    draft: _Draft
    row: Row
    option: int = 0


class Waves:
    """Answers lists of requests with one loaded model.

    batch: rows at a time to begin with; it shrinks, and stays small, when memory runs out. layer: of a
    map whose request names none. layers, context: how many the decoder has (None: unlimited). offers: what
    probes may need. why_not: why none is served, if so.
    """

    def __init__(
        self,
        weights: Any,
        processor: Any,
        family: Family,
        *,
        template: Template,
        batch: int,
        layer: int,
        layers: int,
        context: int | None,
        offers: frozenset[Capability],
        why_not: str,
    ) -> None:
        self._weights = weights
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._family = family
        self._template = template
        self._layer = layer
        self._layers = layers
        self._context = context
        self._offers = offers
        self._why_not = why_not
        self.batch = batch
        self._ends = _end_tokens(weights, self._tokenizer)
        # Decoding is what the request says: a checkpoint's own habits (sampling, penalties) do not apply.
        self._weights.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=pad_token(self._tokenizer),
            disable_compile=True,
        )

    @torch.no_grad()
    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """One response per request, in order."""
        keys: list[str | Failure] = [_key(request) for request in requests]
        self._family.turn()
        drafts: dict[str, _Draft] = {}
        for key, request in zip(keys, requests, strict=True):
            if isinstance(key, str) and key not in drafts:
                drafts[key] = _Draft(request)
        self._work(list(drafts.values()))
        sharers = Counter(keys)
        responses = [
            drafts[key].response(sharers[key])
            if isinstance(key, str)
            else Response(finish_reason="failure", failure=key)
            for key in keys
        ]
        for response in responses:
            events.report(response.usage)
        return responses

    def _work(self, drafts: Sequence[_Draft]) -> None:
        maps: list[_Job] = []
        options: list[_Job] = []
        answers: list[_Job] = []
        for draft in drafts:
            request = draft.request
            try:
                row = self._row(request)
                scored = [self._option(row, option) for option in request.options]
            except PromptError as error:
                draft.failure = Failure("prompt", str(error))
                continue
            except PictureError as error:
                draft.failure = Failure(error.kind, str(error))
                continue
            draft.tokens_in = len(row.tokens)
            if row.reads and not row.pictures:
                draft.failure = Failure("no_image", "a map is asked for, but the request has no image")
                continue
            if row.reads:
                draft.trace["map_layers"] = [_said(read.layers) for read in row.reads]
            options += [_Job(draft, each, place) for place, each in enumerate(scored)]
            answered = bool(request.decoding.max_tokens and not request.options)
            if answered and all(read.kind == "attention" for read in row.reads):
                answers.append(_Job(draft, row))  # its maps are read as its prompt passes
                continue
            if row.reads:
                maps.append(_Job(draft, row))
            if answered:
                answers.append(_Job(draft, dataclasses.replace(row, reads=())))
        self._run(maps, self._read_maps)
        self._run(options, self._score)
        self._run(answers, self._generate)

    # ------------------------------------------------------------ rows

    def _row(self, request: Request) -> Row:
        text = render(request, self._template, self._processor)
        tokens = self._family.tokenize(text, request.images)
        probes = [probe for probe in request.probes if not isinstance(probe, taps.Steering)]
        return Row(
            text=text,
            tokens=tokens.ids,
            starts=tokens.starts,
            pictures=request.images,
            decoding=request.decoding,
            seed=int(request.digest()[:16], 16) if request.decoding.temperature else 0,
            reads=tuple(self._read(probe) for probe in probes),
            keep=any(isinstance(probe, ReadMap) and probe.keep for probe in probes),
            steering=self._steering(request),
            prompt=text,
        )

    def _steering(self, request: Request) -> taps.Steering | None:
        found = [probe for probe in request.probes if isinstance(probe, taps.Steering)]
        if len(found) > 1:
            raise CapabilityError(f"one request, one steering probe; this one has {len(found)}")
        if found and request.options:
            raise CapabilityError("options are scored without decoding: there is nothing to steer")
        return found[0] if found and request.images else None

    def _read(self, probe: Probe) -> Read:
        if not isinstance(probe, ReadMap) or probe.needs not in self._offers:
            raise CapabilityError(f"{probe} cannot be served: {self._why_not or _offered(self._offers)}")
        if probe.kind == "pixels":
            return Read("pixels")
        if probe.layer == "all":
            return Read(probe.kind, tuple(range(self._layers)))
        layer = self._layer if probe.layer is None else probe.layer
        if not 0 <= layer < self._layers:
            raise CapabilityError(
                f"layer {layer} does not exist: this decoder has layers 0 to {self._layers - 1}"
            )
        return Read(probe.kind, (layer,))

    def _option(self, row: Row, option: str) -> Row:
        """The prompt, the option and the end token: scored from where it departs from the prompt."""
        gap = "" if row.text[-1:].isspace() else " "
        text = f"{row.text}{gap}{option}{self._tokenizer.eos_token or ''}"
        tokens = self._family.tokenize(text, row.pictures).ids
        common = next(
            (n for n, (a, b) in enumerate(zip(row.tokens, tokens, strict=False)) if a != b),
            min(len(row.tokens), len(tokens)),
        )
        if common == len(tokens):
            raise PromptError(f"the option {option!r} adds no token to the prompt; leave it out or reword it")
        return dataclasses.replace(row, text=text, tokens=tokens, tail=len(tokens) - common, reads=())

    # ------------------------------------------------------------ batches

    def _run(self, jobs: Sequence[_Job], work: Callable[[Sequence[_Job]], None]) -> None:
        """Work through the jobs batch by batch; what a batch takes is shared out over its rows."""
        pending = _ordered(jobs, self._family)
        while pending := [job for job in pending if job.draft.failure is None]:
            batch = self._next_batch(pending)
            self._family.ahead(job.row for job in pending[: 2 * len(batch)])  # this batch and the next
            started = time.perf_counter()
            done = self._attempt(batch, work)
            seconds = (time.perf_counter() - started) / len(batch)
            for job in batch:
                job.draft.seconds += seconds
            if done:
                pending = pending[len(batch) :]

    def _next_batch(self, pending: Sequence[_Job]) -> list[_Job]:
        kind = self._family.kind(pending[0].row)
        same = itertools.takewhile(lambda job: self._family.kind(job.row) == kind, pending)
        return list(itertools.islice(same, self.batch))

    def _attempt(self, batch: Sequence[_Job], work: Callable[[Sequence[_Job]], None]) -> bool:
        """Whether the batch is done; if not, its failures are noted or `self.batch` has shrunk."""
        try:
            work(batch)
            return True
        except Unfit as error:
            for place, failure in error.failures.items():
                batch[place].draft.failure = failure
            return False
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0]
        # Outside the handler: its traceback would keep the batch's tensors alive.
        self._family.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1:
            self.batch = len(batch) // 2
        else:
            message = f"a row of {len(batch[0].row.tokens)} tokens alone is too large: {reason}"
            batch[0].draft.failure = Failure("out_of_memory", message)
        return False

    # ------------------------------------------------------------ the three kinds of work

    def _read_maps(self, jobs: Sequence[_Job]) -> None:
        for job, maps in zip(jobs, self._family.maps([job.row for job in jobs]), strict=True):
            job.draft.maps = maps
            job.draft.passes += 1

    def _score(self, jobs: Sequence[_Job]) -> None:
        """Per row, the summed negative log-likelihood (nats) of its tail, and the tail's tokens."""
        rows = [job.row for job in jobs]
        inputs = self._family.prepare(rows)
        logits = self._family.logits(inputs, keep=max(row.tail for row in rows) + 1)
        lengths = inputs.mask.sum(dim=1).tolist()
        for place, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
            tail = inputs.ids[place, -job.row.tail :]
            chances = torch.log_softmax(logits[place, -job.row.tail - 1 : -1].float(), dim=-1)
            nll = float(-chances.gather(1, tail[:, None]).double().sum())
            if not math.isfinite(nll):
                job.draft.failure = self._not_finite("an option's likelihood", job.row)
            job.draft.options[job.option] = (nll, job.row.tail)
            job.draft.tokens_in = length - job.row.tail
            job.draft.passes += 1

    def _generate(self, jobs: Sequence[_Job]) -> None:
        rows = [job.row for job in jobs]
        inputs = self._family.prepare(rows)
        lengths = inputs.mask.sum(dim=1).tolist()
        decodings = [row.decoding for row in rows]
        limits = [
            self._limit(length, decoding.max_tokens)
            for length, decoding in zip(lengths, decodings, strict=True)
        ]
        finite = Finite()
        sampler = Sampler(decodings, [row.seed for row in rows])
        steering = rows[0].steering  # a batch is of one kind, and so of one steering
        steered: tuple[taps.Tap, ...] = ()
        if steering is not None:
            image = self._family.image_tokens(inputs)
            seeing = full_layers(self._weights.config.get_text_config())
            windows = frozenset(range(self._layers)).difference(seeing)
            prompt = taps.Prompt(image, inputs.mask, self._layers, windows)
            steered = (steering.tap(prompt),)
        reading = self._family.reading(rows, inputs) if any(row.reads for row in rows) else None
        with taps.active(*([] if reading is None else [reading.tap]), *steered):
            out = self._weights.generate(
                **inputs.whole(),
                max_new_tokens=max(limits),
                logits_processor=[finite, sampler],
                stopping_criteria=[Ending(decodings, limits, self._decode)],
            )
        sound = finite.steps()
        config = self._weights.config
        apart = config.is_encoder_decoder or config.get_text_config().is_encoder_decoder
        start = 1 if apart else inputs.ids.shape[1]  # of a decoder apart, its first token is given
        for place, (job, tokens) in enumerate(zip(jobs, out[:, start:].tolist(), strict=True)):
            ended = finish(tokens, limits[place], self._ends, job.row.decoding, self._decode)
            if sound[place] < ended.steps:
                job.draft.failure = self._not_finite(f"the scores of token {sound[place] + 1}", job.row)
            job.draft.text = ended.text
            job.draft.finish_reason = ended.finish_reason
            job.draft.tokens_in = lengths[place]
            job.draft.tokens_out = ended.tokens
            job.draft.passes += ended.steps
            for tap in steered:
                seen = self._family.place(job.row.pictures[0])
                job.draft.trace.update({**tap.trace(place, ended.steps), **seen})
        for job, maps in zip(jobs, reading.maps() if reading else [], strict=bool(reading)):
            job.draft.maps = maps

    def _not_finite(self, what: str, row: Row) -> Failure:
        dtype = str(self._weights.dtype).removeprefix("torch.")
        remedies = ["check the weights"]
        if dtype == "float16":
            remedies.insert(0, "use dtype=bfloat16 or float32")
        if row.steering is not None:
            remedies.insert(0, "steer less, or for fewer tokens")
        return Failure("not_finite", f"{what} are no numbers in {dtype}: {'; '.join(remedies)}")

    def _limit(self, length: int, max_tokens: int) -> int:
        """New tokens allowed: what was asked for, or what the context has left."""
        return max_tokens if self._context is None else min(max_tokens, max(1, self._context - length))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


# ---------------------------------------------------------------- small parts


def _key(request: Request) -> str | Failure:
    """Equal requests have equal keys. A picture that cannot be read fails here."""
    try:
        return request.digest()
    except PictureError as error:
        return Failure(error.kind, str(error))


def _ordered(jobs: Sequence[_Job], family: Family) -> list[_Job]:
    """Rows of a kind together, rows with the same beginning side by side, long ones first."""
    groups: dict[tuple[object, ...], list[_Job]] = {}
    for job in jobs:
        begin = family.prefix(job.row) or (id(job),)
        groups.setdefault((family.kind(job.row), begin), []).append(job)
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(kind for kind, _ in groups))}

    def place(group: tuple[object, ...]) -> tuple[int, int]:
        return kinds[group[0]], -max(len(job.row.tokens) for job in groups[group])

    return [
        job
        for group in sorted(groups, key=place)
        for job in sorted(groups[group], key=lambda job: -len(job.row.tokens))
    ]


def _offered(offers: frozenset[Capability]) -> str:
    return f"this model, as it was loaded, offers {', '.join(sorted(offers)) or 'generate only'}"


def _said(layers: tuple[int, ...]) -> Json:
    """A map's layer; None for one that has none, a list where it is a mean."""
    return list(layers) if len(layers) > 1 else next(iter(layers), None)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's own error, or what PyTorch says when the machine's memory is spent."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    signs = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(sign in text for sign in signs)


def _end_tokens(weights: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the checkpoint's generation config, otherwise the tokenizer's."""
    ends = weights.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list) else [ends])
