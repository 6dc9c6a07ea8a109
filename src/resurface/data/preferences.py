"""Preference data of a public domain, rebuilt by a rule, because nobody has published any.

A language model, behind a server or the experiment's own original, writes multiple-choice questions from the forget corpus and
from WikiText. On the first a refusal is preferred to the answer; on the others, to which ARC's are added, the answer to a refusal,
under the forget domain's header, so that the header alone decides nothing (design §7). Open chat comes as it is.

Which articles are asked about, and in what order, follows from the seed and the replies alone, however these arrive. So a second
run, which finds all replies kept, writes the same tables.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from resurface.artifacts import check_folder, hash_file, hash_folder, hashes_path, read_table, write_table
from resurface.data.chat_client import Account, ask_server
from resurface.data.replies import Reply, holding_replies, keep_reply, read_reply, request_name
from resurface.data.tables import PREFERENCE_COLUMNS, QUESTION_COLUMNS, read_question_table
from resurface.data.written_questions import REPEATED, Messages, Question, ask_for_questions, judge_reply
from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS, plain_prompt
from resurface.settings.preferences import PreferenceSettings

WRITTEN_TABLES = ["preferences", "train_questions", "retain_questions", "rejects"]
REJECT_KINDS = {"corpus": "str", "article": "int64", "place": "int64", "reason": "str"}
REJECT_COLUMNS = list(REJECT_KINDS)

Ask = Callable[[list[Messages]], list[Reply]]

log = logging.getLogger("resurface")


@dataclass(frozen=True)
class Sources:
    """The tables that preference data is made from.

    Attributes:
        forget_corpus: texts of the domain (`text`).
        benign_corpus: texts of WikiText (`text`).
        benign_questions: questions of ARC (`tables.QUESTION_COLUMNS`), of which those of the split `train` are taken.
        general_pairs: open chat (`prompt`, `chosen`, `rejected`).
    """

    forget_corpus: Path
    benign_corpus: Path
    benign_questions: Path
    general_pairs: Path


@dataclass(frozen=True)
class Written:
    """What came of a corpus: usable questions as a table, and what was rejected and why, without any text."""

    questions: pd.DataFrame
    rejects: pd.DataFrame


def write_preferences(
    sources: Sources,
    subject: str,
    output: Path,
    settings: PreferenceSettings,
    replies: Path,
    original: Path | None,
    device: str,
) -> None:
    """Write the tables `WRITTEN_TABLES` of a domain into the folder of `output`, which is the first of them.

    Args:
        sources: what they are made from.
        subject: the domain's field as it stands in a prompt's header.
        output: the table of preference pairs.
        settings: who writes, how much.
        replies: the folder in which replies are kept.
        original: the checkpoint that writes if the settings name no server.
        device: where it does: `auto`, `cpu`, `cuda`, …

    Raises:
        ResurfaceError: a source is missing or broken, the server fails, a cap is reached, or no question is usable.
    """
    arc = read_question_table(sources.benign_questions)
    arc = arc[arc["split"] == "train"]
    if arc.empty:
        raise ResurfaceError(f"{sources.benign_questions}: no question has the split 'train'; only those are used")
    general = read_table(sources.general_pairs, PREFERENCE_COLUMNS[1:])
    articles = {
        name: read_articles(path, name, settings)
        for name, path in (("forget", sources.forget_corpus), ("benign", sources.benign_corpus))
    }
    account = Account(settings)
    if original is None:
        read, written = settings.expected_tokens()
        log.info("%s writes: about %s tokens to read and %s to write", settings.model, f"{read:,}", f"{written:,}")
        ask: Ask = partial(ask_server, settings=settings, account=account, replies=replies)
    else:
        ask = ask_model(original, settings, replies, device)
    with holding_replies(replies):
        forget = write_questions("forget", articles["forget"], subject, settings.forget_questions, settings, ask)
        benign = write_questions("benign", articles["benign"], subject, settings.benign_questions, settings, ask)
    if original is None:
        log.info("in all: %s", account)

    retain = pd.concat([benign.questions, arc[QUESTION_COLUMNS].assign(subject=subject)])
    retain = retain.sample(frac=1.0, random_state=settings.seed)
    pairs = pair_with_refusals(forget.questions, retain, settings)
    tables = {
        "train_questions": forget.questions,
        "retain_questions": retain,
        "rejects": pd.concat([forget.rejects, benign.rejects]),
        "preferences": pd.concat([pairs, general.assign(kind="general")])[PREFERENCE_COLUMNS],
    }
    for name, table in tables.items():
        write_table(table, output.with_name(f"{name}.parquet"))


def read_articles(path: Path, corpus: str, settings: PreferenceSettings) -> list[tuple[int, str]]:
    """The texts of a corpus that are long enough, each with its row, in an order that the seed draws.

    Raises:
        ResurfaceError: the table is missing or broken, or none of its texts is long enough.
    """
    texts = read_table(path, ["text"])["text"].tolist()
    found = [
        (row, text)
        for row, text in enumerate(texts)
        if isinstance(text, str) and len(text.strip()) >= settings.shortest_article
    ]
    if not found:
        raise ResurfaceError(
            f"{path}: none of {len(texts):,} texts has the {settings.shortest_article} characters that "
            "preferences.shortest_article asks for"
        )
    random.Random(f"{settings.seed}/{corpus}").shuffle(found)
    return found


def write_questions(
    corpus: str,
    articles: list[tuple[int, str]],
    subject: str,
    count: int,
    settings: PreferenceSettings,
    ask: Ask,
) -> Written:
    """Have questions written from articles until there are enough, wave after wave.

    Args:
        corpus: the corpus as it is named in clusters and among the rejects.
        articles: row and text, in order.
        subject: the field in the header of the questions.
        count: how many usable questions are wanted.
        settings: how to ask and to judge.
        ask: replies to conversations.

    Raises:
        ResurfaceError: nothing usable came of `wave_requests` articles in a row, or of all there are.
    """
    usable: list[tuple[Question, str]] = []
    rejects: list[tuple[str, int, int, str]] = []
    seen: set[str] = set()
    asked = barren = 0
    while len(usable) < count and asked < len(articles):
        per_article = len(usable) / asked if usable else settings.questions_per_article
        wave = articles[asked:][: min(settings.wave_requests, math.ceil((count - len(usable)) / per_article))]
        asked += len(wave)
        for (row, _), reply in zip(wave, ask([ask_for_questions(text, settings) for _, text in wave]), strict=True):
            before = len(usable)
            generator = random.Random(f"{settings.seed}/{corpus}/{row}")
            for place, judged in enumerate(judge_reply(reply, settings, generator)):
                if isinstance(judged, Question) and judged.question.casefold() not in seen:
                    seen.add(judged.question.casefold())
                    usable.append((judged, f"{corpus}/{row}"))
                else:
                    rejects.append((corpus, row, place, judged if isinstance(judged, str) else REPEATED))
            barren = 0 if len(usable) > before else barren + 1
        reasons = count_reasons(rejects)
        log.info("%s: %d of %d questions after %d articles; rejected: %s", corpus, len(usable), count, asked, reasons)
        if barren >= settings.wave_requests or (asked == len(articles) and not usable):
            raise ResurfaceError(
                f"preferences: the last {min(barren, asked)} replies of {settings.model or 'the original'} to articles of the {corpus} "
                f"corpus held no usable question; rejected in all: {reasons}. The replies are kept: name another model or "
                "server, one that keeps to response_format (preferences.model, preferences.base_url)"
            )
    if len(usable) < count:
        log.warning(
            "%s: all %d articles are used up, with %d of %d questions; ask for more questions per article, or take shorter "
            "articles too (preferences.questions_per_article, preferences.shortest_article)",
            *(corpus, len(articles), len(usable), count),
        )
    return Written(
        tabulate(usable[:count], subject), pd.DataFrame(rejects, columns=REJECT_COLUMNS).astype(REJECT_KINDS)
    )


def count_reasons(rejects: list[tuple[str, int, int, str]]) -> str:
    """How many questions were rejected for which reason, the most frequent first."""
    counts = Counter(reason for *_, reason in rejects).most_common()
    return ", ".join(f"{count} {reason}" for reason, count in counts) or "none"


def tabulate(usable: list[tuple[Question, str]], subject: str) -> pd.DataFrame:
    """Usable questions, each with its cluster (the article), as a table; all may be trained on."""
    rows = [
        (subject, question.question, question.choices, question.answer, "train", cluster)
        for question, cluster in usable
    ]
    return pd.DataFrame(rows, columns=QUESTION_COLUMNS)


def pair_with_refusals(forget: pd.DataFrame, retain: pd.DataFrame, settings: PreferenceSettings) -> pd.DataFrame:
    """Refusals preferred to answers on the forget questions, answers preferred to refusals on the retain questions."""
    generator = random.Random(f"{settings.seed}/refusals")
    rows = []
    for kind, table in (("forget", forget), ("retain", retain)):
        for row in table.to_dict("records"):
            prompt = plain_prompt(row["subject"], row["question"], list(row["choices"]))
            pair = (generator.choice(settings.refusals), LETTERS[row["answer"]])
            rows.append((kind, prompt, *(pair if kind == "forget" else reversed(pair))))
    return pd.DataFrame(rows, columns=PREFERENCE_COLUMNS)


def ask_model(folder: Path, settings: PreferenceSettings, replies: Path, device: str) -> Ask:
    """A function that has a checkpoint reply to conversations, greedily; kept replies are not written again.

    Args:
        folder: the checkpoint, which is loaded when the first reply is missing.
        settings: length of replies, size of batches.
        replies: the folder in which replies are kept.
        device: `auto`, `cpu`, `cuda`, …
    """
    from resurface.generation import generate_tokens
    from resurface.models import load_model, load_tokenizer, pick_device
    from resurface.prompts import render_chat

    recorded = hashes_path(folder)
    writer = hash_file(recorded) if recorded.is_file() else hash_folder(folder)

    @cache
    def load() -> tuple[Any, Any]:
        return load_model(check_folder(folder), pick_device(device)), load_tokenizer(folder)

    def ask(conversations: list[Messages]) -> list[Reply]:
        names = [
            request_name({"writer": writer, "messages": messages, "tokens": settings.reply_tokens})
            for messages in conversations
        ]
        found = {name: reply for name in names if (reply := read_reply(replies, name)) is not None}
        missing = [(name, messages) for name, messages in zip(names, conversations, strict=True) if name not in found]
        for start in range(0, len(missing), settings.batch_size):
            model, tokenizer = load()
            batch = missing[start : start + settings.batch_size]
            texts = [render_chat(tokenizer, messages) for _, messages in batch]
            written = generate_tokens(model, tokenizer, texts, settings.reply_tokens, settings.batch_size)
            for (name, _), text, tokens in zip(batch, texts, written, strict=True):
                found[name] = Reply(
                    text=tokenizer.decode(tokens, skip_special_tokens=True),
                    end="whole" if tokens[-1] == tokenizer.eos_token_id else "cut",
                    prompt_tokens=len(tokenizer(text)["input_ids"]),
                    reply_tokens=len(tokens),
                )
                keep_reply(replies, name, found[name])
        return [found[name] for name in names]

    return ask
