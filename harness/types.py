"""The eight words that all rooms share: data that crosses between them, and the shape of their parts.

Everything here is a frozen value or a Protocol; nothing here runs anything, reads a file or knows a
benchmark, a model or a paper. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from harness.errors import CapabilityError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from harness.pictures import Picture

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
Box: TypeAlias = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels of the picture it belongs to; x2 and y2 are outside."""

Fidelity: TypeAlias = Literal["fixed", "released"]
"""`fixed`: what the paper means, the released code's bugs repaired; `released`: quirk for quirk."""


class Capability(StrEnum):
    """What a model offers beyond generating text."""

    ATTENTION = "attention"
    GRADIENT = "gradient"
    STEERING = "steering"
    LIKELIHOOD = "likelihood"


# ---------------------------------------------------------------- what goes in


@dataclass(frozen=True)
class Sample:
    """What the dataset says about one question. A model never sees one."""

    id: str
    images: tuple[Picture, ...] = ()
    question: str = ""
    targets: tuple[str, ...] = ()
    category: str | None = None
    meta: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoding:
    """How text is generated.

    max_tokens: new tokens at most; 0 asks for no text (only for probes or option likelihoods).
    temperature: 0 is greedy. top_p: nucleus, None for the whole distribution. stop: texts that end it.
    seed: of the sampler; the same seed gives the same text from a local model.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be 0 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


@dataclass(frozen=True)
class Hints:
    """What a task may tell a method beside the prompt.

    short_question: the question without options or instructions, for attention maps.
    region: the target's box, handed on in oracle runs only, and never ranked.
    """

    short_question: str | None = None
    region: Box | None = None


@runtime_checkable
class Probe(Protocol):
    """Something a white-box method wants of a forward pass: a frozen dataclass, part of the digest."""

    @property
    def needs(self) -> Capability: ...


@dataclass(frozen=True)
class ReadMap:
    """Ask for an importance map of the last prompt token over the first image.

    layer: 0-based decoder layer; "all" is the mean over all of them; None is the adapter's default of its
    family. kind: `attention` is the head-mean attention row over the image's tokens; `gradient` is the
    head-mean of that row times the positive part of its gradient; `pixels` is the gradient's norm at each
    pixel of the model's input, and has no layer. Both gradients are of log p of the likeliest next token.
    keep: a request that begins with the same pictures will follow, so what they cost is worth keeping;
    it changes no map.
    """

    layer: int | Literal["all"] | None = None
    kind: Literal["attention", "gradient", "pixels"] = "attention"
    keep: bool = False

    @property
    def needs(self) -> Capability:
        return Capability.ATTENTION if self.kind == "attention" else Capability.GRADIENT


@dataclass(frozen=True)
class Request:
    """What crosses the boundary to a model. The prompt is `question` + `instruction`, nothing between.

    images: pictures in prompt order. options: texts to be scored instead of generating.
    probes: what white-box methods want of the forward pass.
    """

    images: tuple[Picture, ...] = ()
    question: str = ""
    instruction: str = ""
    system: str | None = None
    decoding: Decoding = Decoding()
    hints: Hints = Hints()
    options: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()

    @property
    def text(self) -> str:
        """The user's text as sent."""
        return self.question + self.instruction

    def digest(self) -> str:
        """sha256 over everything a model can see: pixels, words, decoding, options and probes."""
        decoding = self.decoding
        seen = [
            [picture.digest for picture in self.images],
            self.text,
            self.system,
            # A greedy answer does not depend on the seed.
            [
                decoding.max_tokens,
                decoding.temperature,
                decoding.top_p,
                decoding.seed if decoding.temperature else None,
                decoding.stop,
            ],
            self.options,
            [[type(probe).__qualname__, dataclasses.asdict(probe)] for probe in self.probes],  # type: ignore[call-overload]
        ]
        return digest(seen)


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Usage:
    """What an answer cost; sums with `+`.

    seconds: time spent on it (a batch's time is shared out over its requests). dollars: None is
    unknown, and an unknown part makes the sum unknown.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    images: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    dollars: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        both_known = self.dollars is not None and other.dollars is not None
        return Usage(
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.images + other.images,
            self.forward_passes + other.forward_passes,
            self.seconds + other.seconds,
            self.dollars + other.dollars if both_known else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class Failure:
    """Why there is no answer. `kind` is a short stable word; `retry`: whether asking again may help."""

    kind: str
    message: str
    retry: bool = False


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """An importance map over one image.

    values: float32 (rows, cols), row 0 at the top. rectangle: the pixel rectangle of the *original*
    picture that the grid covers; a model that centre-crops does not see the sides.
    """

    values: npt.NDArray[np.float32]
    rectangle: Box


@dataclass(frozen=True)
class Response:
    """An answer, or the failure that stands in its place.

    trace: JSON that shows how a method came to it. maps: one per `ReadMap` probe, in their order.
    option_nll: per option, the summed negative log-likelihood of its tokens in nats and their number.
    """

    text: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    trace: Mapping[str, Json] = field(default_factory=dict)
    maps: tuple[ImportanceMap, ...] = ()
    option_nll: tuple[tuple[float, int], ...] = ()
    failure: Failure | None = None

    @classmethod
    def failed(cls, kind: str, message: str, *, retry: bool = False, usage: Usage = Usage()) -> Response:
        """A response that holds a failure and what was spent on it."""
        return cls(finish_reason="failure", usage=usage, failure=Failure(kind, message, retry))


# ---------------------------------------------------------------- the parts


@dataclass(frozen=True)
class Pace:
    """How a model likes its work.

    group: requests per `generate` that fill it comfortably. in_flight: groups at once (more than 1 only
    for models that wait on a wire). free: its answers cost nothing, so none is worth caching.
    """

    group: int = 64
    in_flight: int = 1
    free: bool = False


class Model(Protocol):
    """Anything that answers requests: an adapter, or a method around one."""

    @property
    def offers(self) -> frozenset[Capability]: ...

    @property
    def pace(self) -> Pace: ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON: part of a run's identity and the cache's key."""

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """One response per request, in order. Raises only for what concerns every request."""


