"""The tasks that language models do here: what each is asked, and the JSON that it must answer with.

A task is a Jinja template (`prompts/<task>.jinja`, a system and a user message) and a pydantic model of the answer. The
model's JSON Schema goes to the engine (guided decoding), and the answer is parsed with the same model. A choice is a template whose
answer is one of a few words; what counts is how probable each word is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intently.llm.contract import Message

SEPARATOR = "\n===\n"


class AnswerError(ValueError):
    """A model's answer is not JSON or breaks the task's schema.

    The message says exactly where; `reason` says it in the same words for the same cause, so that it can be counted.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Answer(BaseModel):
    """Base of the answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InterestDraft(Answer):
    """One interest, as a model wrote it (RecGPT, user interest mining)."""

    interest: str = Field(min_length=3, max_length=60)
    reason: str = Field(min_length=3, max_length=160)
    stage: Literal["emerging", "active", "fading"]


class UserInterests(Answer):
    """Answer of the task `user_interests`."""

    interests: list[InterestDraft] = Field(min_length=1, max_length=16)


class ProfileDraft(Answer):
    """One thing that a profile says of a person beyond single interests (DeepInterestGR, MLIM)."""

    interest: str = Field(min_length=3, max_length=60)
    kind: Literal["pattern", "lifestyle", "guess"]
    rests_on: list[int] = Field(min_length=1, max_length=6)
    reason: str = Field(min_length=3, max_length=160)


class UserProfile(Answer):
    """Answer of the task `user_profile`."""

    drafts: list[ProfileDraft] = Field(min_length=1, max_length=8)


class TagDraft(Answer):
    """One item tag, as a model wrote it (RecGPT, item tag prediction)."""

    interest: str = Field(min_length=3, max_length=60)
    reason: str = Field(min_length=3, max_length=120)
    tag: str = Field(min_length=3, max_length=60)


class ItemTags(Answer):
    """Answer of the task `item_tags`."""

    tags: list[TagDraft] = Field(min_length=1, max_length=60)


class ExplanationText(Answer):
    """Answer of the task `explanation`."""

    explanation: str = Field(min_length=10, max_length=200)


class Judgement(Answer):
    """What a judge says of one result under one criterion."""

    reason: str = Field(min_length=1, max_length=160)
    verdict: Literal["yes", "no"]


class ExplanationVerdict(Answer):
    """Answer of the task `explanation_verdict` (RecGPT §2.4.1): one judgement a criterion."""

    relevance: Judgement
    factuality: Judgement
    clarity: Judgement
    safety: Judgement


class InterestVerdict(Answer):
    """Answer of the task `interest_verdict` (RecGPT §2): one judgement a criterion."""

    willingness: Judgement
    reasonableness: Judgement


class TagVerdict(Answer):
    """Answer of the task `tag_verdict` (RecGPT §3): one judgement a criterion."""

    relevance: Judgement
    consistency: Judgement
    specificity: Judgement
    validity: Judgement


class ItemInterestDraft(Answer):
    """One interest that an item may serve, as a model wrote it."""

    interest: str = Field(min_length=3, max_length=60)
    confidence: float = Field(ge=0, le=1)


class ItemInterests(Answer):
    """Answer of the task `item_interests` (DeepInterestGR, MLIM): the fields come in the order of its three steps."""

    attributes: list[Annotated[str, Field(min_length=1, max_length=80)]] = Field(min_length=1, max_length=6)
    motivation: str = Field(min_length=3, max_length=200)
    interests: list[ItemInterestDraft] = Field(min_length=1, max_length=6)


class PictureLook(Answer):
    """Answer of the task `item_picture`."""

    style: str = Field(min_length=3, max_length=80)
    aesthetics: str = Field(min_length=3, max_length=80)
    lifestyle: str = Field(min_length=3, max_length=80)


class ItemInterestLabel(Answer):
    """Answer of the task `item_interest_label` (DeepInterestGR, RLDI): 1 or 0 of one interest, and why."""

    reason: str = Field(min_length=3, max_length=120)
    label: Literal["1", "0"]


class ItemName(Answer):
    """Answer of the task `item_name`."""

    name: str = Field(min_length=1, max_length=80)


@dataclass(frozen=True)
class Task:
    """A question with a form.

    Attributes:
        name: also the template's file name.
        answer: the pydantic model of the answer.
        fields: what the template needs, name → meaning.
    """

    name: str
    answer: type[Answer]
    fields: dict[str, str]

    @property
    def json_schema(self) -> str:
        """JSON Schema of the answer, as a JSON string."""
        return _json_schema(self.answer)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change when the prompt or the form of the answer does."""
        return _fingerprint(self.name, self.json_schema)

    def render(self, **fields: object) -> tuple[Message, ...]:
        """The chat that asks this task's question.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return _render(self.name, self.fields, fields)

    def parse(self, text: str) -> Answer:
        """A model's answer → the task's answer.

        Raises:
            AnswerError: it is not JSON, or breaks the schema.
        """
        try:
            return self.answer.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                raise AnswerError(first["msg"], "answer is not JSON") from error
            place = ".".join(str(part) for part in first["loc"]) or "answer"
            kind = ".".join("*" if isinstance(part, int) else str(part) for part in first["loc"]) or "answer"
            raise AnswerError(f"{place}: {first['msg']}", f"{kind}: {first['msg']}") from error


@dataclass(frozen=True)
class Choice:
    """A question that is answered with one of a few words.

    Attributes:
        name: also the template's file name.
        choices: the words; the first token of each is its own.
        fields: what the template needs, name → meaning.
    """

    name: str
    choices: tuple[str, ...]
    fields: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change when the prompt or the words do."""
        return _fingerprint(self.name, "/".join(self.choices))

    def render(self, **fields: object) -> tuple[Message, ...]:
        """The chat that asks this question. Raises TypeError when a field is missing or unknown."""
        return _render(self.name, self.fields, fields)


