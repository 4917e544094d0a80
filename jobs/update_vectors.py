"""Takes new items and tags into vectors and index without training: what stands keeps its vectors, bit for bit, and its rows.

Reads towers, item, tag, item_embedding, item_vector, tag_vector, user_vector, index; writes item_embedding, item_vector, tag_vector and
index where there is something new, else nothing. Daily, behind jobs/ingest_items.py and jobs/predict_tags.py; a service that reloads
finds the new items at once.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/update_vectors.py \\
    --config jobs/configs/update_vectors/demo.yaml
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.schema import EMBEDDING
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.llm.embedding import ItemTextConfig, embedding_rows, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.growing import check_model, extend, item_rows, later_rows, tag_rows
from intently.retrieval.index import recall_against_exact
from intently.retrieval.index_files import append_to_index, load_index
from intently.retrieval.trained import load_towers
from pydantic import Field


class UpdateVectorsConfig(Config):
    """Settings of the job; encoder and item_text as in embed_texts."""

    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="encodes items that have no text embedding yet")
    item_text: ItemTextConfig = Field(default_factory=ItemTextConfig, description="what is said of an item")
    recall_at: int = Field(100, ge=1, description="k of the recall against exact search that the manifest notes")
    recall_queries: int = Field(1000, ge=1, description="users whose vectors are the queries, evenly spaced, at most")


def run(config: UpdateVectorsConfig, workspace: Workspace) -> Artifact:
    """Embed and append what is new; the standing item_vector where nothing is."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    artifact = workspace.artifact("towers")
    towers, model = load_towers(artifact), str(artifact)
    item, tag = workspace.artifact("item").read(), workspace.artifact("tag")
    items, tags = workspace.artifact("item_vector"), workspace.artifact("tag_vector")
    check_model(items, model)
    check_model(tags, model)
    later = item.take(pa.array(later_rows(item["item_id"], items)))
    named = pc.unique(tag.read(columns=["tag"])["tag"])
    new_tags = named.take(pa.array(later_rows(named, tags)))
    if later.num_rows:
        texts = _embed_texts(later, workspace, stages, config)
        items = extend(stages["item_vector"], items, item_rows(towers, later, texts, model))
    if len(new_tags) or tags.manifest.inputs["tag"] != tag.version:  # serving waits for vectors of the tags that stand
        extend(stages["tag_vector"], tags, tag_rows(towers, new_tags, model))
    print(f"new: {later.num_rows} items, {len(new_tags)} tags", flush=True)
    _append(items, workspace, config)
    return items


def _embed_texts(later: pa.Table, workspace: Workspace, stages: dict, config: UpdateVectorsConfig) -> pa.Table:
    """Text embeddings of the new items; those that are missing are made and appended. Without any text embeddings there are none."""
    standing = workspace.artifact("item_embedding")
    missing = later.take(pa.array(later_rows(later["item_id"], standing)))
    table = standing.read()
    if missing.num_rows and table.num_rows:
        encoder = TextEncoder(config.encoder)
        made_by = table["model"][0].as_py()
        if encoder.name != made_by:
            raise ConfigError("encoder.model", encoder.name, f"the standing items were encoded by {made_by}")
        vectors = encoder.encode(item_texts(missing, config.item_text).to_pylist())
        rows = embedding_rows("item", missing["item_id"], vectors, encoder.name)
        table = extend(stages["item_embedding"], standing, rows).read()
    return table.filter(pc.is_in(table["id"], later["item_id"].combine_chunks()))


def _append(items: Artifact, workspace: Workspace, config: UpdateVectorsConfig) -> None:
    """Bring the index up to the items, also where a run was killed between the two."""
    base = workspace.artifact("index")
    known = len(load_index(base)[1])
    table = items.read()
    if table.num_rows == known:
        return
    user = workspace.artifact("user_vector")
    inputs = {"item_vector": items.version, "user_vector": user.version, "index": base.version}
    stage = open_stage(workspace, "index", None, inputs, config)
    index = append_to_index(stage, base, table)
    users = vectors_of(user.read())
    chosen = np.linspace(0, len(users) - 1, min(config.recall_queries, len(users))).astype(int)
    recall = recall_against_exact(index, users[chosen], config.recall_at)
    metrics = {f"recall{config.recall_at}": recall, "num_items": table.num_rows, "appended": table.num_rows - known}
    stage.finish(metrics=metrics, notes={"kind": index.kind, "queries": "user vectors"})


JOB = Job(
    name="update_vectors",
    config=UpdateVectorsConfig,
    reads=("towers", "item", "tag", "item_embedding", "item_vector", "tag_vector", "user_vector", "index"),
    writes={"item_vector": EMBEDDING, "tag_vector": EMBEDDING, "item_embedding": EMBEDDING, "index": None},
    run=run,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
