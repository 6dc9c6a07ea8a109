"""Which questions an attack works on: those whose answer unlearning took away."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resurface.attacks.target import Target
from resurface.data.tables import read_questions
from resurface.errors import ResurfaceError
from resurface.models import predict_letters
from resurface.prompts import LETTERS


def find_hidden_questions(
    questions: list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    original: PreTrainedModel,
    unlearned: PreTrainedModel,
    batch_tokens: int,
) -> list[str]:
    """The plain prompts that the original answers rightly and the unlearned model does not.

    Args:
        questions: plain prompts and the letters that answer them.
        tokenizer: both models' tokenizer.
        original: the original.
        unlearned: the model under attack.
        batch_tokens: padded tokens per forward pass.
    """
    prompts = [prompt for prompt, _ in questions]
    known, shown = (
        predict_letters(model, tokenizer, prompts, LETTERS, batch_tokens) for model in (original, unlearned)
    )
    return [
        prompt
        for (prompt, answer), before, after in zip(questions, known, shown, strict=True)
        if before == answer and after != answer
    ]


def read_hidden_questions(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    original: PreTrainedModel,
    unlearned: PreTrainedModel,
    batch_tokens: int,
) -> list[str]:
    """The hidden ones among a domain's train questions, for an attack that cannot do without.

    Raises:
        ResurfaceError: there is none, or a broken table.
    """
    questions = read_questions(target.data_folder, "questions")
    prompts = find_hidden_questions(questions, tokenizer, original, unlearned, batch_tokens)
    if not prompts:
        raise ResurfaceError(
            f"{target.model_folder}: no train question of {target.data_folder} is answered by the original and not by this "
            "model, so there is nothing to search for: look at the model's accuracy without attack, and leave this attack out"
        )
    return prompts
