"""Questions of given lengths about nothing, in the paper's prompt form."""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from resurface.prompts import LETTERS

HEADER = "The following are multiple choice questions (with answers) about biology.\n\n"
WORDS = (
    "plant fever river stone cause treat found never which often under heat grows part water slow north light".split()
)
OPTION_WORDS = 4


def even_lengths(count: int, tokens: int) -> list[float]:
    """From three fifths to seven fifths of `tokens`, evenly spread."""
    return [tokens * (0.6 + 0.8 * place / max(1, count - 1)) for place in range(count)]


def tailed_lengths(count: int, tokens: int) -> list[float]:
    """Around a median of `tokens` with a long tail, as a benchmark of many subjects has: a twentieth is beyond three times that."""
    spread = NormalDist(0, 2 / 3)
    return [
        tokens * math.exp(logarithm) for logarithm in (spread.inv_cdf((place + 0.5) / count) for place in range(count))
    ]


def make_prompts(tokenizer: PreTrainedTokenizerBase, lengths: Sequence[float], seed: int = 0) -> list[str]:
    """Plain prompts of about so many tokens each, in an order that the seed draws."""
    generator = random.Random(seed)

    def write(words: int) -> str:
        question = " ".join(generator.choices(WORDS, k=words))
        options = [f"{letter}. {' '.join(generator.choices(WORDS, k=OPTION_WORDS))}" for letter in LETTERS]
        return HEADER + "\n".join([question, *options, "Answer:"])

    rows = tokenizer([write(0), write(100)])["input_ids"]
    base, per_word = len(rows[0]), (len(rows[1]) - len(rows[0])) / 100
    wanted = list(lengths)
    generator.shuffle(wanted)
    return [write(max(1, round((length - base) / per_word))) for length in wanted]


def make_requests(prompts: list[str]) -> list[Instance]:
    """The harness's requests: the four letters after each prompt."""
    return [
        Instance("loglikelihood", {"prompt": prompt}, (prompt, f" {letter}"), choice, ("benchmark", number, 1))
        for number, prompt in enumerate(prompts)
        for choice, letter in enumerate(LETTERS)
    ]