@dataclass(frozen=True)
class Method:
    """A model made of a model: the base of every method. A subclass's further fields are its knobs.

    Opaque by default: what the attention behind a merged answer means, nobody knows.
    """

    model: Model
    name: ClassVar[str]

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def pace(self) -> Pace:
        return self.model.pace

    @property
    def oracle(self) -> bool:
        """Whether it, or a method inside it, looks at the target's region."""
        return bool(getattr(self.model, "oracle", False))

    def rehearsed(self) -> Method:
        """What stands in its place where only the cost is asked for: sends as many requests as it itself
        could, and loads nothing."""
        return self

    def describe(self) -> dict[str, Any]:
        knobs: dict[str, Any] = {"method": self.name}
        for knob in dataclasses.fields(self):
            value = getattr(self, knob.name)
            knobs[knob.name] = value.describe() if hasattr(value, "describe") else value
        return knobs

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        raise NotImplementedError(f"{type(self).__name__} defines no generate()")


def require(model: Model, capability: Capability, who: str, remedy: str) -> None:
    """Raise `CapabilityError` unless `model` offers `capability`. Asked when a method is constructed."""
    if capability in model.offers:
        return
    described = model.describe()
    name = described.get("method") or described.get("model") or described.get("adapter")
    offered = ", ".join(sorted(model.offers)) or "generate only"
    why = getattr(model, "why_not", "")  # a model may say why not
    raise CapabilityError(f"{who} needs {capability}; {name} offers {offered}{why and f' ({why})'}. {remedy}")


class Journal(Protocol):
    """A small store of JSON values that outlives a run. A factory with a parameter `journal: Journal | None`
    gets one of its own (None: the run keeps nothing); it is no knob."""

    def get(self, key: str) -> Json: ...
    def put(self, key: str, value: Json) -> None: ...
    def delete(self, key: str) -> None: ...
    def keys(self) -> list[str]: ...


