"""Random prefixes: what an attack that searches for prefixes must beat.

Text in front of a question disturbs what unlearning has learned, whatever it says: on some models random tokens alone bring
much back. So prefixes are drawn and chosen on validation questions as those of a search are.
"""

import random

from resurface.artifacts import publish_folder
from resurface.attacks.prefix import draw_prefix, set_chats
from resurface.attacks.target import Target
from resurface.data.tables import read_questions
from resurface.interventions import Prepend, Variant, write_variants
from resurface.models import load_tokenizer
from resurface.settings.random_prefix import RandomPrefixSettings


def attack(target: Target, settings: RandomPrefixSettings, part: str) -> None:
    """Draw prefixes and leave each as a variant.

    Raises:
        ResurfaceError: the tokenizer has no chat template, or reads no such prefix as it was drawn.
    """
    prompts = [prompt for prompt, _ in read_questions(target.data_folder, "questions")[:1]]
    tokenizer = load_tokenizer(target.model_folder)
    chats = set_chats(tokenizer, prompts, settings.printable)
    generator = random.Random(target.seed)
    prefixes = [tokenizer.decode(draw_prefix(chats, settings.length, generator)) for _ in range(settings.count)]
    with publish_folder(target.output) as folder:
        write_variants(
            folder,
            [Variant(variant=f"random{i}", prompt=Prepend(text=text)) for i, text in enumerate(prefixes)],
        )
