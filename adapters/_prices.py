"""What an API call costs: dollars per token from genai-prices, tokens of a picture by the provider's rule.

Knows providers and their models by name. Nothing here asks a network: prices come with the installed
package, whose version says how old they are. What is not known is None, never 0.
"""

from __future__ import annotations

import functools
import math
import re

from harness.types import Request, Usage

Size = tuple[int, int]
Price = tuple[float, float]
"""Dollars per million tokens, in and out."""

_BATCH = 0.5  # both providers' batch APIs cost half
_OVERHEAD = 64  # tokens that a chat format adds around the words of one request, generously


def version() -> str:
    """The package that knows the prices, for a run's provenance: `genai-prices 0.2.3`."""
    from importlib.metadata import version as installed

    return f"genai-prices {installed('genai-prices')}"


@functools.cache
def provider_of(base_url: str) -> str:
    """The provider's name in genai-prices, or the host of one that it does not know.

    >>> provider_of("https://api.openai.com/v1"), provider_of("http://localhost:8000/v1")
    ('openai', 'localhost')
    """
    from urllib.parse import urlsplit

    from genai_prices.data import providers

    found = next((each.id for each in providers if re.match(each.api_pattern, base_url)), None)
    return found or urlsplit(base_url).hostname or base_url


def stated(price: str) -> Price:
    """The knob `price=IN/OUT`, in dollars per million tokens. Raises ValueError.

    >>> stated("2.5/10")
    (2.5, 10.0)
    """
    try:
        tokens_in, tokens_out = (float(part) for part in price.split("/"))
    except ValueError:
        tokens_in = tokens_out = math.nan
    if not (0 <= tokens_in < math.inf and 0 <= tokens_out < math.inf):
        raise ValueError(f"price={price!r} is not IN/OUT in dollars per million tokens, such as price=2.5/10")
    return tokens_in, tokens_out


def dollars(
    provider: str,
    model: str,
    tokens_in: int,
    tokens_out: int,
    cached_in: int = 0,
    at_batch: bool = False,
    price: Price | None = None,
) -> float | None:
    """What a call costs; None where nobody says.

    provider: of `provider_of`. tokens_in: all of the prompt, the `cached_in` among them included.
    tokens_out: reasoning included. price: what the user stated, in place of the package's.

    >>> dollars("openai", "gpt-4o", 1_000_000, 100_000)
    3.5
    >>> dollars("localhost", "gpt-4o", 1_000_000, 100_000) is None
    True
    """
    if price is not None:
        total = (tokens_in * price[0] + tokens_out * price[1]) / 1e6
    else:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price

        tokens = Tokens(input_tokens=tokens_in, output_tokens=tokens_out, cache_read_tokens=cached_in)
        try:
            total = float(calc_price(tokens, model_ref=model, provider_id=provider).total_price)
        except LookupError:
            return None
    return total * _BATCH if at_batch else total


def at_most(
    provider: str,
    model: str,
    request: Request,
    max_out: int,
    detail: str = "auto",
    at_batch: bool = False,
    price: Price | None = None,
) -> Usage:
    """The most that `request` can use. Raises PictureError where a picture's size cannot be read.

    max_out: new tokens at most, an allowance for reasoning included.
    """
    pixels = sum(image_tokens(provider, model, picture.size, detail) for picture in request.images)
    tokens_in = _OVERHEAD + pixels + text_tokens(request.text) + text_tokens(request.system or "")
    return Usage(
        calls=1,
        tokens_in=tokens_in,
        tokens_out=max_out,
        images=len(request.images),
        dollars=dollars(provider, model, tokens_in, max_out, at_batch=at_batch, price=price),
    )


def text_tokens(text: str) -> int:
    """The most tokens that `text` can have: a byte-level vocabulary has none shorter than a byte.

    English has about four bytes to a token, so prompts without pictures are overestimated as much.
    """
    return len(text.encode("utf-8", "surrogatepass"))


# ---------------------------------------------------------------- pictures

