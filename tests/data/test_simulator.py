"""The simulated world: same config same tables, funnels in order, skew, seasons, gifts, truth that the log follows."""

from __future__ import annotations

import io
from collections import Counter
from datetime import datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import EVENT, ITEM, TRUE_INTEREST, USER
from intently.data.simulator import FUNNEL, SimulatorConfig, intensity, simulate
from intently.data.world import SEASONS, THEMES, season_of
from PIL import Image

SMALL = SimulatorConfig(num_users=60, num_items=400, events_per_user=300, users_per_block=25, pictures=False)
YEAR_ROUND = next(t for t, theme in enumerate(THEMES) if not theme.months)


def events_of(config: SimulatorConfig) -> pl.DataFrame:
    simulation = simulate(config)
    themes = pl.DataFrame({"item_id": simulation.items["item_id"].to_pylist(), "theme": simulation.item_themes})
    return pl.from_arrow(pa.concat_tables(simulation.events())).join(themes, on="item_id", how="left", maintain_order="left")


@pytest.fixture(scope="module")
def small() -> pl.DataFrame:
    return events_of(SMALL)


def test_simulate_same_config_gives_identical_tables():
    first, second = simulate(SMALL), simulate(SMALL)
    assert first.items.equals(second.items)
    assert first.users.equals(second.users)
    assert first.true_interests.equals(second.true_interests)
    assert pa.concat_tables(first.events()).equals(pa.concat_tables(second.events()))


def test_simulate_other_seed_gives_other_brands_and_events():
    first, second = simulate(SMALL), simulate(SMALL.model_copy(update={"seed": 2}))
    assert set(first.items["brand"].to_pylist()) != set(second.items["brand"].to_pylist())
    assert not next(first.events()).equals(next(second.events()))


def test_simulate_tables_follow_the_contract_and_blocks_bound_users():
    simulation = simulate(SMALL)
    ITEM.check(simulation.items)
    USER.check(simulation.users)
    TRUE_INTEREST.check(simulation.true_interests)
    blocks = list(simulation.events())
    assert [len(set(EVENT.check(block)["user_id"].to_pylist())) for block in blocks] == [25, 25, 10]


def test_simulate_every_event_has_an_own_id_and_a_known_user_and_item(small):
    assert small["event_id"].n_unique() == len(small)
    assert small["user_id"].n_unique() == SMALL.num_users
    assert small.filter(pl.col("behaviour") != "search")["theme"].null_count() == 0


def test_simulate_events_are_in_time_order_and_inside_the_log(small):
    ordered = small.group_by("user_id").agg((pl.col("timestamp").diff().dt.total_seconds() < 0).any().alias("back"))
    assert not ordered["back"].any()
    assert (small["position"] == small.select(pl.int_range(pl.len()).over("user_id")).to_series()).all()
    assert small["timestamp"].dt.date().max() <= SMALL.end


def test_simulate_funnel_stage_is_never_reached_without_the_one_it_follows(small):
    needs = dict(zip(FUNNEL[1:], ["impression", "click", "detail_view", "detail_view", "detail_view", "cart"], strict=True))
    counts = Counter(small["behaviour"].to_list())
    assert counts["impression"] > counts["click"] > counts["detail_view"] > counts["cart"] > counts["purchase"] > 0
    before: dict[tuple[str, str], Counter] = {}
    for user, item, behaviour in small.filter(pl.col("behaviour") != "search").select("user_id", "item_id", "behaviour").iter_rows():
        seen = before.setdefault((user, item), Counter())
        seen[behaviour] += 1
        if behaviour in needs:
            assert seen[needs[behaviour]] >= seen[behaviour]


def test_simulate_searches_carry_a_query_and_sometimes_no_item(small):
    searches = small.filter(pl.col("behaviour") == "search")
    assert searches["query"].null_count() == 0
    assert 0.05 < searches["item_id"].is_null().mean() < 0.9
    assert small.filter(pl.col("behaviour") != "search")["query"].null_count() == len(small) - len(searches)


