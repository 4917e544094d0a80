"""align_student and train_student: from simulated worlds to a model folder in the workspace, and again without doing it twice."""

from __future__ import annotations

import align_student
import pytest
import train_student
from intently.core.errors import MissingArtifactError
from intently.core.schema import CHAT_EXAMPLE

TEACHER = {"num_worlds": 2, "users_per_world": 8, "tags_per_world": 4, "explanations_per_world": 10, "chunk_sizes": [4, 8]}
TINY = {"vocabulary": 2000, "hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 32, "feed_forward": 64}
TRAINING = {"student": TINY, "num_steps": 3, "batch_tokens": 2048, "copy_steps": 1, "easy_steps": 1, "threads": 1}


@pytest.mark.usefixtures("ray_session")
def test_student_jobs_write_examples_and_a_model_folder_once(workspace):
    teach = align_student.AlignStudentConfig.parse({"teacher": TEACHER})
    examples = align_student.run(teach, workspace)
    assert examples.parts() == ["world-00000", "world-00001"]
    CHAT_EXAMPLE.check(examples.read())

    learn = train_student.TrainStudentConfig.parse({"training": TRAINING})
    student = train_student.run(learn, workspace)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(student.manifest.files)
    assert student.manifest.metrics["loss"] > 0
    assert not (workspace.artifact("student").fetch("model.safetensors").parent / "training").exists()

    assert align_student.run(teach, workspace).manifest.ended == examples.manifest.ended
    assert train_student.run(learn, workspace).manifest.ended == student.manifest.ended


def test_train_student_without_examples_names_the_artifact(workspace):
    with pytest.raises(MissingArtifactError, match="chat_example"):
        train_student.run(train_student.TrainStudentConfig(), workspace)
