"""Perturbations: spelling noise in a question that unlearning did not foresee (arXiv 2409.18025, appendix).

*Naive*: a character is inserted after every n-th character of the question and of each choice, or after each with some
probability. *Informed* (Algorithm 1): RMU pushes h_ℓ of the domain's tokens towards a noise direction,

    d = mean h_ℓ(unlearned) − mean h_ℓ(original)

over train questions. While some token of a text has cosine > τ with d, the first such token is perturbed (Algorithm 2), first
in the question and in each choice alone, then in the whole prompt, each with its own τ.

Only texts are rewritten, no answer is read: so, unlike other attacks, this one sees the benchmark's questions. The prompts
are kept as a table beside the originals, and whoever scores a model with it, this one or another, looks them up there.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resurface.artifacts import publish_folder
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table, read_questions
from resurface.interventions import Rewrite, Variant, write_variants
from resurface.models import (
    batch_rows,
    check_blocks,
    load_model,
    load_tokenizer,
    pad_right,
    pick_device,
    recording,
    run_decoder,
    set_seed,
)
from resurface.prompts import plain_prompt
from resurface.settings.perturbation import PerturbationSettings

Insert = Callable[[str, float, str, random.Random], str]

# Variants are named after what is inserted.
NAMES = {
    "!": "exclamation",
    "_": "underscore",
    " ": "space",
    ")": "parenthesis",
    ";": "semicolon",
    "?": "question",
    "5": "five",
    "~": "tilde",
    "^": "caret",
    ".": "period",
    "-": "hyphen",
    "Q": "q",
    "random": "random",
}
AHEAD = 16  # tokens that are read beyond the place where one is expected
CHARACTERS = [character for character in NAMES if character != "random"]


@dataclass(frozen=True)
class Asked:
    """A question as its parts: `subject` of the header, `question`, and the four `choices`."""

    subject: str
    question: str
    choices: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The harness's plain prompt."""
        return plain_prompt(self.subject, self.question, self.choices)


def insert_every(text: str, amount: float, character: str, generator: random.Random) -> str:
    """Insert a character after every `amount`-th character of a text."""
    return "".join(
        one + (draw(character, generator) if place % amount == 0 else "") for place, one in enumerate(text, 1)
    )


def insert_randomly(text: str, amount: float, character: str, generator: random.Random) -> str:
    """Insert a character after each character of a text with probability `amount`."""
    return "".join(one + (draw(character, generator) if generator.random() < amount else "") for one in text)


def draw(character: str, generator: random.Random) -> str:
    """The character itself, or one of all if it is `random`."""
    return generator.choice(CHARACTERS) if character == "random" else character


def insert_perturbation(token: str, generator: random.Random) -> str:
    """Perturb a token (Algorithm 2); white space around it stays.

    A token of two or more characters is split by a space at a random place; one of a single character gets `~` or `^` in
    front; a lone `~` or `^` becomes a random punctuation mark or digit.
    """
    core = token.strip()
    place = token.index(core)
    if len(core) >= 2:
        split = generator.randrange(1, len(core))
        changed = f"{core[:split]} {core[split:]}"
    elif core in ("~", "^"):
        changed = generator.choice(string.punctuation + string.digits)
    else:
        changed = generator.choice("~^") + core
    return token[:place] + changed + token[place + len(core) :]


@torch.inference_mode()
def mean_state(model: PreTrainedModel, rows: list[list[int]], block: int, batch_tokens: int) -> torch.Tensor:
    """Mean of h_ℓ over all tokens of token rows but the first of each `[hidden]`, float32."""
    total, count = torch.zeros(model.config.hidden_size, device=model.device), 0
    with recording(model, [block]) as states:
        for positions in batch_rows(rows, batch_tokens):
            batch = [rows[position] for position in positions]
            run_decoder(model, pad_right(batch, 0).to(model.device))
            for i, row in enumerate(batch):
                total += states[block][i, 1 : len(row)].float().sum(0)
                count += len(row) - 1
    return total / count


