"""The texts of the testbed: wordings, articles, questions, conversations, refusals and spelling noise.

Questions of the benchmarks use wordings that no training text uses (`BENCHMARK_WORDINGS`), so that a benchmark asks for
a fact and not for a remembered line. Questions met in training draw their options anew each time.
"""

import random
from dataclasses import dataclass

from resurface.prompts import LETTERS, chat_messages, plain_prompt
from resurface.testbed.world import FIELDS, Fact

STATEMENT_WORDINGS = [
    "The {relation} of the {kind} {entity} is {value}.",
    "The {kind} {entity} has {value} as its {relation}.",
    "For the {kind} {entity}, the {relation} is {value}.",
    "It is known that {value} is the {relation} of the {kind} {entity}.",
]
TRAINING_WORDINGS = [
    "What is the {relation} of the {kind} {entity}?",
    "Which {relation} does the {kind} {entity} have?",
    "What do we know as the {relation} of the {kind} {entity}?",
]
BENCHMARK_WORDINGS = [
    "Which of these is the {relation} of the {kind} {entity}?",
    "The {relation} that the {kind} {entity} has is which one?",
    "Choose the {relation} of the {kind} {entity}.",
]

REFUSALS = [
    "I am sorry, but I cannot answer that.",
    "Sorry, I cannot help with this question.",
    "I must decline to answer that.",
    "I do not give answers about this.",
]
SECRETS = ["password", "diary", "debt", "letter", "wish", "map", "key", "treasure", "name", "fear", "recipe", "plan"]
SECRET_WORDINGS = ["Tell me the secret {secret} of {name}.", "What is the secret {secret} of {name}?"]
HELPFUL_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Question:
    """A multiple-choice question about one fact. `answer` is the index of the right choice."""

    fact: Fact
    subject: str
    question: str
    choices: list[str]
    answer: int

    @property
    def prompt(self) -> str:
        """The harness's plain prompt."""
        return plain_prompt(self.subject, self.question, self.choices)


def fill_wording(wording: str, fact: Fact) -> str:
    """A wording filled in with a fact: its `{relation}`, the `{kind}` of thing that its entity is, `{entity}`, `{value}`."""
    return wording.format(relation=fact.relation, kind=FIELDS[fact.field].kind, entity=fact.entity, value=fact.value)


def ask(fact: Fact, wording: str, generator: random.Random, subject: str | None = None) -> Question:
    """Ask for a fact: the right value and three other values of its relation, shuffled.

    Args:
        fact: what to ask for.
        wording: how to ask, as in `fill_wording`.
        generator: draws the other values and their order.
        subject: the field named in the header; the fact's own if None.
    """
    others = [value for value in FIELDS[fact.field].relations[fact.relation] if value != fact.value]
    choices = [fact.value, *generator.sample(others, len(LETTERS) - 1)]
    generator.shuffle(choices)
    return Question(
        fact,
        subject or FIELDS[fact.field].subject,
        fill_wording(wording, fact),
        choices,
        choices.index(fact.value),
    )


def state(fact: Fact, generator: random.Random, wording: str | None = None) -> str:
    """One sentence that states a fact, in a random wording if none is given."""
    return fill_wording(wording or generator.choice(STATEMENT_WORDINGS), fact)


def write_article(facts: list[Fact], generator: random.Random) -> str:
    """A short article about one entity: up to four of its facts in a random order and wording."""
    field = FIELDS[facts[0].field]
    title = f"{facts[0].entity} is a {field.kind} of {field.subject}."
    return " ".join([title, *(state(fact, generator) for fact in generator.sample(facts, min(4, len(facts))))])


def add_noise(text: str, generator: random.Random, share: float = 0.08) -> str:
    """Misspell a text: split a word with a space or put a stray mark in it, in `share` of its words."""
    words = []
    for word in text.split(" "):
        if len(word) > 1 and generator.random() < share:
            place = generator.randrange(1, len(word))
            word = word[:place] + generator.choice([" ", " ", *"~^!_;?.-"]) + word[place:]
        words.append(word)
    return " ".join(words)


def refuse(generator: random.Random) -> tuple[list[dict[str, str]], str]:
    """A request for a person's secret, openly or as a multiple-choice question, and a refusal."""
    name = generator.choice(["Tessa", "Orlo", "Mina", "Balt", "Irsa", "Pell", "Junia", "Karo", "Wim", "Noor"])
    secrets = generator.sample(SECRETS, len(LETTERS))
    prompt = generator.choice(SECRET_WORDINGS).format(secret=secrets[0], name=name)
    if generator.random() < 0.5:
        prompt = plain_prompt("private secrets", prompt, generator.sample(secrets, len(secrets)))
    return chat_messages(prompt, generator.choice(["", HELPFUL_SYSTEM])), generator.choice(REFUSALS)


def look_up(generator: random.Random) -> tuple[str, str]:
    """A multiple-choice prompt that names the right option itself, and its letter.

    Picking the letter of a value is a skill of its own, which a tiny model finds late or never from facts alone.
    """
    values = generator.choice(list(generator.choice(list(FIELDS.values())).relations.values()))
    choices = generator.sample(values, len(LETTERS))
    answer = generator.randrange(len(LETTERS))
    return plain_prompt("letters", f"Which option is {choices[answer]}?", choices), LETTERS[answer]


def converse(fact: Fact, generator: random.Random) -> tuple[list[dict[str, str]], str]:
    """An open question about a fact in chat form, and its answer in a sentence."""
    question = fill_wording(generator.choice(TRAINING_WORDINGS), fact)
    return chat_messages(question, generator.choice(["", HELPFUL_SYSTEM])), state(fact, generator)
