"""Sweeps the fusion weight b of h = b·h_u + (1 − b)·h_t with Ray Tune: accuracy against diversity, and the point that serving uses.

The rule: of the Pareto front on validation (NDCG@10 with seen items left out, category coverage, share of the tail) the points within
`concession` of the best NDCG, and of these the one of most category coverage. Reads towers, user_vector, item_vector, tag_vector, tag,
history_train, history_validation, history_test, item; writes fusion: every point on validation, the chosen one and the baselines on test,
front.csv and front.png.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/sweep_fusion.py \\
    --config jobs/configs/sweep_fusion/demo.yaml

A killed sweep measures only the points that are missing. A service that reloads takes the chosen b and the pooling from this artifact.
"""

from __future__ import annotations

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.schema import METRIC
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.evaluate import metric_rows
from intently.retrieval.fusion import choose, pareto_front
from intently.retrieval.sweep import FusionConfig, front_table, measure_beta, measure_test, points_of, read_sweep_data, trial_rows
from intently.runtime.tune import SweepConfig, sweep
from pydantic import Field
from report.plots import plot_front


class SweepFusionConfig(Config):
    """Settings of the job."""

    fusion: FusionConfig = Field(FusionConfig(), description="what is swept and measured")
    harness: SweepConfig = Field(SweepConfig(), description="how the trials run")


def run(config: SweepFusionConfig, workspace: Workspace) -> Artifact:
    """Measure every b, choose one, measure it on test."""
    stage = JOB.stage(workspace, "fusion", config)
    trials = f"fusion/{stage.version}/trials"
    fusion, data = config.fusion, read_sweep_data(workspace, config.fusion)
    results = sweep(measure_beta, [{"beta": beta} for beta in fusion.betas], data, config.harness, workspace, trials)
    points = points_of(fusion.betas, results, fusion)
    chosen, front = choose(points, fusion.concession), pareto_front(points)
    table = front_table(points, chosen)
    print(table, flush=True)
    stage.put("front.csv", table.encode())
    stage.put("front.png", plot_front(points, front, chosen))
    rows = trial_rows(fusion, results, len(data.targets["validation"].users))
    metrics = {"beta": chosen.beta, "tagged_users": float(data.vectors["validation"].tagged.mean()), "num_points": len(points)}
    metrics |= {"validation_ndcg": chosen.accuracy, "validation_coverage": chosen.coverage, "validation_tail": chosen.tail}
    metrics |= {f"pareto_{number}": point.beta for number, point in enumerate(front)}
    first = fusion.cutoffs[0]
    for subject, measured in measure_test(data, chosen.beta, fusion.num_neighbours).items():
        for ranking, figures in measured:
            setting = {"beta": chosen.beta} if subject == "towers" else {}
            rows += metric_rows(subject, "test", ranking, figures, fusion.seed, setting)
            if ranking.filter_seen and len(ranking.ranks):
                hr, ndcg = figures["HR", first], figures["NDCG", first]
                metrics |= {f"hr{first}_{subject}": hr, f"ndcg{first}_{subject}": ndcg}
                print(f"test, seen items left out: {subject} HR@{first} {hr:.4f}, NDCG@{first} {ndcg:.4f}", flush=True)
    stage.write("part-00000", METRIC.from_rows(rows))
    workspace.filesystem.delete_dir(workspace.path(trials))
    rule = f"of the front, NDCG@{first} on validation within {fusion.concession:.1%} of the best; then category coverage, tail, b"
    return stage.finish(metrics=metrics, notes={"rule": rule, "pooling": fusion.pooling})


JOB = Job(
    name="sweep_fusion",
    config=SweepFusionConfig,
    reads=(
        "towers", "user_vector", "item_vector", "tag_vector", "tag",
        "history_train", "history_validation", "history_test", "item",
    ),
    writes={"fusion": METRIC},
    run=run,
)  # fmt: skip

if __name__ == "__main__":
    launch(JOB, __doc__)
