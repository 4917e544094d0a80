"""What is held out of training stands in no prompt: simulated people through the real splits and the real chunks."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pytest
from intently.core.schema import HISTORY, ITEM
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.histories import build_histories
from intently.data.simulator import SimulatorConfig, simulate
from intently.data.splits import Split, SplitConfig, split_histories
from intently.interests.phrases import BrandFinder
from intently.interests.tags import TagConfig, predict_tags
from intently.interests.users import MiningConfig, mine_users
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine


class Recorder:
    """Answers always the same and keeps every prompt by the user or chunk that it is about."""

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}
        self.engine = ScriptedEngine(self.respond)

    def respond(self, request: Request) -> str:
        prompt = request.messages[1]["content"]
        self.prompts[request.request_id] = prompt
        if "Behaviours:" in prompt:
            return json.dumps({"interests": [{"interest": "something", "stage": "active", "reason": "as it seems"}]})
        return json.dumps({"tags": [{"tag": "some thing", "interest": "something", "reason": "as it seems"}]})


@pytest.fixture(scope="module")
def world() -> tuple[pa.Table, pa.Table, Split]:
    """Items whose titles name them and no other, all histories, and their split."""
    simulation = simulate(SimulatorConfig(num_users=25, num_items=120, events_per_user=120, pictures=False))
    items = simulation.items
    named = items.set_column(
        items.column_names.index("title"), "title", pa.array([f"ware-{item}" for item in items["item_id"].to_pylist()])
    )
    history = build_histories(pa.concat_tables(list(simulation.events())), 0).history
    return ITEM.check(named), history, split_histories(history, SplitConfig())


def held_out(split: Split) -> dict[str, set[str]]:
    """User → titles of the validation and the test item."""
    found: dict[str, set[str]] = {}
    for row in [*split.validation.to_pylist(), *split.test.to_pylist()]:
        found.setdefault(row["user_id"], set()).add(f"ware-{row['item_ids'][0]}")
    return found


def titles(prompt: str) -> set[str]:
    return set(re.findall(r"ware-i\d+", prompt))


def ask(items: pa.Table, history: pa.Table, encoder: TextEncoder) -> tuple[dict[str, str], dict[str, str]]:
    """Prompts of mining by chunk, prompts of tags by user."""
    mining, tagging = Recorder(), Recorder()
    chunks = build_chunks(history, items, ChunkConfig(num_events=20))
    mined = mine_users(chunks, items, mining.engine, encoder, MiningConfig(max_chunks=99))
    predict_tags(mined.interests, history, items, BrandFinder([]), tagging.engine, encoder, TagConfig(recent_days=400, max_recent=99))
    return mining.prompts, tagging.prompts


def test_prompts_from_train_never_name_a_held_out_item(world: tuple[pa.Table, pa.Table, Split], encoder: TextEncoder) -> None:
    items, _, split = world
    secret = held_out(split)
    mining, tagging = ask(items, split.train, encoder)
    assert len(secret) == 20 and len(mining) > len(tagging) >= 20
    assert not [key for key, prompt in mining.items() if titles(prompt) & secret.get(key.split("/")[0], set())]
    assert not [user for user, prompt in tagging.items() if titles(prompt) & secret.get(user, set())]


def test_prompts_from_whole_histories_would_name_them(world: tuple[pa.Table, pa.Table, Split], encoder: TextEncoder) -> None:
    items, history, split = world
    secret = held_out(split)
    mining, tagging = ask(items, HISTORY.check(history), encoder)
    seen = {user: set[str]() for user in secret}
    for key, prompt in [*mining.items(), *tagging.items()]:
        seen.setdefault(key.split("/")[0], set()).update(titles(prompt))
    assert all(secret[user] <= seen[user] for user in secret)