_TILES = {  # OpenAI, "Images and vision", tile-based models: tokens of any picture, and per tile
    "gpt-4o-mini": (2833, 5667),
    "gpt-4o": (85, 170),
    "chatgpt-4o": (85, 170),
    "gpt-4-": (85, 170),
    "gpt-4.1": (85, 170),
    "gpt-4.5": (85, 170),
    "gpt-5": (70, 140),
    "gpt-5-chat": (70, 140),
    "gpt-5.1": (70, 140),
    "o1": (75, 150),
    "o3": (75, 150),
    "computer-use": (65, 129),
}
_PATCHES = {  # the same page, patch-based models: tokens per patch, and patches at most
    "gpt-4.1-mini": (1.62, 1536),
    "gpt-4.1-nano": (2.46, 1536),
    "gpt-5-mini": (1.62, 1536),
    "gpt-5-nano": (2.46, 1536),
    "o4-mini": (1.72, 1536),
    "gpt-5.2": (1.2, 1536),
    "gpt-5.3": (1.2, 1536),
    "gpt-5.4-mini": (1.62, 1536),
    "gpt-5.4-nano": (2.46, 1536),
}
_NEWER = (1.2, 10_000)  # gpt-5.4 and later take a picture whole, up to this


def image_tokens(provider: str, model: str, size: Size, detail: str = "auto") -> int:
    """What a picture of `size` (width, height) counts as prompt, by the provider's published rule.

    Where a provider first shrinks a picture to a limit of tokens, the limit itself is the answer: a few
    tokens too many. A provider or server without a rule here is taken for one that reads pictures whole
    in patches of 28 pixels (Qwen2-VL and its successors): a guess.
    """
    if provider == "anthropic":
        return _anthropic(model, size)
    if provider == "google":
        return _google(size)
    if provider in ("openai", "azure"):
        return _openai(model.removeprefix("ft:"), size, detail)
    return _patches(size, 28)


def _openai(model: str, size: Size, detail: str) -> int:
    """The rule of the longest name that the model's begins with.

    >>> _openai("gpt-4o-2024-08-06", (1024, 1024), "high"), _openai("gpt-4o", (2048, 4096), "high")
    (765, 1105)
    >>> _openai("gpt-4o", (4096, 8192), "low"), _openai("gpt-4.1-mini", (1024, 1024), "auto")
    (85, 1659)
    """
    known = [name for name in (*_TILES, *_PATCHES) if re.match(rf"{re.escape(name)}(?!\.)", model)]
    name = max(known, key=len, default="")  # gpt-5.4 is no gpt-5
    if name not in _TILES:
        factor, limit = _PATCHES.get(name, _NEWER)
        return math.ceil(min(_patches(size, 32), limit) * factor)
    base, tile = _TILES[name]
    if detail == "low":
        return base
    scale = min(1.0, 2048 / max(size))
    scale = min(scale, 768 / min(size))  # the short side, once the whole fits into 2048 x 2048
    return base + tile * _patches((round(size[0] * scale), round(size[1] * scale)), 512)


def _anthropic(model: str, size: Size) -> int:
    """Patches of 28 pixels after shrinking: to 1568 pixels and about 1,600 tokens up to Claude 4.6 and
    Haiku 4.5, to 2576 pixels and 4,784 tokens since (Anthropic, "Images and vision").

    >>> _anthropic("claude-sonnet-4-5", (1000, 1000)), _anthropic("claude-opus-4-7", (4032, 3024))
    (1296, 4784)
    """
    older = re.match(r"claude-([23]|\w+-4(-[0-6])?(-\d{8}|-latest|$))", model) is not None
    side, limit = (1568, 1600) if older else (2576, 4784)
    scale = min(1.0, side / max(size))
    return min(limit, _patches((math.ceil(size[0] * scale), math.ceil(size[1] * scale)), 28))


def _google(size: Size) -> int:
    """Tiles of 258 tokens (Gemini 2), or 1,120 for any picture (Gemini 3): the larger, as a bound
    (Google, "Understand and count tokens", "Media resolution").

    >>> _google((960, 540))
    1548
    """
    unit = min(768, max(256, int(min(size) / 1.5)))
    return max(1120, 258 * _patches(size, unit))


def _patches(size: Size, side: int) -> int:
    return math.ceil(size[0] / side) * math.ceil(size[1] / side)
