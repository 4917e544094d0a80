"""Gives every item a semantic ID: a few codes, one ID an item. Reads item, item_embedding; writes semantic_id, tokenizer.

item_interest is read where it stands (inputs.source: deep), and so is item_vector (inputs.collaborative_weight).

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_semantic_ids.py \\
    --config jobs/configs/build_semantic_ids/demo.yaml

When the catalogue has grown, `--set append_to=<version of semantic_id>` keeps every published ID and the codebooks that made them.
"""

from __future__ import annotations

import pyarrow as pa
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.schema import SEMANTIC_ID
from intently.core.workspace import Artifact, Workspace
from intently.generative.inputs import InputConfig, item_inputs
from intently.generative.quantiser import TOKENIZER, Quantised, QuantiserConfig, fit_quantiser, load_quantiser, put_quantiser
from intently.generative.semantic_ids import assign_semantic_ids
from intently.llm.encoder import EncoderConfig, TextEncoder
from pydantic import Field


class BuildSemanticIdsConfig(Config):
    """Settings of the job."""

    inputs: InputConfig = Field(InputConfig(), description="what is quantised")
    quantiser: QuantiserConfig = Field(QuantiserConfig(), description="how")
    encoder: EncoderConfig = Field(EncoderConfig(), description="of deep interests; the one that made item_embedding")
    append_to: str | None = Field(None, description="version of semantic_id whose IDs stay and whose codebooks are used; None learns anew")


def run(config: BuildSemanticIdsConfig, workspace: Workspace) -> Artifact:
    """Learn codebooks or take the published ones, assign, report; returns semantic_id."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    item_ids = workspace.artifact("item").read(columns=["item_id"])["item_id"].combine_chunks()
    optional = {name: workspace.artifact(name).read() if workspace.latest_version(name) else None for name in JOB.optional}
    encoder = TextEncoder(config.encoder) if config.inputs.source == "deep" else None
    embeddings = workspace.artifact("item_embedding").read()
    vectors = item_inputs(item_ids, embeddings, optional["item_interest"], optional["item_vector"], config.inputs, encoder)
    published, quantiser = _published(config, workspace)
    if quantiser is None:
        quantiser = fit_quantiser(vectors, config.quantiser)
    if len(quantiser.mean) != vectors.shape[1]:
        raise ConfigError(
            "append_to", config.append_to, f"its codebooks are for {len(quantiser.mean)} numbers an item, not {vectors.shape[1]}"
        )
    made = assign_semantic_ids(item_ids, vectors, quantiser, published)
    put_quantiser(stages["tokenizer"], quantiser)
    stages["tokenizer"].finish(metrics=made.report)
    stages["semantic_id"].write("part-00000", made.table)
    print(", ".join(f"{name} {value:.4g}" for name, value in made.report.items()), flush=True)
    return stages["semantic_id"].finish(metrics=made.report, notes={TOKENIZER: stages["tokenizer"].version})


def _published(config: BuildSemanticIdsConfig, workspace: Workspace) -> tuple[pa.Table | None, Quantised | None]:
    if config.append_to is None:
        return None, None
    artifact = workspace.artifact("semantic_id", config.append_to)
    return artifact.read(), load_quantiser(workspace.artifact("tokenizer", artifact.manifest.notes[TOKENIZER]))


JOB = Job(
    name="build_semantic_ids",
    config=BuildSemanticIdsConfig,
    reads=("item", "item_embedding"),
    writes={"semantic_id": SEMANTIC_ID, "tokenizer": None},
    run=run,
    optional=("item_interest", "item_vector"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