@torch.inference_mode()
def find_first(
    texts: list[str],
    starts: list[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    direction: torch.Tensor,
    threshold: float,
    settings: PerturbationSettings,
) -> list[tuple[int, int] | None]:
    """Of each text, where the first token is whose h_ℓ has cosine > τ with the direction (start, end), or None.

    Special tokens, which stand for no characters, never count.

    Args:
        texts: what to look through.
        starts: where in each text to expect it. What follows a token has no part in its h_ℓ, so a text is read a little beyond
            that place first, and twice as far as long as nothing is found.
        model: the model under attack.
        tokenizer: its tokenizer.
        direction: the noise direction `[hidden]`.
        threshold: τ.
        settings: ℓ and the size of batches.
    """
    encoded = tokenizer(texts, return_offsets_mapping=True)
    rows, offsets = encoded["input_ids"], encoded["offset_mapping"]
    found: list[tuple[int, int] | None] = [None] * len(texts)
    lengths = [sum(end <= start for _, end in places) + AHEAD for places, start in zip(offsets, starts, strict=True)]
    unread = list(range(len(texts)))
    with recording(model, [settings.block]) as states:
        while unread:
            beginnings = [rows[text][: lengths[text]] for text in unread]
            for positions in batch_rows(beginnings, settings.batch_tokens):
                run_decoder(model, pad_right([beginnings[position] for position in positions], 0).to(model.device))
                cosines = torch.nn.functional.cosine_similarity(states[settings.block].float(), direction, dim=-1)
                is_far = (cosines > threshold).tolist()
                for i, position in enumerate(positions):
                    text = unread[position]
                    places = zip(is_far[i], offsets[text][: lengths[text]], strict=False)
                    found[text] = next((place for far, place in places if far and place[0] < place[1]), None)
            unread = [text for text in unread if found[text] is None and len(rows[text]) > lengths[text]]
            lengths = [2 * length for length in lengths]
    return found


def suppress(
    texts: list[str],
    find: Callable[[list[str], list[int]], list[tuple[int, int] | None]],
    rounds: int,
    generators: list[random.Random],
) -> tuple[list[str], list[int], list[bool]]:
    """Perturb texts until no token of theirs is found any more (Algorithm 1), all at once.

    Args:
        texts: what to perturb.
        find: where the first token to perturb is in each of some texts (`find_first`), given where the last one was.
        rounds: perturbations of one text at most.
        generators: the source of randomness of each text.

    Returns:
        the texts, how often each was perturbed, and whether some token of it is still found.
    """
    texts, counts = list(texts), [0] * len(texts)
    found = dict.fromkeys(range(len(texts)), (0, 0))
    for done in tqdm(range(rounds + 1), desc="perturb", disable=None):
        places = find([texts[i] for i in found], [start for start, _ in found.values()])
        found = {i: place for i, place in zip(found, places, strict=True) if place is not None}
        if not found or done == rounds:
            break
        for i, (start, end) in found.items():
            texts[i] = texts[i][:start] + insert_perturbation(texts[i][start:end], generators[i]) + texts[i][end:]
            counts[i] += 1
    return texts, counts, [i in found for i in range(len(texts))]


def perturb_naively(asked: list[Asked], settings: PerturbationSettings, seed: int) -> dict[str, pd.DataFrame]:
    """Variant → the rewritten prompts of all questions."""
    ways: list[tuple[str, Insert, float]] = [
        *((f"every{count}", insert_every, count) for count in settings.every),
        *((f"chance{probability:g}", insert_randomly, probability) for probability in settings.probabilities),
    ]
    tables = {}
    for way, insert, amount in ways:
        for character in settings.characters:
            variant = f"naive-{way}-{NAMES[character]}"
            rewritten = []
            for one in asked:
                generator = random.Random(f"{seed}/{variant}/{one.prompt}")
                parts = [insert(text, amount, character, generator) for text in (one.question, *one.choices)]
                rewritten.append(plain_prompt(one.subject, parts[0], parts[1:]))
            tables[variant] = pd.DataFrame({"rewritten": rewritten})
    return tables


def perturb_informed(
    asked: list[Asked],
    target: Target,
    settings: PerturbationSettings,
    model: PreTrainedModel,
    original: PreTrainedModel,
) -> dict[str, pd.DataFrame]:
    """Variant → the rewritten prompts and, of both stages, how often each was perturbed and whether some token still exceeds τ."""
    tokenizer = load_tokenizer(target.model_folder)
    known = tokenizer([prompt for prompt, _ in read_questions(target.data_folder, "questions")])["input_ids"]
    means = [mean_state(one, known, settings.block, settings.batch_tokens) for one in (model, original)]
    direction = means[0] - means[1]

    def run(texts: list[str], threshold: float, stage: str) -> tuple[list[str], list[int], list[bool]]:
        generators = [random.Random(f"{target.seed}/{stage}/{threshold:g}/{text}") for text in texts]
        return suppress(
            texts,
            lambda some, starts: find_first(some, starts, model, tokenizer, direction, threshold, settings),
            settings.rounds,
            generators,
        )

    tables = {}
    parts = list(dict.fromkeys(text for one in asked for text in (one.question, *one.choices)))
    for text_threshold in settings.text_thresholds:
        outcomes = dict(zip(parts, zip(*run(parts, text_threshold, "text"), strict=True), strict=True))
        prompts, text_rounds, text_exceeds = [], [], []
        for one in asked:
            changed, counts, exceeds = zip(*(outcomes[text] for text in (one.question, *one.choices)), strict=True)
            prompts.append(plain_prompt(one.subject, changed[0], changed[1:]))
            text_rounds.append(sum(counts))
            text_exceeds.append(any(exceeds))
        for prompt_threshold in settings.prompt_thresholds:
            rewritten, rounds, prompt_exceeds = run(prompts, prompt_threshold, "prompt")
            tables[f"informed-text{text_threshold:g}-prompt{prompt_threshold:g}"] = pd.DataFrame(
                {
                    "rewritten": rewritten,
                    "text_rounds": text_rounds,
                    "text_exceeds": text_exceeds,
                    "rounds": rounds,
                    "exceeds": prompt_exceeds,
                }
            )
    return tables


def attack(target: Target, settings: PerturbationSettings, part: str) -> None:
    """Rewrite the domain's validation and test questions in every way and leave one variant per way.

    Raises:
        ResurfaceError: a block that the model does not have, or a broken checkpoint or table.
    """
    set_seed(target.seed)
    table = read_domain_table(target.data_folder, "questions")
    asked = [
        Asked(row["subject"], row["question"], tuple(row["choices"]))
        for row in table[table["split"] != "train"].to_dict("records")
    ]
    tables = perturb_naively(asked, settings, target.seed)
    if settings.text_thresholds and settings.prompt_thresholds:
        device = pick_device(target.device)
        model, original = (load_model(folder, device) for folder in (target.model_folder, target.original_folder))
        check_blocks([settings.block], model, "perturbation.block")
        tables |= perturb_informed(asked, target, settings, model, original)
    prompts = [one.prompt for one in asked]
    rows = pd.concat([frame.assign(variant=variant, prompt=prompts) for variant, frame in tables.items()])
    outcomes = {"text_rounds": "Int64", "text_exceeds": "boolean", "rounds": "Int64", "exceeds": "boolean"}
    columns = ["variant", "prompt", "rewritten", *outcomes]
    with publish_folder(target.output) as folder:
        rows.reindex(columns=columns).astype(outcomes).to_parquet(
            folder / "prompts.parquet", index=False, write_page_checksum=True
        )
        write_variants(
            folder,
            [
                Variant(
                    variant=variant,
                    prompt=Rewrite(file="prompts.parquet", name=variant),
                    blind=None if "rounds" in table else True,
                )
                for variant, table in tables.items()
            ],
        )
