"""Chat templates that published files carry wrongly, and what the model was trained with."""

from __future__ import annotations

BITNET_2B4T = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)

WRONG: dict[str, str] = {"BITNETAssistant": BITNET_2B4T}
"""A text that only a wrong template holds -> the right one.

BITNETAssistant: the template of an earlier training of BitNet b1.58 2B4T, which the official GGUF and the first
revisions of the checkpoints carry. Answers to it often do not end.
"""


def corrected(template: str) -> str:
    """The template, or the right one where it is known to be wrong."""
    return next((right for text, right in WRONG.items() if text in template), template)