class Metric(Protocol):
    """Counts per sample, and a reduction of many counts to named numbers.

    scope: `sample` if the counts of a sample depend on it alone, so that intervals, pairing and
    rescoring are free; `corpus` if it is measured once, at the end, over all samples.
    additive: `reduce` of a list equals `reduce` of the one dict that holds its sums key by key, which
    makes a bootstrap a matrix product. A reduction that is undefined (0/0) is None.
    """

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def scope(self) -> Literal["sample", "corpus"]: ...
    @property
    def additive(self) -> bool: ...
    @property
    def higher_is_better(self) -> Mapping[str, bool]: ...

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[Any]:
        """Counts (any JSON) per sample, in order; responses hold the task's post-processed text."""

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        """Named numbers over many samples."""


@dataclass(frozen=True)
class Task:
    """A benchmark under one protocol: its samples, its words and its metrics.

    fingerprint: sha256 of the annotation bytes or the hub revision. request: the prompt of a sample.
    postprocess: the protocol's mending of a raw text before it is measured. primary: the name of the
    number that ranks, one of the first metric's. breakdowns: keys of the samples' meta (texts, or lists of
    them) by which scores are also shown, beside the category. spec: as the user named it; a way to make the
    task again, and no part of its identity.

    The file of a task whose test split has no answers also exports `submission(pairs)`: the evaluation
    server's file, as JSON, from (sample, post-processed text) pairs.
    """

    name: str
    version: str
    protocol: str
    fingerprint: str
    samples: Sequence[Sample]
    request: Callable[[Sample], Request]
    metrics: tuple[Metric, ...]
    primary: str
    postprocess: Callable[[str], str] = str.strip
    breakdowns: tuple[str, ...] = ()
    spec: str = ""


# ---------------------------------------------------------------- retrieval


@dataclass(frozen=True)
class Pool:
    """What a matcher compares: every image with every text. Which text describes which image, it never says.

    dense: long descriptions that come with the pool, none, one per image (`dense_of="image"`), or one per
    text (`dense_of="text"`): a text's then describes its own image, which tells the matcher the answer.
    fingerprint: sha256 of all of it.
    """

    images: tuple[Picture, ...]
    texts: tuple[str, ...]
    dense: tuple[str, ...] = ()
    dense_of: Literal["none", "image", "text"] = "none"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        wanted = {"none": 0, "image": len(self.images), "text": len(self.texts)}[self.dense_of]
        if len(self.dense) != wanted:
            raise ValueError(
                f"{len(self.dense):,} dense texts for {len(self.images):,} images and {len(self.texts):,} "
                f"texts; dense_of={self.dense_of} takes {wanted:,}"
            )


class Matcher(Protocol):
    """Says how alike images and texts are: the model of a retrieval task."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides its numbers, as JSON: part of a run's identity."""

    def similarity(self, pool: Pool, rows: range) -> npt.NDArray[np.float32]:
        """(len(rows), texts): how alike these images and all texts are, higher is more. The numbers of a row
        do not depend on which rows are asked for together, beyond rounding. Raises PictureError for an
        image that cannot be read."""


@dataclass(frozen=True)
class Retrieval:
    """A benchmark whose answer is a matrix: a `Task` for matchers. Each image and each text is a query.

    owner: per text, the index of the image that it describes. ids: per image, as the dataset calls it.
    folds: into how many equal pools, in this order, the images are cut; a query looks in its own only.
    rank: from a similarity matrix, owner and folds, what each query's sample says of it (its meta): images
    first, then texts. leaks: whether the pool tells a query something of its answer; such runs are marked
    and never ranked. The other fields are a task's.
    """

    name: str
    version: str
    protocol: str
    fingerprint: str
    pool: Pool
    owner: tuple[int, ...]
    ids: tuple[str, ...]
    rank: Callable[[npt.NDArray[np.float32], Sequence[int], int], list[dict[str, Json]]]
    metrics: tuple[Metric, ...]
    primary: str
    folds: int = 1
    leaks: bool = False
    spec: str = ""


# ---------------------------------------------------------------- canonical JSON


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()