def test_simulate_popularity_is_skewed(small):
    counts = small.group_by("item_id").len().sort("len", descending=True)["len"].to_numpy()
    assert counts[: len(counts) // 5].sum() > 0.4 * counts.sum()


def test_simulate_seasonal_theme_is_busier_in_season():
    events = events_of(SimulatorConfig(num_users=150, events_per_user=300, pictures=False))
    months = np.array([[not theme.months or m in theme.months for m in range(1, 13)] for theme in THEMES])
    seasonal = np.array([bool(theme.months) for theme in THEMES])
    rows = events.filter(pl.col("theme").is_not_null())
    theme, month = rows["theme"].to_numpy(), rows["timestamp"].dt.month().to_numpy() - 1
    rows_seasonal = seasonal[theme]
    in_season = months[theme[rows_seasonal], month[rows_seasonal]].mean()
    expected_without_seasons = months[theme[rows_seasonal]].mean()
    assert in_season > expected_without_seasons + 0.15


def test_simulate_purposeful_purchases_follow_the_true_interests_in_force():
    config = SimulatorConfig(num_users=100, gift_share=0.0, idle_share=0.0, noise_share=0.0, pictures=False)
    events = events_of(config).filter(pl.col("behaviour") == "purchase")
    truth = pl.from_arrow(simulate(config).true_interests)
    phrases = pl.DataFrame(
        {"theme": range(len(THEMES)), "interest": [theme.phrase for theme in THEMES]}, schema_overrides={"theme": pl.Int64}
    )
    wanted = events.join(phrases, on="theme").join(truth, on=["user_id", "interest"], how="left")
    hour = pl.duration(hours=1)
    covered = wanted.group_by("event_id").agg(pl.col("timestamp").is_between(pl.col("start") - hour, pl.col("end") + hour).any())
    assert covered["timestamp"].fill_null(False).all()


def test_simulate_true_interests_return_for_some_people():
    truth = pl.from_arrow(simulate(SMALL).true_interests)
    spells = truth.group_by("user_id", "interest").len()
    assert (spells["len"] == 2).any()
    assert (spells["len"] <= 2).all()
    assert truth["strength"].is_between(0, 1).all()


def test_simulate_mean_events_per_user_is_as_configured():
    config = SimulatorConfig(num_users=300, events_per_user=120, activity_spread=0.0, pictures=False)
    assert len(events_of(config)) / 300 == pytest.approx(120, rel=0.1)


def test_simulate_one_lifelong_user_of_37_thousand_behaviours():
    config = SimulatorConfig(num_users=2, num_items=2000, events_per_user=37_000, activity_spread=0.0, years=8, pictures=False)
    counts = events_of(config).group_by("user_id").len()["len"]
    assert counts.to_list() == pytest.approx([37_000, 37_000], rel=0.1)


def test_simulate_departments_keep_only_their_items():
    items = simulate(SimulatorConfig(num_users=2, num_items=50, departments=("Films",), pictures=False)).items
    assert {categories[0] for categories in items["categories"].to_pylist()} == {"Films"}


def test_simulate_unknown_department_is_refused_by_name():
    with pytest.raises(ConfigError, match="Cars"):
        simulate(SimulatorConfig(departments=("Cars",)))


def test_simulate_titles_are_short_and_seldom_shared():
    titles = simulate(SimulatorConfig(num_users=1, pictures=False)).items["title"].to_pylist()
    assert max(len(title.split()) for title in titles) <= 7
    assert len(set(titles)) > 0.95 * len(titles)


def test_simulate_pictures_are_small_and_readable():
    images = simulate(SimulatorConfig(num_users=1, num_items=70)).items["image"].to_pylist()
    assert max(map(len, images)) < 1024
    assert len(set(images)) > 50
    assert Image.open(io.BytesIO(images[0])).size == (64, 64)


def test_intensity_swells_and_fades_by_hand():
    when = np.array([datetime(2024, 1, 1).timestamp() + day * 86_400 for day in (-1, 0, 50, 100, 101)])
    start = np.full((5, 1), when[1])
    pull = intensity(np.full((5, 1), YEAR_ROUND), start, np.full((5, 1), when[3]), np.full((5, 1), 2.0), when)
    np.testing.assert_allclose(pull[:, 0], [0.0, 0.3, 2.0, 0.2, 0.0], atol=1e-9)


def test_world_words_are_closed_and_categories_shared():
    assert len({theme.phrase for theme in THEMES}) == len(THEMES)
    assert all(2 <= len(theme.phrase.split()) <= 4 and len(theme.nouns) >= 6 and len(theme.modifiers) >= 5 for theme in THEMES)
    nouns = [noun for theme in THEMES for noun in theme.nouns]
    assert len(set(nouns)) == len(nouns)
    assert len({theme.category for theme in THEMES}) < len(THEMES)


def test_season_of_month_by_hand():
    assert [season_of(month) for month in (1, 3, 8, 11, 12)] == ["winter", "spring", "summer", "autumn", "winter"]
    assert sorted(month for months in SEASONS.values() for month in months) == list(range(1, 13))
