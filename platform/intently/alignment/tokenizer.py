"""The student's own tokenizer: byte-level BPE over the teacher's texts, with a chat template that vLLM applies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def encode(
    tokenizer: PreTrainedTokenizerFast, chats: Sequence[list[dict[str, str]]], completions: Sequence[str]
) -> list[tuple[list[int], int]]:
    """Chats and their answers → (tokens of chat, answer and end; how many of them are the chat's)."""
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    answered = tokenizer([text + END for text in completions], add_special_tokens=False)["input_ids"] if prompts else []
    return [(prompt + answer, len(prompt)) for prompt, answer in zip(asked, answered, strict=True)]
