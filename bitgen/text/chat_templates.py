"""Chat templates by name, and the right ones for published files that carry a wrong one or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitgen.errors import FormatError

BITNET_2B4T = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)

NAMED: dict[str, str] = {
    "bitnet": BITNET_2B4T,
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "falcon3": (
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "llama3": (
        "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
}
"""Templates by name, for files that carry none. Begin-of-text is the tokenizer's to add where they do not."""

MISSING: dict[tuple[str, int], str] = {(name, 128256): BITNET_2B4T for name in ("bitnet-25", "bitnet-b1.58")}
"""Architecture and vocabulary -> the template of files that carry none."""

WRONG: dict[str, str] = {"BITNETAssistant": BITNET_2B4T}
"""A text that only a wrong template holds -> the right one.

BITNETAssistant: the template of an earlier training of BitNet b1.58 2B4T, which the official GGUF and the first
revisions of the checkpoints carry. Answers to it often do not end.
"""


KEY = "tokenizer.chat_template"
"""A GGUF's key of its default template; further ones are KEY.<name>, like tokenizer.chat_template.tool_use."""


def carried(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates in a GGUF's key-values by name, of which "default" is for conversations without tools.

    FormatError: one of them is no text.
    """
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if key == KEY or key.startswith(f"{KEY}."):
            if not isinstance(value, str):
                raise FormatError(f"{key} is not a text, but of type {type(value).__name__}")
            if value.strip():
                found[key.removeprefix(KEY).removeprefix(".") or "default"] = value
    return found


def corrected(template: str) -> str:
    """The template, or the right one where it is known to be wrong."""
    return next((right for text, right in WRONG.items() if text in template), template)
