"""How a chat becomes the two texts of a ChatExample row, and back."""

from __future__ import annotations

from collections.abc import Sequence

from intently.llm.contract import Message
from intently.llm.tasks import SEPARATOR


def prompt_text(messages: Sequence[Message]) -> str:
    """A system and a user message → ChatExample.prompt."""
    system, user = messages
    return f"{system['content']}{SEPARATOR}{user['content']}"


def prompt_messages(prompt: str) -> list[Message]:
    """ChatExample.prompt → the system and the user message."""
    system, _, user = prompt.partition(SEPARATOR)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
