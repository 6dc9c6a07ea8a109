"""Questions of a given length about nothing, in the paper's prompt form."""

import random

from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from resurface.prompts import LETTERS

HEADER = "The following are multiple choice questions (with answers) about biology.\n\n"
WORDS = (
    "plant fever river stone cause treat found never which often under heat grows part water slow north light".split()
)
OPTION_WORDS = 4


def make_prompts(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int, seed: int = 0) -> list[str]:
    """Plain prompts of about `tokens` tokens each: from three fifths to seven fifths of that, evenly spread."""
    generator = random.Random(seed)

    def write(words: int) -> str:
        question = " ".join(generator.choices(WORDS, k=words))
        options = [f"{letter}. {' '.join(generator.choices(WORDS, k=OPTION_WORDS))}" for letter in LETTERS]
        return HEADER + "\n".join([question, *options, "Answer:"])

    rows = tokenizer([write(0), write(100)])["input_ids"]
    base, per_word = len(rows[0]), (len(rows[1]) - len(rows[0])) / 100
    wanted = [tokens * (0.6 + 0.8 * place / max(1, count - 1)) for place in range(count)]
    generator.shuffle(wanted)
    return [write(max(1, round((length - base) / per_word))) for length in wanted]


def make_requests(prompts: list[str]) -> list[Instance]:
    """The harness's requests: the four letters after each prompt."""
    return [
        Instance("loglikelihood", {"prompt": prompt}, (prompt, f" {letter}"), choice, ("benchmark", number, 1))
        for number, prompt in enumerate(prompts)
        for choice, letter in enumerate(LETTERS)
    ]
