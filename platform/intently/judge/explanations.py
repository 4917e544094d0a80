"""A language model reads each explanation beside its item and says of every criterion whether it holds, and why."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from intently.judge.judging import Judge
from intently.judge.rubrics import EXPLANATIONS

SHOWN = ["item_id", "title", "category", "brand", "price", "attributes", "description"]


class ExplanationJudge(Judge):
    """Judges explanations."""

    def judge(self, explanations: pa.Table, items: pa.Table) -> pa.Table:
        """Judge every explanation under every criterion.

        Args:
            explanations: EXPLANATION rows.
            items: ITEM rows, all that they name.
        Returns:
            VERDICT rows, subject `item_id/interest`.
        """
        rows = items.select(SHOWN).take(pc.index_in(explanations["item_id"], items["item_id"].combine_chunks())).to_pylist()
        told = zip(rows, explanations["interest"].to_pylist(), explanations["text"].to_pylist(), strict=True)
        return self.ask(
            EXPLANATIONS,
            {
                f"{row['item_id']}/{interest}": {"explanation": text, "item": row, "interest": interest or None}
                for row, interest, text in told
            },
        )
