"""White-box methods beside what their papers' code does: CPU seconds, and memory over the weights.

    python -m benchmarks.whitebox [maps pipeline memory sparc gradient large] [--runs 5] [--json FILE]

Each part runs in a process of its own, one thread, on a LLaVA-1.5 of random weights (hidden 1024, 8 layers,
16 heads, 576 image tokens, maps of layer 3) and pictures never seen before; the reference's schedule and
ours take turns, in an order that changes from run to run. Times are the process's CPU time, which work on
the same machine disturbs least. Printed: medians, the ratio per run (median, least to greatest), and beside
it the same ratio between two measurements of one and the same thing (A/A), which is what noise alone does.

The reference is saccharomycetes/mllms_know, commit a64c5d5 (`llava_methods.py`, `run.py`): eager attention,
`output_attentions=True`, batch 1, each forward from the beginning; in float32. It records a graph wherever
the released code does: in every forward but `generate`'s, weights and all, and frees it with the outputs.
Its boxes are made by our (bit-equal, faster) arithmetic. The answers, boxes and maps of both must be equal.
Prompts have some 32 tokens after the picture (printed), about what the released ones should have with
LLaVA-1.5's tokenizer (an estimate); the one here knows fewer words, so the instruction is a shorter one.
`large` wants CUDA and says what LLaVA-1.5-7B's sizes cost.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PARTS = ("maps", "pipeline", "memory", "sparc", "gradient", "large")
LAYER = 3
TOKENS = 20
INSTRUCTION = " Answer in a word."
GENERAL = "Write a general description of the image."
QUESTIONS = (
    "What is the color of the bus?",
    "Is there a cup on the table?",
    "What does the red sign read?",
    "Are there two dogs on the grass?",
)
TABLE_4 = {"rel_att": 1.16, "grad_att": 0.89, "pure_grad": 2.36}
"""Seconds per sample of ViCrop's paper, LLaVA-1.5 on a GPU without a name; the plain answer takes 0.17."""


@dataclass(frozen=True)
class Row:
    """ours, reference: in `unit`. ratios: one per run, as `target` counts them. same: A/A ratios."""

    what: str
    unit: str
    ours: float
    reference: float
    ratios: tuple[float, ...]
    same: tuple[float, ...]
    target: str

    def __str__(self) -> str:
        ratio = statistics.median(self.ratios)
        spread = f"{_short(min(self.ratios))}-{_short(max(self.ratios))}"
        same = f"{_short(min(self.same))}-{_short(max(self.same))}" if self.same else ""
        return (
            f"{self.what:<46} {self.ours:>8.4g} {self.reference:>9.4g} {self.unit:<3}"
            f" {_short(ratio):>6} {spread:>11} {same:>11}  {self.target}"
        )


def _short(ratio: float) -> str:
    """Thousandths where a ratio is about 1, otherwise three figures."""
    return f"{ratio:.3f}" if ratio < 1.5 else f"{ratio:.3g}"


HEAD = f"{'':<46} {'ours':>8} {'reference':>9}     {'ratio':>6} {'over runs':>11} {'A/A':>11}  target"


# ---------------------------------------------------------------- models


def checkpoint(folder: Path) -> Path:
    """The mid-size LLaVA."""
    from tests import tiny

    return tiny.llava(folder, side=336, patch=14, hidden=1024, layers=8, heads=16, kv_heads=16, context=2048)


def after_picture(question: str) -> str:
    """The released prompt's text."""
    return f"\nUSER: {question}{INSTRUCTION}\nASSISTANT:"


