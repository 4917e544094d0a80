"""Half a minute of what benchmarks/serving_faults.py does for ten."""

from __future__ import annotations

from benchmarks.serving_faults import run


def test_load_with_kills_swaps_and_restarts_loses_and_mixes_nothing() -> None:
    figures, tally = run(seconds=20.0, every_s=7.0, num_items=600)
    assert tally.wrong == []
    assert (figures["lost_events"], figures["repeated_events"]) == (0, 0)
    assert figures["acknowledged_events"] > 20
    assert (figures["swaps"], figures["redis_restarts"], figures["kills"]) == (4, 2, 2)
    assert figures["sets_of_tables_seen"] >= 3  # four, where a busy machine loads each before the next comes
    assert figures["errors_other_than_503"] == 0, tally.notes
    assert figures["error_share_under_faults"] < 0.01, tally.notes
