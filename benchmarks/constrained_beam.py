"""Constrained beam search beside transformers' own: the same model, the same prompts, the same top 20, in one call.

    PYTHONPATH=platform python benchmarks/constrained_beam.py [--quick] [--json FILE]

The other sides are `transformers.generate` with `prefix_allowed_tokens_fn` and with a LogitsProcessor that looks every beam's prefix up
in a dictionary, as public generative recommenders do. Ours scores with the whole vocabulary there, so that scores can be compared; the
ratios are of that, and its default (the codes of a level only) stands in the table beside it. Answers are checked to be the same within
ties on every batch that both sides ran. Prompts are 60 to 80 tokens, weights are random: speed does not depend on what they mean. Step
time is that of everything a search does after the prompt is read, a code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intently.generative.beam import BeamConfig, ConstrainedBeam, Found, SidTokens
from intently.generative.trie import Trie, build_trie
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

LEVELS, CODES, TOP = 4, 256, 20
TEXT_TOKENS = 2048
VOCABULARY = TEXT_TOKENS + LEVELS * CODES
TOKENS = SidTokens(tuple(TEXT_TOKENS + level * CODES for level in range(LEVELS)), (CODES,) * LEVELS)
SMALL, LARGE = 12_000, 1_000_000

Prefixes = dict[tuple[int, ...], list[int]]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        hidden, layers: of the model.
        batches: batch sizes.
        repeats: searches of ours that a figure is the median of.
        other_repeats: runs of the other sides.
        large_batches: batch sizes on the large catalogue at which the other sides run too.
    """

    hidden: int
    layers: int
    batches: tuple[int, ...]
    repeats: int
    other_repeats: int
    large_batches: tuple[int, ...]


FULL = Scale(hidden=256, layers=4, batches=(1, 8, 32), repeats=5, other_repeats=2, large_batches=(1, 8, 32))
QUICK = Scale(hidden=128, layers=2, batches=(1, 32), repeats=5, other_repeats=1, large_batches=())


def make_model(scale: Scale) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, in float32, so that both sides can be compared score by score."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=scale.hidden,
            intermediate_size=scale.hidden * 3,
            num_hidden_layers=scale.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=scale.hidden // 4,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
    return model.eval()


