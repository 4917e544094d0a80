"""What models are asked, word for word, and what is accepted of what they answer."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from intently.llm.tasks import ITEM_LIKING, TASKS, AnswerError, repair_message


def test_user_interests_prompt_shows_behaviours_and_what_was_before() -> None:
    system, user = TASKS["user_interests"].render(behaviours="2026-03 (cart) | Trail shoe", previous=["hiking", "tea"])
    assert system["role"] == "system"
    assert system["content"].endswith("Answer with JSON only.")
    assert user == {"role": "user", "content": "Interests before: hiking; tea\nBehaviours:\n2026-03 (cart) | Trail shoe"}


def test_user_interests_prompt_without_a_past_says_nothing_of_it() -> None:
    _, user = TASKS["user_interests"].render(behaviours="2026-03 (cart) | Trail shoe", previous=[])
    assert user["content"] == "Behaviours:\n2026-03 (cart) | Trail shoe"


def test_item_tags_prompt_lists_interests_and_what_not_to_repeat() -> None:
    interests = [SimpleNamespace(interest="hiking", stage="active"), SimpleNamespace(interest="tea", stage="fading")]
    _, user = TASKS["item_tags"].render(interests=interests, recent=["Trail shoe"], season="winter", num_tags=5)
    assert user["content"] == ("Season: winter\nInterests:\n- hiking (active)\n- tea (fading)\nTouched lately: Trail shoe\nTags wanted: 5")


def test_explanation_prompt_leaves_out_what_is_unknown() -> None:
    item = {"title": "Trail shoe", "category": "Shoes", "brand": None, "price": 80.0, "attributes": ["weight: 210 g"], "description": None}
    _, user = TASKS["explanation"].render(item=item, interest="hiking")
    assert user["content"] == ("Item: Trail shoe\nCategory: Shoes\nPrice: 80.00\nFacts: weight: 210 g\nThe person is interested in: hiking")


def test_prompt_text_of_an_item_is_never_run_as_a_template() -> None:
    item = {"title": "{{ 7 * 7 }} <b>", "category": "x", "brand": None, "price": None, "attributes": [], "description": None}
    _, user = TASKS["explanation"].render(item=item, interest=None)
    assert "Item: {{ 7 * 7 }} <b>\n" in user["content"]


def test_liking_prompt_knows_the_person_by_interests_or_by_behaviours() -> None:
    _, by_interests = ITEM_LIKING.render(interests=["war films", "noir"], behaviours=None, item="Patton (1970) [Drama/War]")
    assert by_interests["content"] == "Interests: war films; noir\nItem: Patton (1970) [Drama/War]\nWill this person like it?"
    _, by_behaviours = ITEM_LIKING.render(interests=[], behaviours="2000 (rating 5) | Big", item="Heat")
    assert by_behaviours["content"] == "Behaviours:\n2000 (rating 5) | Big\nItem: Heat\nWill this person like it?"


def test_repair_message_says_what_was_wrong() -> None:
    message = repair_message("tags.0.tag: String should have at least 3 characters")
    assert message["role"] == "user"
    assert "refused: tags.0.tag: String should have at least 3 characters." in message["content"]


@pytest.mark.parametrize(
    ("answer", "message", "reason"),
    [
        ("nonsense", "Invalid JSON", "answer is not JSON"),
        ('{"tags": [{"tag": "warm', "Invalid JSON", "answer is not JSON"),
        ("[]", "answer: Input should be an object", "answer: Input should be an object"),
        ('{"tags": []}', "tags: List should have at least 1 item", "tags: List should have at least 1 item"),
        (
            '{"tags": [{"tag": "warm boots", "interest": "snow", "reason": "cold", "price": 3}]}',
            r"tags\.0\.price: Extra inputs",
            r"tags\.\*\.price: Extra inputs",
        ),
        ('{"tags": [{"tag": "w", "interest": "snow", "reason": "cold"}]}', r"tags\.0\.tag: String", r"tags\.\*\.tag: String"),
    ],
)
def test_task_parse_broken_answer_says_where_and_why(answer: str, message: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=message) as caught:
        TASKS["item_tags"].parse(answer)
    assert re.match(reason, caught.value.reason)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_schema_bounds_every_text_and_list(name: str) -> None:
    """An engine that follows the schema must come to an end: nothing in it is open-ended."""

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if node.get("type") == "string" and "enum" not in node:
                assert "maxLength" in node
            if node.get("type") == "array":
                assert "maxItems" in node
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
                assert sorted(node["required"]) == sorted(node["properties"])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(json.loads(TASKS[name].json_schema))


def test_fingerprint_of_tasks_is_stable_and_differs_between_them() -> None:
    fingerprints = [task.fingerprint for task in TASKS.values()]
    assert len(set(fingerprints)) == len(TASKS)
    assert fingerprints == [task.fingerprint for task in TASKS.values()]