def said_tokens(folder: Path) -> str:
    """How many tokens of text follow the picture."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    counts = [len(tokenizer.tokenize(after_picture(question))) for question in (*QUESTIONS, GENERAL)]
    return (
        f"tokens after the picture: {', '.join(map(str, counts[:-1]))}; the general question's {counts[-1]}"
    )


def photo(seed: int) -> Any:
    """Made once: see `drawn`."""
    from tests import tiny

    return tiny.photo(seed, 640, 480)


def drawn(number: int) -> None:
    """Make so many pictures, so that drawing them is not timed."""
    for seed in range(number):
        photo(seed)


def ours(folder: Path) -> Any:
    from adapters import hf

    return hf.model(str(folder), device="cpu", dtype="float32", template="vicrop")


class Reference:
    """The released schedule, in our words: every call alone, eager, from the picture on."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self.model = LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")

    def inputs(self, question: str, *images: Any) -> Any:
        prompt = "<image>" * len(images) + after_picture(question)
        return self.processor(text=prompt, images=list(images) or None, return_tensors="pt")

    def answer(self, question: str, *images: Any) -> str:
        import torch

        with torch.no_grad():
            inputs = self.inputs(question, *images)
            out = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def attention(self, question: str, image: Any) -> Any:
        """(24, 24), the last token's attention to the image, averaged over the heads."""
        inputs = self.inputs(question, image)
        row = self.model(**inputs, output_attentions=True).attentions[LAYER][0, :, -1]
        return self._grid(inputs, row)

    def gradient(self, question: str, image: Any) -> Any:
        """(24, 24), that attention times the positive part of its gradient: of the whole matrix."""
        import torch

        inputs = self.inputs(question, image)
        with torch.enable_grad():
            out = self.model(**inputs, output_attentions=True)
            logits = out.logits[:, -1]
            loss = -torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1))
            attention = out.attentions[LAYER]
            (gradient,) = torch.autograd.grad(loss, attention, retain_graph=True)
            weighted = attention * gradient.relu()
        return self._grid(inputs, weighted[0, :, -1].detach())

    def _grid(self, inputs: Any, rows: Any) -> Any:
        start = inputs["input_ids"][0].tolist().index(self.model.config.image_token_id)
        return rows[:, start : start + 576].mean(dim=0).detach().reshape(24, 24).numpy()

    def vicrop(self, question: str, image: Any) -> tuple[str, str, tuple[float, ...]]:
        """The original answer, the answer with the crop, and the box."""
        from methods._boxes import attention_box

        original = self.answer(question, image)
        relative = self.attention(question, image) / self.attention(GENERAL, image)
        box = attention_box(relative, image.size, 336, "released")
        return original, self.answer(question, image, image.crop(box)), box


def request(question: str, picture: Any, **changes: Any) -> Any:
    from harness.types import Decoding, Request

    asked = Request(
        question=question, instruction=INSTRUCTION, images=(picture,), decoding=Decoding(max_tokens=TOKENS)
    )
    return replace(asked, **changes)


def read(question: str, picture: Any, **probe: Any) -> Any:
    """A request for a map alone."""
    from harness.types import Decoding, ReadMap

    return request(question, picture, decoding=Decoding(max_tokens=0), probes=(ReadMap(LAYER, **probe),))


def sound(responses: Sequence[Any]) -> Sequence[Any]:
    for response in responses:
        if response.failure is not None:
            raise SystemExit(f"a request failed: {response.failure}")
    return responses


# ---------------------------------------------------------------- timing

Turn = Callable[[int], Any]
"""Something to be measured: given the number of a picture, its result."""


