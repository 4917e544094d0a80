"""Groups of samples for GRPO: ours beside what TRL's trainer does, the same model, prompts and catalogue, in one call.

    PYTHONPATH=platform python benchmarks/grpo_rollout.py [--quick] [--json FILE]

TRL hands each prompt to `transformers.generate` once a sample (`do_sample`, cache on), and a LogitsProcessor that looks every prefix up in
a dictionary keeps to the catalogue, as public generative recommenders do; TRL's trainer itself has no route for such a processor, so that
its call is made here. Ours reads a prompt once for its whole group. Both return items of the catalogue only, which is checked, and both
draw from the same distribution: the mean log-probability of what was drawn, under our policy, is in the table. `loss forward` is the pass
of the loss with gradients, a prompt read once for its group, beside the same log-probabilities from a sequence for every sample.
Weights are random: speed does not depend on what they mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from constrained_beam import LEVELS, TOKENS, VOCABULARY, DictionaryProcessor, Scale, make_catalogue, make_model, prefixes_of
from intently.generative.beam import BeamConfig, ConstrainedBeam
from intently.generative.policy import head_of, read_items, score_completions
from intently.generative.rollout import draw_groups, numbers_of
from intently.generative.trie import Trie, build_trie
from transformers import LogitsProcessorList, Qwen3ForCausalLM

GROUP, TEMPERATURE = 10, 1.0
FULL = Scale(hidden=256, layers=4, batches=(8, 32), repeats=5, other_repeats=3, large_batches=())
QUICK = Scale(hidden=128, layers=2, batches=(8, 32), repeats=3, other_repeats=1, large_batches=())


def ours(model: Qwen3ForCausalLM, prompts: torch.Tensor, trie: Trie) -> torch.Tensor:
    """[B · GROUP, LEVELS] tokens of the items that we draw."""
    numbers = torch.from_numpy(numbers_of(0, 0, 0, len(prompts) * GROUP, LEVELS).reshape(len(prompts), GROUP, LEVELS))
    beam, lengths = ConstrainedBeam(model, TOKENS, BeamConfig()), torch.full((len(prompts),), prompts.shape[1])
    drawn = draw_groups(beam, prompts, lengths, trie, numbers, TEMPERATURE)
    return torch.from_numpy(TOKENS.encode(trie.semantic_ids[drawn.items.flatten().numpy()]).astype(np.int64))


def theirs(model: Qwen3ForCausalLM, prompts: torch.Tensor, processor: DictionaryProcessor) -> torch.Tensor:
    """The same from transformers, as TRL calls it: every prompt GROUP times."""
    repeated = prompts.repeat_interleave(GROUP, dim=0)
    written = model.generate(
        repeated,
        attention_mask=torch.ones_like(repeated),
        max_new_tokens=LEVELS,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        logits_processor=LogitsProcessorList([processor]),
    )
    return written[:, prompts.shape[1] :]


def score(model: Qwen3ForCausalLM, prompts: torch.Tensor, completions: torch.Tensor, trie: Trie, together: bool) -> torch.Tensor:
    """[B · GROUP, LEVELS] log-probabilities with their backward pass; `together`: a prompt is read once for its group."""
    model.zero_grad()
    repeated = prompts.repeat_interleave(GROUP, dim=0)
    mask, found = torch.ones_like(repeated), []
    # A slice of every GROUP-th sample holds no prompt twice.
    for part in [slice(None)] if together else [slice(first, None, GROUP) for first in range(GROUP)]:
        scored = score_completions(model, head_of(model), repeated[part], mask[part], completions[part], trie, TOKENS, TEMPERATURE)
        scored.log_probs.sum().backward()
        found.append(scored.log_probs.detach())
    return found[0] if together else torch.stack(found, dim=1).flatten(0, 1)


def timed(work: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Median seconds after a run that warms up, and what came out last."""
    found, seconds = work(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), found


def measure(scale: Scale, num_items: int) -> list[dict[str, Any]]:
    """A row a number of prompts."""
    torch.manual_seed(0)
    model, codes, rows = make_model(scale), make_catalogue(num_items), []
    trie = build_trie(codes, np.array([f"i{n}" for n in range(num_items)], object), "benchmark")
    for batch in scale.batches:
        prompts = torch.randint(1, VOCABULARY, (batch, 40), generator=torch.Generator().manual_seed(batch))
        processor = DictionaryProcessor(prefixes_of(codes), prompts.shape[1])
        our_s, our_tokens = timed(lambda p=prompts: ours(model, p, trie), scale.repeats)
        their_s, their_tokens = timed(lambda p=prompts, c=processor: theirs(model, p, c), scale.other_repeats)
        for name, tokens in (("ours", our_tokens), ("theirs", their_tokens)):
            assert (read_items(tokens, trie, TOKENS) >= 0).all(), f"{name}: not all are items"
        together_s, together = timed(lambda p=prompts, t=our_tokens: score(model, p, t, trie, True), scale.repeats)
        apart_s, apart = timed(lambda p=prompts, t=our_tokens: score(model, p, t, trie, False), scale.other_repeats)
        torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-3)
        rows.append(
            {
                "prompts": batch,
                "samples": batch * GROUP,
                "ours_s": our_s,
                "trl_s": their_s,
                "ratio": their_s / our_s,
                "ours_mean_log_prob": float(together.sum(dim=1).mean()),
                "trl_mean_log_prob": float(score(model, prompts, their_tokens, trie, True).sum(dim=1).mean()),
                "loss_together_s": together_s,
                "loss_apart_s": apart_s,
                "loss_ratio": apart_s / together_s,
            }
        )
    return rows


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(QUICK if options.quick else FULL, 12_000)
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    found = {"rollout_vs_trl_ratio": rows[-1]["ratio"], "loss_shared_prompt_ratio": rows[-1]["loss_ratio"]}
    print("\n".join(f"{name:<32}{value:.1f}" for name, value in found.items()))
    if options.json:
        result = {"benchmark": "grpo_rollout", "quick": options.quick, "figures": found, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