def make_catalogue(num_items: int) -> np.ndarray:
    """[N, LEVELS] distinct random codes; the first levels are drawn unevenly, as real ones are."""
    rng = np.random.default_rng(num_items)
    drawn = rng.integers(0, CODES, (int(num_items * 1.1), LEVELS))
    drawn[:, 0] = (CODES * rng.random(len(drawn)) ** 1.5).astype(np.int64)
    keys = np.unique(drawn @ (CODES ** np.arange(LEVELS)[::-1]))
    keys = np.sort(rng.permutation(keys)[:num_items])
    return (keys[:, None] // CODES ** np.arange(LEVELS)[::-1] % CODES).astype(np.int32)


def prefixes_of(codes: np.ndarray) -> Prefixes:
    """Tokens allowed behind each written prefix: what the other sides look up."""
    tokens = TOKENS.encode(codes)
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for row in tokens.tolist():
        for level in range(LEVELS):
            children.setdefault(tuple(row[:level]), {})[row[level]] = None
    return {prefix: list(found) for prefix, found in children.items()}


class DictionaryProcessor(LogitsProcessor):
    """Leaves each beam the tokens that a dictionary holds for its prefix, row by row."""

    def __init__(self, allowed: Prefixes, prompt_length: int) -> None:
        self.allowed, self.prompt_length = allowed, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        mask = torch.full_like(scores, -torch.inf)
        for row, sequence in enumerate(input_ids):
            mask[row, self.allowed.get(tuple(sequence[self.prompt_length :].tolist()), [])] = 0
        return scores + mask


def generate(model: Qwen3ForCausalLM, prompts: torch.Tensor, mask: torch.Tensor, **constraint: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' beam search: the TOP written codes [B, TOP, LEVELS] and their scores [B, TOP]."""
    out = model.generate(
        prompts, attention_mask=mask, max_new_tokens=LEVELS, num_beams=TOP, num_return_sequences=TOP, do_sample=False, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True, **constraint,
    )  # fmt: skip
    codes = out.sequences[:, prompts.shape[1] :] - torch.tensor(TOKENS.first)
    return codes.view(len(prompts), TOP, LEVELS), out.sequences_scores.view(len(prompts), TOP)


def check_same(found: Found, codes: np.ndarray, theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Scores equal rank by rank; items equal but for those as good as the last one, or as one another."""
    written, scores = theirs
    torch.testing.assert_close(found.scores, scores, atol=2e-4, rtol=1e-4)
    ours = codes[found.items.numpy()]
    for query in range(len(written)):
        mine = {tuple(row) for row in ours[query].tolist()}
        other = {tuple(row) for row in written[query].tolist()}
        tied = int((scores[query] - scores[query, -1] < 4e-4).sum())
        assert len(mine & other) >= TOP - tied, f"query {query}: {len(mine & other)} of {TOP} items are the same, {tied} are tied"


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of a call, after one that is not counted where there are several."""
    result = work() if repeats > 1 else None
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def step_seconds(beam: ConstrainedBeam, prompts: torch.Tensor, lengths: torch.Tensor, trie: Trie, repeats: int) -> float:
    """Seconds a code of a search, without reading the prompt."""
    whole, _ = timed(lambda: beam.search(prompts, lengths, trie, TOP), repeats)
    with torch.no_grad():
        reading, _ = timed(lambda: beam.model.base_model(input_ids=prompts, use_cache=True), repeats)
    return (whole - reading) / LEVELS


def measure(scale: Scale) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Every catalogue, batch and side: figures and rows."""
    model = make_model(scale)
    beams = {kind: ConstrainedBeam(model, TOKENS, BeamConfig(width=TOP, scores=kind)) for kind in ("level", "vocabulary")}
    rows: list[dict[str, Any]] = []
    steps: dict[int, float] = {}
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(60, 81, (max(scale.batches),), generator=generator)
    prompts = torch.randint(1, TEXT_TOKENS, (len(lengths), int(lengths.max())), generator=generator)
    for num_items, others_at in ((SMALL, scale.batches), (LARGE, scale.large_batches)):
        codes = make_catalogue(num_items)
        began = time.perf_counter()
        trie = build_trie(codes, np.arange(num_items).astype(object), str(num_items))
        print(f"{num_items:,} semantic IDs: trie of {len(trie.codes):,} nodes in {time.perf_counter() - began:.2f} s", flush=True)
        allowed = prefixes_of(codes) if others_at else {}
        for batch in scale.batches:
            asked, sizes = prompts[:batch], lengths[:batch]
            row: dict[str, Any] = {"items": num_items, "batch": batch}
            for kind, beam in beams.items():
                row[f"ours_{kind}"], found = timed(lambda b=beam, p=asked, n=sizes, t=trie: b.search(p, n, t, TOP), scale.repeats)
            if batch in others_at:
                row |= measure_others(model, asked, sizes, allowed, found, codes, scale)
            rows.append(row)
            print(
                "  ".join(
                    f"{key} {batch / value:.1f} queries/s" if isinstance(value, float) else f"{key} {value:,}" for key, value in row.items()
                )
            )
        steps[num_items] = step_seconds(beams["level"], prompts, lengths, trie, scale.repeats)
    widest = next(row for row in rows if row["items"] == SMALL and row["batch"] == max(scale.batches))
    figures = {
        "beam_vs_prefix_fn_ratio_batch32": widest["prefix_fn"] / widest["ours_vocabulary"],
        "beam_vs_dict_processor_ratio_batch32": widest["dict_processor"] / widest["ours_vocabulary"],
        "beam_level_scores_vs_prefix_fn_ratio_batch32": widest["prefix_fn"] / widest["ours_level"],
        "step_time_large_over_small_ratio": steps[LARGE] / steps[SMALL],
        "step_ms_small": steps[SMALL] * 1000,
        "queries_per_second_batch32": widest["batch"] / widest["ours_level"],
    }
    return figures, rows


def measure_others(
    model: Qwen3ForCausalLM, prompts: torch.Tensor, lengths: torch.Tensor, allowed: Prefixes, found: Found, codes: np.ndarray, scale: Scale
) -> dict[str, float]:
    """Seconds of both other sides, their answers checked against ours; they fill prompts up on the left."""
    width = int(lengths.max())
    left = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(left)
    for row, length in enumerate(lengths.tolist()):
        left[row, width - length :] = prompts[row, :length]
        mask[row, width - length :] = 1
    sides = {
        "prefix_fn": {"prefix_allowed_tokens_fn": lambda _, sequence: allowed[tuple(sequence[width:].tolist())]},
        "dict_processor": {"logits_processor": LogitsProcessorList([DictionaryProcessor(allowed, width)])},
    }
    seconds = {}
    for name, constraint in sides.items():
        seconds[name], theirs = timed(lambda c=constraint: generate(model, left, mask, **c), scale.other_repeats)
        check_same(found, codes, theirs)
    return seconds


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, the others on the small catalogue only; within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures, rows = measure(QUICK if options.quick else FULL)
    print("\n".join(f"{name:<56}{value:,.4g}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "constrained_beam", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
