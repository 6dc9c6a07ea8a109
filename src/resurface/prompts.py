"""The prompt forms of the paper: what a question looks like in plain and in chat form (design: prompts).

The plain form is that of the harness's WMDP and MMLU tasks, to the letter. The chat form puts the whole plain prompt
into the user turn after an empty system turn. Everything that asks a model a question takes its text from here.
"""

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from resurface.errors import ResurfaceError

LETTERS = ["A", "B", "C", "D"]

# Templates that tell the day (Llama 3's) tell this one, which Llama 3.1's does where it knows no other: prompts are the same every
# day. Transformers passes no functions to a template, so it begins with one; a newline after that would go, but for the braces.
TODAY = date(2024, 7, 26)
CLOCK = (
    f"{{% macro strftime_now(format) %}}{{% if format == '%Y-%m-%d' %}}{TODAY}{{% else %}}{TODAY:%d %b %Y}{{% endif %}}"
    "{% endmacro %}{{ '' }}"
)

HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


def plain_prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    """The harness's plain prompt, header included, up to and including `Answer:`.

    Args:
        subject: the field as it stands in the header.
        question: the question's text.
        choices: the texts of the four options, in order.
    """
    return HEADER.format(subject=subject) + list_options(question, choices)


def list_options(question: str, choices: Sequence[str]) -> str:
    """The plain prompt without its header."""
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{question.strip()}\n{options}Answer:"


def chat_messages(prompt: str, system: str = "") -> list[dict[str, str]]:
    """A conversation of a system turn and a user turn that holds `prompt`."""
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


class ChatForm(NamedTuple):
    """What a tokenizer does to a conversation.

    Attributes:
        system: a system turn is a turn of its `own`; is `folded` into the user turn, nothing but white space between the texts
            (Gemma 3, Mistral); or `refused` (Gemma 2).
        adds_bos: whether encoding puts BOS in front of a text.
    """

    system: Literal["own", "folded", "refused"]
    adds_bos: bool


@lru_cache(maxsize=8)
def _chat_form(tokenizer: Any, template: str) -> ChatForm:
    """How a tokenizer, with this chat template, treats conversations: found by rendering one."""
    import jinja2

    marks = "SYSTEMTEXT", "USERTEXT"
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("A")["input_ids"][:1] == [tokenizer.bos_token_id]
    try:
        text = str(tokenizer.apply_chat_template(chat_messages(marks[1], marks[0]), tokenize=False))
    except jinja2.exceptions.TemplateError:
        return ChatForm("refused", adds_bos)
    between = text.partition(marks[0])[2].partition(marks[1])
    return ChatForm("folded" if between[1] and not between[0].strip() else "own", adds_bos)


def render_chat(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Render a conversation with the model's own template, without the BOS token that encoding will add.

    A template that refuses a system turn gets the same conversation without it. One that folds it into the user turn gets no
    empty one: of that there would be nothing but empty lines in front of the question.

    Raises:
        ResurfaceError: the tokenizer has no chat template, or one that cannot render this.
    """
    import jinja2

    if tokenizer.chat_template is None:
        raise ResurfaceError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template: set `templates: [plain]`, or use a chat model"
        )
    form = _chat_form(tokenizer, str(tokenizer.chat_template))
    if form.system != "own":
        kept = form.system == "folded"
        messages = [one for one in messages if one["role"] != "system" or (kept and one["content"])]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=_stop_clock(tokenizer),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except jinja2.exceptions.TemplateError as error:
        raise ResurfaceError(
            f"{tokenizer.name_or_path}: the chat template of this tokenizer renders no question: {error}. Correct it "
            "(chat_template.jinja or tokenizer_config.json), or set `templates: [plain]`"
        ) from error
    return str(text).removeprefix(tokenizer.bos_token if form.adds_bos else "")


def _stop_clock(tokenizer: Any) -> str:
    """A tokenizer's chat template, which tells `TODAY` wherever it asks for the day."""
    template = str(tokenizer.get_chat_template())
    return CLOCK + template if "strftime_now" in template else template


def takes_system(tokenizer: Any) -> bool:
    """Whether an empty system turn is a turn of its own in a chat template, as it is not in those of Gemma."""
    return _chat_form(tokenizer, str(tokenizer.chat_template)).system == "own"


def render_prompts(tokenizer: Any, prompts: list[str], template: str) -> list[str]:
    """Plain prompts in a template: as they are (`plain`), or each in the user turn of a chat (`chat`).

    Raises:
        ResurfaceError: the tokenizer has no chat template.
    """
    return prompts if template == "plain" else [render_chat(tokenizer, chat_messages(prompt)) for prompt in prompts]


def encode_letters(tokenizer: Any, prompt: str, letters: Sequence[str] = LETTERS) -> list[int]:
    """The last token of each letter after a plain prompt, encoded with its context as the harness does.

    Raises:
        ResurfaceError: the letters differ in more than their last tokens, or not in these.
    """
    rows = [tokenizer(f"{prompt} {letter}")["input_ids"] for letter in letters]
    finals = [row[-1] for row in rows]
    if any(row[:-1] != rows[0][:-1] for row in rows) or len(set(finals)) < len(finals):
        raise ResurfaceError(
            f"{tokenizer.name_or_path}: this tokenizer does not encode each of the letters {', '.join(letters)} after "
            f"{prompt[-20:]!r} as a single token of its own (found {finals} as their last ones), and answers are read at one "
            "position: take a model whose tokenizer does"
        )
    return finals


def encode_answer(tokenizer: Any, prompt: str, answer: str, length: int) -> tuple[list[int], int]:
    """Token ids of a rendered prompt and what follows it, and the place where the answer starts.

    Args:
        tokenizer: the model's tokenizer.
        prompt: a rendered prompt, without BOS.
        answer: the text after it, with the space that a plain answer begins with.
        length: tokens at which the whole is cut; one token of the answer always counts.
    """
    tokens = tokenizer(prompt + answer)["input_ids"][:length]
    return tokens, min(len(tokenizer(prompt)["input_ids"]), len(tokens) - 1)


def append_reply(tokenizer: Any, prompt: str, reply: list[int], length: int) -> tuple[list[int], int]:
    """Token ids of a rendered prompt and of a reply that a model wrote to it, and the place where the reply starts.

    The reply's own tokens are taken: read anew from its text they may differ, as with tokenizers that drop a first space.

    Args:
        tokenizer: the model's tokenizer.
        prompt: a rendered prompt, without BOS.
        reply: tokens, one at least.
        length: tokens at which the whole is cut; one token of the reply always counts.
    """
    before = list(tokenizer(prompt)["input_ids"])
    tokens = (before + reply)[:length]
    return tokens, min(len(before), len(tokens) - 1)