def taking_turns(
    turns: dict[str, Turn], runs: int, agree: Callable[[dict[str, Any]], None]
) -> dict[str, list[float]]:
    """CPU seconds of each, per run; each run has pictures of its own, and the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    order = random.Random(0)
    for run in range(runs + 1):
        found = {}
        for name in order.sample(sorted(turns), len(turns)):
            began = time.process_time()
            found[name] = turns[name](run)
            seconds[name].append(time.process_time() - began)
        agree(found)
    return {name: taken[1:] for name, taken in seconds.items()}


def times_cheaper(what: str, seconds: dict[str, list[float]], name: str, target: str, again: str = "") -> Row:
    """again: a second measurement of the same as `name`."""
    mine, theirs = seconds[name], seconds["reference"]
    return Row(
        what,
        "s",
        statistics.median(mine),
        statistics.median(theirs),
        tuple(t / m for t, m in zip(theirs, mine, strict=True)),
        tuple(a / m for a, m in zip(seconds[again], mine, strict=True)) if again else (),
        target,
    )


def close(a: Any, b: Any, what: str) -> None:
    import numpy as np

    if not np.allclose(a, b, rtol=1e-3, atol=1e-9 + 1e-4 * float(np.abs(b).max())):
        raise SystemExit(f"the two found different {what}, by up to {np.abs(a - b).max()}")


# ---------------------------------------------------------------- parts


def maps(folder: Path, runs: int) -> Iterator[Row]:
    """Both maps of rel_att, and the four questions of one picture, which share the general one."""
    model, reference = ours(folder), Reference(folder)
    drawn(4 * (runs + 1))

    def mine(run: int, questions: Sequence[str], second: bool) -> list[Any]:
        # Neither the second measurement nor more questions may find what is kept of a picture.
        picture = photo(4 * run + 2 * (len(questions) > 1) + second)
        wave = [read(text, picture) for question in questions for text in (question, GENERAL)]
        return [response.maps[0].values for response in sound(model.generate(wave))]

    def theirs(run: int, questions: Sequence[str]) -> list[Any]:
        image = photo(4 * run + 2 * (len(questions) > 1)).open()
        return [reference.attention(text, image) for question in questions for text in (question, GENERAL)]

    def agree(found: dict[str, Any]) -> None:
        for a, b in zip(found["ours"], found["reference"], strict=True):
            close(a, b, "maps")

    for number, target in ((1, ">= 4.5"), (4, "")):
        asked = QUESTIONS[:number]
        turns: dict[str, Turn] = {
            "ours": lambda run, asked=asked: mine(run, asked, False),
            "again": lambda run, asked=asked: mine(run, asked, True),
            "reference": lambda run, asked=asked: theirs(run, asked),
        }
        seconds = taking_turns(turns, runs, agree)
        yield times_cheaper(f"rel_att's maps, {number} per picture", seconds, "ours", target, "again")


def vicrop_pipeline(model: Any, picture: Any, questions: Sequence[str]) -> list[tuple[str, str, Any]]:
    """As runs do it: the identity arm's list, then the method's."""
    from methods.vicrop import Vicrop

    wave = [request(question, picture) for question in questions]
    original = sound(model.generate(wave))
    cropped = sound(Vicrop(model, layer=LAYER, fidelity="released").generate(wave))
    return [(a.text, b.text, tuple(b.trace["box"])) for a, b in zip(original, cropped, strict=True)]


def side_by_side(model: Any, picture: Any, questions: Sequence[str]) -> list[tuple[str, str, Any]]:
    """All maps first; then the original answers in one list with those that see the crop."""
    from methods._boxes import attention_box

    looks = [read(question, picture, keep=True) for question in (*questions, GENERAL)]
    *specific, general = sound(model.generate(looks))
    boxes = [
        attention_box(each.maps[0].values / general.maps[0].values, picture.size, 336, "released")
        for each in specific
    ]
    asked = [request(question, picture) for question in questions]
    crops = [replace(one, images=(picture, picture.crop(box))) for one, box in zip(asked, boxes, strict=True)]
    answers = sound(model.generate([*asked, *crops]))
    originals, finals = answers[: len(asked)], answers[len(asked) :]
    return [(a.text, b.text, box) for a, b, box in zip(originals, finals, boxes, strict=True)]


def pipeline(folder: Path, runs: int) -> Iterator[Row]:
    """The original answer, two maps, and the answer with the crop."""
    model, reference = ours(folder), Reference(folder)
    drawn(4 * (runs + 1))
    copies = {(run, n): renamed(photo(4 * run + n % 2)) for run in range(runs + 1) for n in (1, 4)}

    def theirs(run: int, number: int) -> list[Any]:
        image = photo(4 * run + number % 2).open()
        return [reference.vicrop(question, image) for question in QUESTIONS[:number]]

    def agree(found: dict[str, Any]) -> None:
        for name in ("ours", "side by side"):
            if name in found and found[name] != found["reference"]:
                raise SystemExit(f"different answers: {found[name]} and {found['reference']}")

    for number, target in ((1, ">= 2.3"), (4, ">= 3")):
        asked = QUESTIONS[:number]
        turns: dict[str, Turn] = {
            "ours": lambda run, asked=asked: vicrop_pipeline(model, photo(4 * run + len(asked) % 2), asked),
            "again": lambda run, asked=asked: vicrop_pipeline(
                model, photo(4 * run + 2 + len(asked) % 2), asked
            ),
            "reference": lambda run, number=number: theirs(run, number),
        }
        turns["side by side"] = lambda run, asked=asked: side_by_side(model, copies[run, len(asked)], asked)
        seconds = taking_turns(turns, runs, agree)
        what = f"ViCrop, both arms, {number} per picture"
        yield times_cheaper(what, seconds, "ours", "", "again")
        yield times_cheaper("  the same, both answers in one list", seconds, "side by side", target)


def gradient(folder: Path, runs: int) -> Iterator[Row]:
    """grad_att's map: from the picture on, and where a map was read of the same picture before."""
    model, reference = ours(folder), Reference(folder)
    drawn(3 * (runs + 1))

    def scratch(run: int, offset: int) -> Any:
        return sound(model.generate([read(QUESTIONS[0], photo(3 * run + offset), kind="gradient")]))

    def cached(run: int) -> Any:
        return sound(model.generate([read(QUESTIONS[0], kept[run], kind="gradient")]))

    kept: dict[int, Any] = {}

    def reference_turn(run: int) -> Any:
        return reference.gradient(QUESTIONS[0], photo(3 * run).open())

    def agree(found: dict[str, Any]) -> None:
        for name in ("ours", "cached"):
            close(found[name][0].maps[0].values, found["reference"], "gradients")

    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "again", "cached", "reference")}
    for run in range(runs + 1):
        kept[run] = renamed(photo(3 * run))
        found: dict[str, Any] = {}
        turns: dict[str, Turn] = {
            "ours": lambda run: scratch(run, 0),
            "again": lambda run: scratch(run, 1),
            "reference": reference_turn,
            "cached": cached,
        }
        for name in random.Random(run).sample(sorted(turns), len(turns)):
            if name == "cached":  # what another map of the picture has left behind
                sound(model.generate([read(GENERAL, kept[run], keep=True)]))
            began = time.process_time()
            found[name] = turns[name](run)
            if run:
                seconds[name].append(time.process_time() - began)
        agree(found)
    yield times_cheaper("grad_att's map", seconds, "ours", ">= 1.7", "again")
    yield times_cheaper("grad_att's map, its beginning kept", seconds, "cached", ">= 15")


