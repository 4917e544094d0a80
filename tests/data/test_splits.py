from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime

import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import HISTORY, Behaviour
from intently.data.splits import Cut, SplitConfig, count_target_days, find_cut, split_histories

LOG = [
    "2024-05-01 click i1",  # e0
    "2024-05-01 cart i1",  # e1
    "2024-05-02 purchase i1",  # e2, no target: the cart came first
    "2024-05-02 search - tent",  # e3
    "2024-05-03 click i4",  # e4, leads to the test target
    "2024-05-04 click i3",  # e5, leads to the validation target
    "2024-05-04 favourite i2",  # e6
    "2024-05-05 purchase i3",  # e7, validation
    "2024-05-06 click i5",  # e8, nobody's
    "2024-05-07 rating i4 5",  # e9, test
    "2024-05-08 click i4",  # e10
]


def events_of(history: pa.Table) -> dict[str, list[str]]:
    return dict(zip(history["user_id"].to_pylist(), history["event_ids"].to_pylist(), strict=True))


def test_leave_last_out_takes_the_last_two_first_time_positive_events(make_history: Callable[..., pa.Table]) -> None:
    split = split_histories(make_history(u=LOG), SplitConfig())
    assert events_of(split.test) == {"u": ["e9"]}
    assert events_of(split.validation) == {"u": ["e7"]}
    assert events_of(split.train) == {"u": ["e0", "e1", "e2", "e3", "e6"]}
    assert (split.num_targets, split.num_lead_in, split.num_after) == (4, 2, 2)
    assert split.test.to_pylist()[0]["values"] == [5.0]


def test_leave_last_out_keeps_lead_in_events_when_so_configured(make_history: Callable[..., pa.Table]) -> None:
    split = split_histories(make_history(u=LOG), SplitConfig(drop_lead_in=False))
    assert events_of(split.train) == {"u": [f"e{number}" for number in range(7)]}
    assert (split.num_lead_in, split.num_after) == (0, 2)


def test_leave_last_out_asks_nothing_of_users_with_too_little(make_history: Callable[..., pa.Table]) -> None:
    one_target = LOG[:3]
    short_train = ["2024-05-01 cart i1", "2024-05-02 cart i2", "2024-05-03 cart i3"]
    history = make_history(one=one_target, short=short_train, none=[])
    split = split_histories(history, SplitConfig())
    assert split.train.equals(history)
    assert (split.validation.num_rows, split.test.num_rows) == (0, 0)
    assert events_of(split_histories(history, SplitConfig(min_train_events=1)).test) == {"short": ["e2"]}


def test_leave_last_out_with_ties_goes_by_position(make_history: Callable[..., pa.Table]) -> None:
    log = [f"2024-05-01 cart i{number}" for number in range(5)]
    split = split_histories(make_history(u=log), SplitConfig())
    assert (events_of(split.train), events_of(split.validation), events_of(split.test)) == (
        {"u": ["e0", "e1", "e2"]},
        {"u": ["e3"]},
        {"u": ["e4"]},
    )


def test_leave_last_out_with_a_rating_threshold_skips_what_was_disliked(make_history: Callable[..., pa.Table]) -> None:
    log = [f"2024-05-0{day} rating i{day} {stars}" for day, stars in zip(range(1, 8), (5, 5, 5, 4, 1, 4, 2), strict=True)]
    split = split_histories(make_history(u=log), SplitConfig(positive=(Behaviour.RATING,), min_rating=4))
    assert (events_of(split.validation), events_of(split.test)) == ({"u": ["e3"]}, {"u": ["e5"]})


def test_global_time_cuts_everybody_at_the_same_moments(make_history: Callable[..., pa.Table]) -> None:
    steady = [f"2024-05-{day:02d} cart i{day}" for day in range(1, 11)]
    early = steady[:4]
    history = make_history(u=steady, early=early, late=steady[5:])
    cut = Cut(datetime(2024, 5, 5, tzinfo=UTC), datetime(2024, 5, 9, tzinfo=UTC))
    split = split_histories(history, SplitConfig(kind="global_time", validation_from=date(2024, 5, 5), test_from=date(2024, 5, 9)), cut)
    assert events_of(split.train) == {"u": ["e0", "e1", "e2", "e3"], "early": ["e0", "e1", "e2", "e3"], "late": []}
    assert events_of(split.validation) == {"u": ["e4"]}, "late has no train before the cut, so it is asked for nothing"
    assert events_of(split.test) == {"u": ["e8"]}
    assert split.num_after == 10 + 5 - 4 - 2, "of u all but train and targets, of late all"


def test_global_time_finds_the_days_at_which_the_shares_begin(make_history: Callable[..., pa.Table]) -> None:
    config = SplitConfig(kind="global_time", validation_share=0.2, test_share=0.1)
    first = count_target_days(make_history(u=[f"2024-05-{day:02d} cart i{day}" for day in range(1, 6)]), config)
    second = count_target_days(make_history(v=[*(f"2024-05-{day:02d} cart i{day}" for day in range(6, 11)), "2024-05-20 click i1"]), config)
    assert find_cut([first, second], config) == Cut(datetime(2024, 5, 8, tzinfo=UTC), datetime(2024, 5, 10, tzinfo=UTC))


def test_global_time_on_too_few_days_is_refused(make_history: Callable[..., pa.Table]) -> None:
    config = SplitConfig(kind="global_time")
    days = count_target_days(make_history(u=["2024-05-01 cart i1", "2024-05-01 cart i2"]), config)
    for counted in ([days], []):
        with pytest.raises(ConfigError, match="too few to cut there"):
            find_cut(counted, config)


@pytest.mark.parametrize("setting", ["validation_from=2024-05-01", "test_from=2024-05-01"])
def test_global_time_with_one_date_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="give both"):
        SplitConfig.load(None, [setting])


def test_split_of_nothing_is_empty() -> None:
    split = split_histories(HISTORY.empty(), SplitConfig())
    assert (split.train.num_rows, split.validation.num_rows, split.test.num_rows, split.num_targets) == (0, 0, 0, 0)