ITEM_LIKING = Choice(
    "item_liking",
    ("Yes", "No"),
    {
        "interests": "the person's interests, as strings; empty where `behaviours` tells of the person",
        "behaviours": "Chunk.text, or None where `interests` tell of the person",
        "item": "the item's short name, as chunks write it",
    },
)
"""Does this person like this item (HiT-LBM §3.2)? P("Yes") over {Yes, No} is the score; the completion is the bare word."""

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "user_interests",
            UserInterests,
            {
                "behaviours": "Chunk.text: compressed behaviours, one line a group",
                "previous": "interests read from the chunk before, as strings; may be empty",
            },
        ),
        Task(
            "user_profile",
            UserProfile,
            {"interests": "what is known to interest the person, best supported first, each with .interest, .stage and .support"},
        ),
        Task(
            "item_tags",
            ItemTags,
            {
                "interests": "the user's interests, each with .interest and .stage",
                "recent": "titles touched in the last month, which tags must not repeat; may be empty",
                "season": "spring, summer, autumn or winter",
                "num_tags": "how many tags are wanted",
            },
        ),
        Task(
            "explanation",
            ExplanationText,
            {
                "item": "the item's row as a mapping: title, category, brand, price, description, attributes",
                "interest": "the interest that the item serves, or None for a reason that fits anybody",
            },
        ),
        Task(
            "explanation_verdict",
            ExplanationVerdict,
            {
                "explanation": "the text to be judged",
                "item": "the item's row as a mapping: title, category, brand, price, description, attributes",
                "interest": "the interest that the text was written for, or None for a reason that fits anybody",
            },
        ),
        Task(
            "interest_verdict",
            InterestVerdict,
            {
                "behaviours": "Chunk.text that the interest was read from",
                "interest": "the interest",
                "stage": "emerging, active or fading",
                "reason": "why the model believes it",
            },
        ),
        Task(
            "tag_verdict",
            TagVerdict,
            {
                "behaviours": "Chunk.text of the person's last chunk",
                "interests": "the person's interests of that chunk, as strings",
                "tag": "the tag",
                "interest": "the interest that it serves",
                "reason": "why the model believes it",
            },
        ),
        Task(
            "item_interests",
            ItemInterests,
            {
                "item": "the item's row as a mapping: title, category, categories, brand, price, description, attributes",
                "look": "what a model that sees says of its picture, or None",
            },
        ),
        Task("item_picture", PictureLook, {"item": "the item's row as a mapping: title, category; the picture goes with the question"}),
        Task(
            "item_interest_label",
            ItemInterestLabel,
            {
                "item": "the item's row as a mapping: title, category, categories, brand, price, description, attributes",
                "interest": "the interest that is labelled",
            },
        ),
        Task(
            "item_name",
            ItemName,
            {
                "item": "the item's row as a mapping: title, category, brand, attributes",
                "max_words": "how many words the name may have",
            },
        ),
    )
}


def repair_message(error: str) -> Message:
    """What a model is told after an answer that was refused because of `error`."""
    return {"role": "user", "content": _environment().get_template("repair.jinja").render(error=error).strip()}


def _fingerprint(name: str, form: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, f"{name}.jinja")
    return hashlib.sha256(f"{source}{form}".encode()).hexdigest()[:12]


def _render(name: str, fields: dict[str, str], given: dict[str, object]) -> tuple[Message, ...]:
    if set(given) != set(fields):
        raise TypeError(f"task {name} takes {sorted(fields)}, got {sorted(given)}")
    text = _environment().get_template(f"{name}.jinja").render(**given)
    system, _, user = text.partition(SEPARATOR)
    return ({"role": "system", "content": system.strip()}, {"role": "user", "content": user.strip()})


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("intently.llm", "prompts"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _json_schema(answer: type[Answer]) -> str:
    return json.dumps(answer.model_json_schema())  # unsorted: guided decoding forces keys in this order, reasons before labels