def renamed(picture: Any) -> Any:
    """Equal pixels, another digest: nothing kept of `picture` is found."""
    import io

    from harness.pictures import Memory, Picture

    data = io.BytesIO()
    picture.open().save(data, "BMP")
    return Picture(Memory(data.getvalue(), "copy.bmp"))


# ---------------------------------------------------------------- memory


def memory(folder: Path, runs: int) -> Iterator[Row]:
    """The greatest resident size less what it was with the weights in: of a process per measurement."""
    for what, unit in (("maps", "two maps"), ("pipeline", "ViCrop, both arms"), ("gradient", "grad_att")):
        found: dict[str, list[float]] = {"ours": [], "again": [], "reference": []}
        for _ in range(runs):
            for name in found:
                variant = "reference" if name == "reference" else "ours"
                found[name].append(float(child("peak", folder, 1, variant, what)[0]))
        yield Row(
            f"memory over the weights, {unit}",
            "MB",
            statistics.median(found["ours"]),
            statistics.median(found["reference"]),
            tuple(o / r for o, r in zip(found["ours"], found["reference"], strict=True)),
            tuple(a / o for a, o in zip(found["again"], found["ours"], strict=True)),
            "<= 0.4",
        )


def peak(folder: Path, variant: str, what: str) -> float:
    """MB over the weights while one picture is worked on. Run in a process of its own."""
    picture = photo(1)
    image, question = picture.open(), QUESTIONS[0]
    work: Callable[[], Any]
    if variant == "reference":
        reference = Reference(folder)
        reference.answer(question)  # weights are in memory once they have been used
        work = {
            "maps": lambda: (reference.attention(question, image), reference.attention(GENERAL, image)),
            "pipeline": lambda: reference.vicrop(question, image),
            "gradient": lambda: reference.gradient(question, image),
        }[what]
    else:
        model = ours(folder)
        sound(model.generate([request(question, picture, images=())]))
        work = {
            "maps": lambda: model.generate([read(question, picture), read(GENERAL, picture)]),
            "pipeline": lambda: vicrop_pipeline(model, picture, [question]),
            "gradient": lambda: model.generate([read(question, picture, kind="gradient")]),
        }[what]
    with sampled_rss() as rss:
        before = rss[0]
        work()
    return (max(rss) - before) / 1e6


@contextmanager
def sampled_rss() -> Iterator[list[int]]:
    """Bytes resident, now and every two milliseconds."""
    page = os.sysconf("SC_PAGE_SIZE")

    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    samples, done = [now()], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(now())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


# ---------------------------------------------------------------- SPARC

STEPS = 40
"""Decoded tokens per run, each with a paired ratio."""


