"""Universal prefixes: which token sequences can stand before any question, and the questions they are tried on.

A prefix is used as text: it is put in front of the user's prompt, and the tokenizer reads the whole chat anew. So a
sequence of tokens is *legal* only if the tokenizer finds it again, in its place and nowhere else (design §7). Everything
that looks for prefixes asks here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from resurface.errors import ResurfaceError
from resurface.prompts import chat_messages, render_chat

REMEMBERED = 500  # prefixes whose places are kept
TRIES = 200  # draws of a random prefix, or of its next token, before it is given up


@dataclass(frozen=True)
class Chats:
    """Questions in chat form, with a place for a prefix at the start of the user turn.

    Attributes:
        tokenizer: what reads them.
        prompts: the plain prompts.
        before: the tokens before the user's text, the same in every chat.
        after: per prompt, its own tokens and those after it, as they are without a prefix.
        allowed: the tokens that a prefix may consist of.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: list[str]
    before: list[int]
    after: list[list[int]]
    allowed: list[int]

    @cached_property
    def _allowed(self) -> frozenset[int]:
        """The same, to look up in: every candidate of every step asks."""
        return frozenset(self.allowed)

    def read(self, prefix: str) -> list[list[int]]:
        """The tokens of every chat with a prefix."""
        texts = [render_chat(self.tokenizer, chat_messages(prefix + prompt)) for prompt in self.prompts]
        rows: list[list[int]] = self.tokenizer(texts)["input_ids"]
        return rows

    @cached_property
    def _placed(self) -> dict[tuple[int, ...], list[list[int]] | None]:
        """What was placed last: a candidate of a search is looked at when it is proposed, and whenever it is evaluated."""
        return {}

    def place(self, prefix: Sequence[int]) -> list[list[int]] | None:
        """The tokens of every chat with a prefix, or None if the prefix is not legal.

        It must be found once in each, right after `before`, and what follows must be `after`. Only the very first token
        after it may differ, because some tokenizers write a word differently at the start of a text.
        """
        key = tuple(prefix)
        if key not in self._placed:
            if len(self._placed) >= REMEMBERED:
                self._placed.clear()
            self._placed[key] = self._place(list(prefix))
        return self._placed[key]

    def _place(self, prefix: list[int]) -> list[list[int]] | None:
        """The same, looked at anew."""
        if not self._allowed.issuperset(prefix):
            return None
        start, end = len(self.before), len(self.before) + len(prefix)
        rows = self.read(self.tokenizer.decode(prefix))
        for row, after in zip(rows, self.after, strict=True):
            rest = row[end:]
            if row[:end] != self.before + prefix or rest[len(rest) - len(after) + 1 :] != after[1:]:
                return None
            if prefix and any(row[i : i + len(prefix)] == prefix for i in range(len(row)) if i != start):
                return None
        return rows

    def find(self, text: str) -> list[int] | None:
        """The tokens of a prefix that is given as text, or None if it is not legal."""
        row = self.read(text)[0]
        prefix = row[len(self.before) : len(row) - len(self.after[0])]
        return prefix if self.tokenizer.decode(prefix) == text and self.place(prefix) is not None else None


def set_chats(tokenizer: PreTrainedTokenizerBase, prompts: list[str], printable: bool) -> Chats:
    """Questions to put prefixes before.

    Args:
        tokenizer: the model's tokenizer.
        prompts: plain prompts, one at least.
        printable: whether prefixes consist of printable tokens only.

    Raises:
        ResurfaceError: the tokenizer has no chat template.
    """
    texts = [render_chat(tokenizer, chat_messages(prompt)) for prompt in prompts]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    start = texts[0].index(prompts[0])
    count = sum(end <= start for _, end in encoded["offset_mapping"][0])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    tokens = [token for token in range(len(tokenizer)) if token not in special]
    written = {token: tokenizer.decode([token]) for token in tokens}
    allowed = [
        token for token, text in written.items() if "\ufffd" not in text and (text.isprintable() or not printable)
    ]
    rows = encoded["input_ids"]
    return Chats(tokenizer, prompts, rows[0][:count], [row[count:] for row in rows], allowed)


def draw_prefix(chats: Chats, length: int, generator: random.Random) -> list[int]:
    """A legal prefix of random tokens.

    All legal prefixes are equally likely where drawing whole ones finds any. A long one hardly ever is legal as drawn, because
    each token may melt into the next: it then grows token by token, each drawn until the tokenizer reads all so far as they are.

    Raises:
        ResurfaceError: the tokenizer has too few tokens, or reads none of many draws as it was drawn.
    """
    for _ in range(TRIES if chats.allowed else 0):
        prefix = generator.choices(chats.allowed, k=length)
        if chats.place(prefix) is not None:
            return prefix
    prefix = []
    while len(prefix) < length:
        drawn = generator.choices(chats.allowed, k=TRIES) if chats.allowed else []
        token = next((token for token in drawn if chats.place([*prefix, token]) is not None), None)
        if token is None:
            raise ResurfaceError(
                f"no prefix of {length} random tokens out of {len(chats.allowed)} allowed ones is read by the tokenizer of "
                f"{chats.tokenizer.name_or_path} as it was written ({TRIES} tries): take a shorter one, or allow unprintable "
                "tokens"
            )
        prefix.append(token)
    return prefix
