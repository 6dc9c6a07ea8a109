"""Multiple-choice questions that a language model writes from an article: what it is asked, and what of its reply is usable.

A model may write anything. Each question of a reply is judged by itself, and what is wrong with it is one of the `REASONS`, so
that it can be counted.
"""

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from resurface.data.replies import Reply
from resurface.prompts import LETTERS
from resurface.settings.preferences import PreferenceSettings

NOT_JSON = "not JSON"
REFUSED = "refused"
CUT = "cut off"
NO_QUESTION = "no question"
EMPTY = "empty"
TOO_LONG = "too long"
NOT_FOUR = "not four options"
REPEATED_OPTIONS = "options repeated"
OPTION_ABOUT_OPTIONS = "an option about the options"
ANSWER_MISSING = "answer not among the options"
ABOUT_ARTICLE = "refers to the article"
REPEATED = "question repeated"
REASONS = [
    NOT_JSON,
    REFUSED,
    CUT,
    NO_QUESTION,
    EMPTY,
    TOO_LONG,
    NOT_FOUR,
    REPEATED_OPTIONS,
    OPTION_ABOUT_OPTIONS,
    ANSWER_MISSING,
    ABOUT_ARTICLE,
    REPEATED,
]

INSTRUCTION = """\
Write {count} multiple-choice question(s) for an exam about what the text at the end states.
Rules:
- Whoever answers has never seen the text: each question makes sense by itself, names what it is about, and never mentions \
a text, article, passage, author or study.
- Four options of similar length and kind, exactly one of them right. No option speaks of other options ("all of the above").
- "answer" repeats the right option word for word.
- No two questions ask for the same.
Reply with JSON only, in this form:
{{"questions": [{{"question": "…", "choices": ["…", "…", "…", "…"], "answer": "…"}}]}}

The text:
{article}"""

# What a server that knows structured output holds its model to.
QUESTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "question": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "string"}, "minItems": len(LETTERS), "maxItems": len(LETTERS)},
        "answer": {"type": "string"},
    },
    "required": ["question", "choices", "answer"],
    "additionalProperties": False,
}
REPLY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": QUESTION_SCHEMA}},
    "required": ["questions"],
    "additionalProperties": False,
}

TEXTS = r"(?:articles?|passages?|excerpts?|texts?|paragraphs?|documents?|abstracts?|authors?)"
STUDIES = r"(?:study|studies|papers?|reports?|research|experiments?|reviews?|works?)"
# "The author" may be a person of history, and is rejected all the same: a good question lost costs less than a bad one kept.
ARTICLE = re.compile(
    rf"\b(?:the|this|that|these|above|given|provided)\s+(?:\w+\s+)?{TEXTS}\b"
    rf"|\b(?:according\s+to|based\s+on|described\s+in|mentioned\s+in|reported\s+in|discussed\s+in|in)\s+(?:the|this|these)\s+(?:\w+\s+)?{STUDIES}\b",
    re.IGNORECASE,
)
OPTIONS = re.compile(
    r"\b(?:all|none|any|both|neither|either|each)\s+of\s+(?:the\s+|these\s+)?(?:above|others?|options|choices|these)\b"
    r"|^\W*(?:both\s+)?[A-D]\s+(?:and|or)\s+[A-D]\W*$",
    re.IGNORECASE,
)
LABEL = re.compile(r"^\(?([A-D])[.):]\s+")


Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """A usable question. `answer` is the index of the right choice."""

    question: str
    choices: list[str]
    answer: int


def ask_for_questions(article: str, settings: PreferenceSettings) -> Messages:
    """The conversation that asks for questions about an article, which is cut between words.

    It is one user turn, because some chat templates refuse a system turn.
    """
    text = article.strip()
    if len(text) > settings.article_characters:
        text = text[: settings.article_characters]
        text = text.rsplit(maxsplit=1)[0] if " " in text else text
    return [{"role": "user", "content": INSTRUCTION.format(count=settings.questions_per_article, article=text)}]


def judge_reply(reply: Reply, settings: PreferenceSettings, generator: random.Random) -> list[Question | str]:
    """The questions of a reply in their order, each usable or the reason why it is not.

    A reply without a single question is one reason.

    Args:
        reply: what the model wrote.
        settings: how long questions and options may be.
        generator: shuffles options, because models like to put the right one first.
    """
    if reply.end == "refused":
        return [REFUSED]
    try:
        # Servers that know no structured output put words and marks around the JSON.
        found = json.loads(reply.text[reply.text.index("{") : reply.text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return [CUT if reply.end == "cut" else NOT_JSON]
    items = found.get("questions", [found] if "question" in found else None) if isinstance(found, dict) else None
    if not isinstance(items, list) or not items:
        return [NO_QUESTION]
    return [judge_question(item, settings, generator) for item in items[: settings.questions_per_article]]


def judge_question(item: Any, settings: PreferenceSettings, generator: random.Random) -> Question | str:
    """A question as a model wrote it: usable, with shuffled options, or the reason why it is not."""
    if not isinstance(item, dict):
        return NO_QUESTION
    question, choices, answer = _one_line(item.get("question")), item.get("choices"), _one_line(item.get("answer"))
    if not question:
        return EMPTY
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        return NOT_FOUR
    choices = [_one_line(choice) for choice in choices]
    if not all(choices):
        return EMPTY
    if [label[1] for choice in choices if (label := LABEL.match(choice))] == LETTERS:
        choices = [LABEL.sub("", choice) for choice in choices]
    if len(question) > settings.question_characters or max(map(len, choices)) > settings.choice_characters:
        return TOO_LONG
    keys = [choice.casefold() for choice in choices]
    if len(set(keys)) < len(LETTERS):
        return REPEATED_OPTIONS
    if any(map(OPTIONS.search, choices)):
        return OPTION_ABOUT_OPTIONS
    if any(map(ARTICLE.search, [question, *choices])):
        return ABOUT_ARTICLE
    named = answer.casefold() if answer.casefold() in keys else LABEL.sub("", answer).casefold()
    if named not in keys:
        letter = answer.strip("().: ")
        if letter not in LETTERS:
            return ANSWER_MISSING
        named = keys[LETTERS.index(letter)]
    order = generator.sample(range(len(LETTERS)), len(LETTERS))
    return Question(question, [choices[place] for place in order], order.index(keys.index(named)))


def _one_line(value: Any) -> str:
    """A text or a number on one line; nothing of anything else."""
    return " ".join(str(value).split()) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