class Decoding:
    """One generation that advances by a token a call, so that several take turns."""

    def __init__(self, model: Any, kernel: str, ids: Any, pixels: Any, taps: Sequence[Any] = ()) -> None:
        import torch
        from transformers import DynamicCache

        self.model, self.kernel, self.taps = model, kernel, taps
        self.cache = DynamicCache()
        self.mask = torch.ones_like(ids)
        self.seconds: list[float] = []
        self._forward(input_ids=ids, pixel_values=pixels)

    def _forward(self, **inputs: Any) -> float:
        import torch

        from harness import taps

        self.model.set_attn_implementation({"text_config": self.kernel})
        with torch.no_grad(), taps.active(*self.taps):
            began = time.thread_time()
            out = self.model(
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
                **inputs,
            )
            taken = time.thread_time() - began
        self.next = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.next)], dim=1)
        return taken

    def fork(self, kernel: str) -> Decoding:
        """The same generation, without taps, from here on."""
        other = copy.copy(self)
        other.kernel, other.taps, other.cache, other.seconds = kernel, (), copy.deepcopy(self.cache), []
        return other

    def step(self) -> None:
        self.seconds.append(self._forward(input_ids=self.next))


class EagerSparc:
    """SPARC as released (mingi000508/SPARC: attn_util.py), for batch 1, as an attention kernel of its own.

    All weights of each layer are made; the values of what the step before selected are scaled in place.
    """

    def __init__(self, image: Any, alpha: float, beta: float, tau: float, layer: int) -> None:
        self.places = image[0].nonzero().flatten()
        self.first, self.number = int(self.places[0]), len(self.places)
        self.alpha, self.beta, self.tau, self.layer = alpha, beta, tau, layer
        self.average: Any = None
        self.chosen: Any = None
        self.coming: Any = None

    def __call__(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
    ) -> tuple[Any, None]:
        import torch

        step = query.shape[2] == 1
        if step and module.layer_idx == 0:
            self.chosen, self.coming = self.coming, None
        if step and self.chosen is not None:
            value[:, :, self.chosen] *= self.alpha
        scores = torch.matmul(query, key.transpose(2, 3)) * scaling
        if mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        if module.layer_idx == self.layer:
            looked = weights[0, :, -1, self.first : self.first + self.number].mean(dim=0)
            if step:
                hit = (looked - self.average) / self.average >= self.tau
                self.coming = self.places[hit.nonzero().flatten()]
                looked = (1 - self.beta) * looked + self.beta * self.average
            self.average = looked
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def sparc(folder: Path, runs: int) -> Iterator[Row]:
    """A decoded token with SPARC, beside plain SDPA; at the released setting and far below its threshold.

    And beside the identity arm, whose one token a step takes the same kernel as SPARC's.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    from harness import taps
    from methods.sparc import SparcSteering

    taps.register()
    AttentionMaskInterface.register("whole", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for batch, tau, target in ((1, 1.5, "<= 1.03"), (8, 1.5, "<= 1.03"), (1, 0.1, "")):
        found: dict[str, list[list[float]]] = {
            name: [] for name in ("sdpa", "again", "sparc", "identity", "eager")
        }
        selected = []
        for run in range(runs):
            draw = torch.Generator().manual_seed(run)
            ids = torch.randint(5, model.config.text_config.vocab_size, (batch, 620), generator=draw)
            ids[:, 1:577] = model.config.image_token_id
            pixels = torch.randn(batch, 3, 336, 336, generator=draw)
            image = ids == model.config.image_token_id
            steering = SparcSteering(1.1, 0.1, tau, 5, None, "relative", 0, False)
            tap = steering.tap(taps.Prompt(image, torch.ones_like(ids), 8))
            steered = Decoding(model, taps.KERNEL, ids, pixels, (tap,))  # of the prompt, it only reads
            ways = {name: steered.fork("sdpa") for name in ("sdpa", "again")}
            ways |= {"sparc": steered, "identity": steered.fork(taps.KERNEL)}
            if batch == 1:
                AttentionInterface.register("whole", EagerSparc(image, 1.1, 0.1, tau, 5))
                ways["eager"] = Decoding(model, "whole", ids, pixels)
            order = random.Random(run)
            for _ in range(STEPS):
                for name in order.sample(sorted(ways), len(ways)):
                    ways[name].step()
                if batch == 1 and not torch.equal(ways["sparc"].next, ways["eager"].next):
                    raise SystemExit("SPARC and its reference chose different tokens")
            counts = [tap.trace(row, STEPS)["selected_per_step"] for row in range(batch)]
            selected.append(statistics.mean(n for per in counts for n in per))
            for name, way in ways.items():
                found[name].append(way.seconds)
        rows = [
            (
                f"SPARC, batch {batch}, {statistics.median(selected):.0f} selected a step",
                "sparc",
                "sdpa",
                target,
            ),
            ("  the same, beside the identity arm", "sparc", "identity", ""),
            ("  SPARC as released, eager", "eager", "sdpa", ""),
        ]
        yield from (
            step_cost(label, found, name, than, goal) for label, name, than, goal in rows if found[name]
        )


def step_cost(what: str, found: dict[str, list[list[float]]], name: str, than: str, target: str) -> Row:
    """found: seconds of each step of each run, by way."""
    ratios, same = (
        tuple(
            statistics.median(b / a for a, b in zip(plain, other, strict=True))
            for plain, other in zip(found[before], found[after], strict=True)
        )
        for before, after in ((than, name), ("sdpa", "again"))
    )
    mine, theirs = (1000 * statistics.median(itertools.chain(*found[way])) for way in (name, than))
    return Row(what, "ms", mine, theirs, ratios, same, target)


# ---------------------------------------------------------------- at the real size


def large(folder: Path, runs: int) -> Iterator[Row]:
    """Seconds per sample of each method beside the plain answer, at LLaVA-1.5-7B's sizes, on CUDA.

    The reference's column is the plain answer; the target's is what the paper's Table 4 says for the map.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from adapters import hf
    from methods.sparc import Sparc
    from methods.vicrop import Vicrop

    if not torch.cuda.is_available():
        print("large: no CUDA here", file=sys.stderr)
        return
    small = json.loads((folder / "config.json").read_text())  # its tokenizer and image processor stay
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
        image_token_index=small.get("image_token_index", small.get("image_token_id")),
    )
    with torch.device("cuda"):
        made = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    made.save_pretrained(folder)
    del made
    torch.cuda.empty_cache()
    model = hf.model(str(folder), device="cuda", dtype="bfloat16", template="vicrop")
    ways: dict[str, Any] = {
        "plain": model,
        "rel_att": Vicrop(model),
        "grad_att": Vicrop(model, locate="grad_att"),
        "pure_grad": Vicrop(model, locate="pure_grad"),
        "sparc": Sparc(model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for place, name in enumerate(random.Random(run).sample(sorted(ways), len(ways))):
            wave = [request(QUESTIONS[0], photo(len(ways) * run + place))]
            torch.cuda.synchronize()
            began = time.perf_counter()
            sound(ways[name].generate(wave))
            torch.cuda.synchronize()
            if run:
                seconds[name].append(time.perf_counter() - began)
    plain = seconds.pop("plain")
    for name, taken in seconds.items():
        paper = f"paper's map {TABLE_4[name]} s, answer 0.17 s" if name in TABLE_4 else ""
        ratios = tuple(b / a for a, b in zip(plain, taken, strict=True))
        yield Row(
            f"{name}, 7B, beside the plain answer",
            "s",
            statistics.median(taken),
            statistics.median(plain),
            ratios,
            (),
            paper,
        )


# ---------------------------------------------------------------- command line


def child(part: str, folder: Path, runs: int, *more: str) -> list[Any]:
    """What a part finds, in a process of its own with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if part != "peak":  # memory once got stays, or a growing cache times the kernel's zeroing of pages
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    command = [sys.executable, "-m", "benchmarks.whitebox", "--runs", str(runs), "--child", part]
    done = subprocess.run(
        [*command, str(folder), *more], stdout=subprocess.PIPE, check=True, text=True, env=environment
    )
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_child(part: str, folder: Path, more: Sequence[str], runs: int) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if part == "peak":
        print(json.dumps([peak(folder, *more)]))
        return
    parts = {"maps": maps, "pipeline": pipeline, "sparc": sparc, "gradient": gradient, "large": large}
    print(json.dumps([asdict(row) for row in parts[part](folder, runs)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}; all, if none is named"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        part, folder, *more = args.child
        run_child(part, Path(folder), more, args.runs)
        return
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts: {' '.join(sorted(unknown))}")

    rows: list[Row] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as made:
        folder = checkpoint(Path(made) / "llava")
        print(said_tokens(folder))
        for part in args.parts or PARTS:
            if part == "memory":
                found = memory(folder, args.runs)
            else:
                found = (Row(**row) for row in child(part, folder, args.runs))
            for row in found:
                rows.append(row)
                print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
