"""From a request to the text that a processor reads: the chat template, or a named one.

Knows templates. Must not know tokens, tensors, or what a task or a method wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from harness.types import Request

Template = Literal["auto", "chat", "vicrop", "paligemma", "plain"]


class PromptError(Exception):
    """A request that a template cannot render; it becomes that request's failure."""


def render(request: Request, template: Template, processor: Any) -> str:
    """The prompt's text, ending where the answer begins, with one placeholder per picture.

    chat: the checkpoint's own template: system, pictures, then the text. vicrop: ViCrop's raw string for
    LLaVA, and that for InstructBLIP (mllms_know: run.py). paligemma: as PaliGemma's processor frames a
    text, which by itself it would do once more for each option. plain: the placeholders, then the text.
    Raises `PromptError`.
    """
    if template == "chat":
        return _chat(request, processor)
    placeholder = str(getattr(processor, "image_token", ""))
    if request.system:
        raise PromptError(f"template={template} has no place for a system text; use template=chat")
    pictures = placeholder * len(request.images)
    if template == "paligemma":
        return f"{pictures}{processor.tokenizer.bos_token}{request.text}\n"
    if template == "vicrop" and hasattr(processor, "qformer_tokenizer"):
        return _vicrop_blip(pictures, request.text)
    return _RAW[template](pictures, request.text)


def _vicrop(pictures: str, text: str) -> str:
    """
    >>> _vicrop("<image><image>", "What is it? Answer the question using a single word or phrase.")
    '<image><image>\\nUSER: What is it? Answer the question using a single word or phrase.\\nASSISTANT:'
    """
    head = f"{pictures}\n" if pictures else ""
    return f"{head}USER: {text}\nASSISTANT:"


def _vicrop_blip(pictures: str, text: str) -> str:
    """ViCrop's string for InstructBLIP; the words that its protocol adds for the others are not in it.

    >>> _vicrop_blip("", "What is it? Answer the question using a single word or phrase.")
    'Question: What is it? Short answer:'
    """
    question = text.removesuffix(" Answer the question using a single word or phrase.")
    return f"{pictures}Question: {question} Short answer:"


def _plain(pictures: str, text: str) -> str:
    return f"{pictures}{text}"


_RAW: dict[str, Callable[[str, str], str]] = {"vicrop": _vicrop, "plain": _plain}


def _chat(request: Request, processor: Any) -> str:
    from jinja2 import TemplateError

    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system}]})
    content: list[dict[str, str]] = [{"type": "image"} for _ in request.images]
    content.append({"type": "text", "text": request.text})
    messages.append({"role": "user", "content": content})
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise PromptError(
            f"the checkpoint's chat template refuses the request ({error}); use template=plain"
        ) from None
