"""Perplexities of a whole experiment, from the likelihoods of single replies (`resurface.scoring.perplexity`).

The perplexity of several replies is exp(Σ nats / Σ tokens): tokens are what is averaged over, so that an empty reply counts for
nothing and a long one for more than a short one.
"""

import numpy as np
import pandas as pd

from resurface.scoring.columns import PERPLEXITY_COLUMNS

# Who reads whose text: the five numbers of each variant, columns of the table and words of the report.
TEXTS = {
    "original": "original reads its own text",
    "unlearned": "unlearned model reads the original's text",
    "attacked": "the same, attacked",
    "unlearned_text": "original reads the unlearned model's text",
    "attacked_text": "the same, attacked",
}
PERPLEXITY_KEYS = ["domain", "method", "seed", "attack", "variant", "template"]
PERPLEXITY_SUMMARY_COLUMNS = [*PERPLEXITY_KEYS, *TEXTS]


def summarize_perplexity(replies: pd.DataFrame | None) -> pd.DataFrame:
    """One row per model, attack, variant and template with the five perplexities.

    Args:
        replies: tables of single replies (`PERPLEXITY_COLUMNS`), one after the other; None if no attack works through the prompt.

    Returns:
        the columns of `PERPLEXITY_SUMMARY_COLUMNS`; null where all replies are empty.
    """
    if replies is None:
        replies = pd.DataFrame(columns=PERPLEXITY_COLUMNS)
    sums = replies.groupby([*PERPLEXITY_KEYS, "text"], sort=False)[["tokens", "nats"]].sum()
    sums["perplexity"] = np.exp((sums["nats"] / sums["tokens"].where(sums["tokens"] > 0)).astype(float))
    table = sums["perplexity"].unstack("text").reindex(columns=list(TEXTS)).reset_index()
    table.columns.name = None
    return table[PERPLEXITY_SUMMARY_COLUMNS].astype({"seed": "Int64"})
