from __future__ import annotations

import pytest
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.data.movielens import MovieLensConfig
from intently.data.sources import SimulatorSource, SourceConfig, fingerprint, open_source
from pydantic import Field

from tests.data.reading import read_all


class Settings(Config):
    source: SourceConfig = Field(SimulatorSource(), description="a source")


def test_simulated_source_gives_the_world_and_no_rejects() -> None:
    config = SimulatorSource(num_users=12, num_items=80, events_per_user=30, users_per_block=5, pictures=False)
    source = open_source(config)
    events, rejects = read_all(source)
    assert rejects.num_rows == 0
    assert len(events["user_id"].unique()) == 12
    assert len(events["event_id"].unique()) == events.num_rows
    assert (source.items.num_rows, source.users.num_rows) == (80, 12)
    assert source.true_interests.num_rows > 12
    assert fingerprint(config) == "simulator"


def test_source_kind_decides_the_adapter_and_its_keys() -> None:
    assert Settings.load(None, ["source.kind=movielens", "source.path=data"]).source == MovieLensConfig(path="data")
    with pytest.raises(ConfigError, match=r"source\.movielens\.num_users"):
        Settings.load(None, ["source.kind=movielens", "source.path=data", "source.num_users=3"])
    with pytest.raises(ConfigError, match="tape"):
        Settings.load(None, ["source.kind=tape"])
