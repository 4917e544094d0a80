"""Which settings a stage of the pipeline gets."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import build_splits
import ingest_events
import pytest
from intently.core.errors import ConfigError
from intently.data.files import FilesConfig
from run_pipeline import PipelineConfig, resolve


def resolved_ingest(config: PipelineConfig) -> ingest_events.IngestEventsConfig:
    settings = resolve(config)["ingest_events"]
    assert isinstance(settings, ingest_events.IngestEventsConfig)
    return settings


def test_resolve_lays_settings_over_the_yaml_of_the_stage_and_leaves_the_rest_of_it() -> None:
    plain = resolved_ingest(PipelineConfig.parse({"stages": {"ingest_events": {"config": "demo.yaml"}}}))
    stage = "stages.ingest_events"
    few = resolved_ingest(PipelineConfig.load(None, [f"{stage}.config=demo.yaml", f"{stage}.histories.num_buckets=3"]))
    assert few.source == plain.source
    assert few.histories == plain.histories.model_copy(update={"num_buckets": 3})


def test_resolve_keeps_a_date_a_date(tmp_path: Path) -> None:
    split = "stages.build_splits.split"
    settings = resolve(PipelineConfig.load(None, [f"{split}.validation_from=2024-01-01", f"{split}.test_from=2024-02-01"]))["build_splits"]
    assert isinstance(settings, build_splits.BuildSplitsConfig)
    assert (settings.split.validation_from, settings.split.test_from) == (date(2024, 1, 1), date(2024, 2, 1))
    path = tmp_path / "line.yaml"
    path.write_text("stages:\n  ingest_events:\n    histories: {earliest: 2020-02-03}\n")
    assert resolved_ingest(PipelineConfig.load(path)).histories.earliest == date(2020, 2, 3)


def test_resolve_keeps_keys_with_dots_and_signs_whole() -> None:
    behaviours = {"v1.cart": "cart", "a=b": "click"}
    source = {"kind": "files", "events": "log.csv", "items": "items.csv", "behaviours": behaviours}
    config = PipelineConfig.parse({"stages": {"ingest_events": {"source": source}}})
    found = resolved_ingest(config).source
    assert isinstance(found, FilesConfig) and found.behaviours == behaviours


def test_resolve_bad_setting_is_refused_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"histories\.num_buckets = 0"):
        resolve(PipelineConfig.parse({"stages": {"ingest_events": {"histories": {"num_buckets": 0}}}}))
    with pytest.raises(ConfigError, match=r"stages = \['no_such_stage'\]"):
        resolve(PipelineConfig.parse({"stages": {"no_such_stage": {}}}))
