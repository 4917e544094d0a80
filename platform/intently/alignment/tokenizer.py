"""The student's own tokenizer: byte-level BPE over the teacher's texts, with a chat template that vLLM applies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from intently.llm.contract import Message

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    # Of a system message only the first words: they tell the tasks apart, and the rest is a quarter of all tokens
    # that a model which knows but these tasks gains nothing from.
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'][:24] if message['role'] == 'system' else message['content']) }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that can write any text, with short codes for what the texts repeat.

    Args:
        texts: what to learn merges from.
        vocabulary: tokens, special ones included.
        max_length: the model's context, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, SYSTEM, USER, ASSISTANT, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True)
class EncodedChat:
    """A chat and its answer as tokens.

    Attributes:
        tokens: of the chat, the answer and the end.
        prompt_length: how many of them are the chat's.
        decisive: for each token of answer and end, whether it belongs to the value of a key that was asked for.
    """

    tokens: list[int]
    prompt_length: int
    decisive: list[bool]


def encode(
    tokenizer: PreTrainedTokenizerFast, chats: Sequence[list[Message]], completions: Sequence[str], keys: Sequence[str]
) -> list[EncodedChat]:
    """Chats and their answers → tokens; `keys` are the JSON keys whose values are decisive."""
    if not chats:
        return []
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answered = tokenizer([text + END for text in completions], add_special_tokens=False, return_offsets_mapping=True)
    value = re.compile(rf'"(?:{"|".join(map(re.escape, keys))})":"([^"]*)') if keys else None
    encoded = []
    for prompt, answer, offsets, text in zip(asked, answered["input_ids"], answered["offset_mapping"], completions, strict=True):
        spans = [match.span(1) for match in value.finditer(text)] if value else []
        spans = spans if text.startswith("{") else [(0, len(text))]  # a bare word is nothing but its value
        decisive = [any(first < stop and last > start for start, stop in spans) for first, last in offsets]
        encoded.append(EncodedChat(prompt + answer, len(prompt), decisive))
    return encoded
