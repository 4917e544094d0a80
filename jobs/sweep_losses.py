"""Sweeps a of L = L_col + a·L_tag + (1 − a)·L_cate: towers for each a, the fusion sweep over b for each, the best pair left standing.

Every a costs a whole training (`num_epochs` epochs; on MovieLens-1M minutes each), every b of it a second or two on cached vectors. The
rule: the a whose chosen b has the highest NDCG@10 on validation. Towers, fusion and index of that pair are what serving reads next; the
others stand beside them. A killed sweep trains none twice. Writes loss_sweep: every (a, b) on validation.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/sweep_losses.py \\
    --config jobs/configs/sweep_losses/demo.yaml
"""

from __future__ import annotations

import json

import build_index
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sweep_fusion
import train_towers
from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.schema import METRIC
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.runtime.session import ray_session
from pydantic import Field
from run_pipeline import PipelineConfig, resolve

ALPHAS = (0.25, 0.5, 0.75)


class SweepLossesConfig(Config):
    """Settings of the job."""

    alphas: tuple[float, ...] = Field(ALPHAS, min_length=1, description="values of a that are tried; each trains towers of its own")
    stages: dict[str, dict[str, object]] = Field(
        default_factory=dict, description="settings of train_towers, sweep_fusion and build_index, as in run_pipeline"
    )


def run(config: SweepLossesConfig, workspace: Workspace) -> Artifact:
    """Train and sweep for each a; the table of all pairs."""
    settings = resolve(PipelineConfig(stages=config.stages))
    with ray_session():
        fusions = {alpha: _sweep(alpha, settings, workspace) for alpha in config.alphas}
        best = max(fusions, key=lambda alpha: fusions[alpha].manifest.metrics["validation_ndcg"])
        _sweep(best, settings, workspace)  # stands already: what is latest names it again
        build_index.JOB.execute(settings["build_index"], workspace)
    inputs = {f"fusion at {alpha}": fusion.version for alpha, fusion in fusions.items()}
    stage = open_stage(workspace, "loss_sweep", METRIC, inputs, config)
    stage.write("part-00000", pa.concat_tables([_rows(alpha, fusion) for alpha, fusion in fusions.items()]))
    return stage.finish(metrics={"alpha": best, "beta": fusions[best].manifest.metrics["beta"]})


def _sweep(alpha: float, settings: dict[str, Config], workspace: Workspace) -> Artifact:
    towers = settings["train_towers"].model_dump()
    towers["training"]["learning"]["alpha"] = alpha
    train_towers.JOB.execute(train_towers.TrainTowersConfig.parse(towers), workspace)
    fusion = sweep_fusion.JOB.execute(settings["sweep_fusion"], workspace)
    metrics = fusion.manifest.metrics
    print(f"a {alpha:g}: chosen b {metrics['beta']:.2f}, NDCG on validation {metrics['validation_ndcg']:.4f}", flush=True)
    return fusion


def _rows(alpha: float, fusion: Artifact) -> pa.Table:
    """The sweep over b with a in its setting."""
    table = fusion.read()
    table = table.filter(pc.equal(table["split"], "validation"))
    pairs = [json.dumps({"alpha": alpha, **json.loads(setting)}) for setting in table["setting"].to_pylist()]
    return table.set_column(table.schema.get_field_index("setting"), METRIC.schema.field("setting"), pa.array(np.array(pairs, object)))


JOB = Job(name="sweep_losses", config=SweepLossesConfig, reads=(), writes={}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
