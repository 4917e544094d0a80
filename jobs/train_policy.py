"""Goes on from a fine-tuned generator by reinforcement (GRPO) and keeps the better of the two; its manifest says which, and why.

Reads history_train, history_validation, history_test and the generator that `start` names; where they stand, interest_verdict, item_vector
and item_embedding, for rewards. Writes generator, policy_metric, rollout.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_policy.py \\
    --config jobs/configs/train_policy/demo.yaml --set start=<version of generator>
"""

from __future__ import annotations

import json

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.schema import METRIC, ROLLOUT
from intently.core.workspace import Artifact, Workspace
from intently.generative.beam import BeamConfig
from intently.generative.evaluate import measure_generator
from intently.generative.generator import TrainedGenerator, open_bundle, put_bundle
from intently.generative.policy_training import TABLES, PolicyConfig, choose, train_policy
from intently.runtime.grpo import BEST
from intently.runtime.train import TrainConfig, train
from pyarrow.fs import LocalFileSystem
from pydantic import Field
from report.plots import plot_curves

PANELS = {
    "reward": ("reward", "hit_rate", "bonus_rate"),
    "of the policy": ("entropy", "kl", "clipped"),
    "groups and codes": ("zero_advantage", "replaced", "invalid"),
}
"""What the plot shows beside validation."""


class TrainPolicyConfig(Config):
    """Settings of the job."""

    start: str | None = Field(
        None, description="version of the fine-tuned generator to begin with, which the policy is held to; has to be named"
    )
    policy: PolicyConfig = Field(PolicyConfig(), description="reward, prompts, training, validation")
    harness: TrainConfig = Field(TrainConfig(checkpoint_every=1), description="where and how the loop runs; a checkpoint's unit is a round")


def run(config: TrainPolicyConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, then keep the better of both and measure it; returns generator."""
    if config.start is None:
        raise ConfigError("start", None, f"name a version of generator; LATEST is {workspace.latest_version('generator')}")
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    standing = [name for name in JOB.optional if workspace.latest_version(name)]
    versions = {name: workspace.artifact(name).version for name in (*JOB.reads, *standing)} | {"generator": config.start}
    tuned = workspace.artifact("generator", config.start)
    place = f"generator/{stages['generator'].version}"
    logs = workspace.path(place, "tensorboard") if isinstance(workspace.filesystem, LocalFileSystem) else None
    arguments = {"workspace": workspace, "versions": versions, "config": config.policy, "stage": stages["rollout"], "log_folder": logs}
    with train(train_policy, arguments, config.harness, workspace, f"{place}/training") as result:
        choice = choose(result.history, config.policy.validation)
        bundle = open_bundle(tuned)
        put_bundle(stages["generator"], bundle, bundle.folder if choice.shipped == "sft" else result.folder / BEST)
    panels = {**PANELS, "validation": tuple(f"hr{k}" for k in config.policy.validation.cutoffs)}
    stages["policy_metric"].put("training.png", plot_curves(result.history, panels, "round"))
    stages["policy_metric"].put("training.json", json.dumps(result.history).encode())
    print(f"shipped: {choice.shipped}, {choice.why}", flush=True)
    artifact = stages["generator"].finish(
        metrics=choice.figures, notes={"shipped": choice.shipped, "why": choice.why, "start": config.start}
    )
    stages["rollout"].finish()
    setting, rows = config.policy.validation, []
    for subject, version in (("sft", config.start), ("shipped", artifact.version)):
        beam = BeamConfig(width=max(setting.cutoffs), scores=setting.scores)
        generator = TrainedGenerator.load(workspace, beam, versions={"generator": version})
        rows += measure_generator(generator, workspace, subject, setting.cutoffs, setting.max_users, config.policy.grpo.seed)
    stages["policy_metric"].write("part-00000", METRIC.from_rows(rows))
    stages["policy_metric"].finish()
    # Checkpoints are for a killed run; what they held stands in `generator` now.
    workspace.filesystem.delete_dir(workspace.path(place, "training"))
    return artifact


JOB = Job(
    name="train_policy",
    config=TrainPolicyConfig,
    reads=("history_train", "history_validation", "history_test"),
    writes={"generator": None, "policy_metric": METRIC, "rollout": ROLLOUT},
    run=run,
    optional=TABLES,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
