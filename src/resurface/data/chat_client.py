"""Asking an OpenAI-compatible server, politely and within a cap, so that nothing is paid for twice.

The `openai` client repeats what failed (408, 409, 429, 5xx, timeouts, lost connections), waits as Retry-After says, and speaks
the protocol. Added here: how many requests are under way and how many are sent in a minute, repeated ones included; a cap on
tokens and cost, which holds before a request is sent; and that every reply is kept the moment it arrives. After a failure, or
when the job is asked to end, no request is begun any more, but those under way may end: their replies are paid for.

Neither the key nor an article reaches a log or an error, and what a server says of a request that it refuses may quote both.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from resurface.data.replies import Reply, keep_reply, read_reply, request_name
from resurface.data.written_questions import REPLY_SCHEMA, Messages
from resurface.errors import ResurfaceError
from resurface.preemption import Preempted, postponing_end
from resurface.settings.preferences import PreferenceSettings

if TYPE_CHECKING:
    import openai
    from openai import AsyncOpenAI

# By these a server says that its own rules forbid a request: that is an answer, and the next article may pass.
REFUSAL_CODES = ("content_filter", "content_policy_violation", "invalid_prompt")
BYTES_PER_TOKEN = 2  # of a request, before it is counted: few texts have more tokens than this says, most half as many
MOST_LETTERS = 200  # of what a server says, in an error
LONGEST_QUOTE = {"article": 20, "key": 5}  # letters in a row that may stand in it by chance


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    """What of a server's answer is used."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass
class Account:
    """What a job's replies have taken, kept ones included, what those under way may take at most, and when to ask again."""

    settings: PreferenceSettings
    kept: int = 0
    sent: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    reserved: list[tuple[int, int]] = field(default_factory=list)
    next_request: float = 0.0

    def count(self, reply: Reply) -> None:
        """Count the tokens of a reply."""
        self.prompt_tokens += reply.prompt_tokens
        self.reply_tokens += reply.reply_tokens

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """The price of tokens read and written."""
        return (prompt_tokens * self.settings.prompt_price + reply_tokens * self.settings.reply_price) / 1e6

    def crossed_cap(self, more: tuple[int, int]) -> Literal["most_tokens", "most_cost"] | None:
        """The cap that could be crossed if a request took `more` tokens (read, written) besides those under way."""
        prompt = self.prompt_tokens + sum(taken[0] for taken in (*self.reserved, more))
        reply = self.reply_tokens + sum(taken[1] for taken in (*self.reserved, more))
        if self.settings.most_tokens is not None and prompt + reply > self.settings.most_tokens:
            return "most_tokens"
        if self.settings.most_cost is not None and self.cost(prompt, reply) > self.settings.most_cost:
            return "most_cost"
        return None

    async def wait_for_turn(self, _request: object) -> None:
        """Wait until one more request may be sent in this minute."""
        if self.settings.requests_per_minute is not None:
            start = max(time.monotonic(), self.next_request)
            self.next_request = start + 60 / self.settings.requests_per_minute
            await asyncio.sleep(start - time.monotonic())

    def __str__(self) -> str:
        cost = self.cost(self.prompt_tokens, self.reply_tokens)
        return (
            f"{self.kept + self.sent:,} replies ({self.kept:,} kept from before), {self.prompt_tokens:,} tokens read, "
            f"{self.reply_tokens:,} written" + (f", cost {cost:.2f}" if cost else "")
        )


def read_key(settings: PreferenceSettings) -> str:
    """The server's key from the environment; a word in its place for a server that asks for none.

    Raises:
        ResurfaceError: the variable that the settings name is not set, or holds something that can be no key.
    """
    if settings.key_variable is None:
        return "none"  # else the client takes OPENAI_API_KEY, which is not for this server
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise ResurfaceError(
            f"preferences.key_variable: the environment variable {settings.key_variable} is not set; set it to the key of "
            f"{settings.base_url}, or set preferences.key_variable to null for a server that asks for none"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ResurfaceError(
            f"preferences.key_variable: the environment variable {settings.key_variable} holds letters that no key has (spaces, "
            "line breaks or others beyond ASCII); set it to the key alone"
        )
    return key


def make_request(messages: Messages, settings: PreferenceSettings) -> dict[str, Any]:
    """What is sent to the server. Together with its address it names the reply."""
    return {
        "model": settings.model,
        "messages": messages,
        settings.length_parameter: settings.reply_tokens,
        **({} if settings.temperature is None else {"temperature": settings.temperature}),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "questions", "strict": True, "schema": REPLY_SCHEMA},
        },
    }


def ask_server(
    conversations: list[Messages], settings: PreferenceSettings, account: Account, replies: Path
) -> list[Reply]:
    """The replies to conversations, in their order: those that are kept, and the server's to the others.

    Args:
        conversations: what to ask.
        settings: whom, how fast, at what cost.
        account: counts what the replies take.
        replies: the folder in which replies are kept.

    Raises:
        Preempted: the job was asked to end; replies are kept.
        ResurfaceError: there is no key, a cap is reached, or the server does not do its part; replies are kept.
    """
    requests = [make_request(messages, settings) for messages in conversations]
    names = [request_name({"server": settings.base_url, **request}) for request in requests]
    found = {name: reply for name in names if (reply := read_reply(replies, name)) is not None}
    for reply in found.values():
        account.count(reply)
    account.kept += len(found)
    missing = {name: request for name, request in zip(names, requests, strict=True) if name not in found}
    if missing:
        asyncio.run(_ask_all(missing, settings, account, replies, found))
    return [found[name] for name in names]


async def _ask_all(
    missing: dict[str, dict[str, Any]],
    settings: PreferenceSettings,
    account: Account,
    replies: Path,
    found: dict[str, Reply],
) -> None:
    """Send the missing requests and put their replies into `found`."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

    key = read_key(settings)
    for library in ("openai", "httpx2"):  # OPENAI_LOG=debug would have them log whole requests
        logging.getLogger(library).setLevel(logging.WARNING)
    waiting = deque(missing.items())
    failures: list[Callable[[], str]] = []  # they explain themselves at the end, when all that is under way is counted
    has_changed = asyncio.Condition()

    async def reserve(most: tuple[int, int]) -> bool:
        """Set tokens aside for a request, unless the job must end before it."""
        async with has_changed:
            # What is under way may take less than was set aside for it: a cap is reached only when nothing is.
            await has_changed.wait_for(lambda: not account.reserved or account.crossed_cap(most) is None)
            cap = account.crossed_cap(most)
            if cap and not failures:
                failures.append(partial(_explain_cap, cap, most, account, replies))
            if failures:
                return False
            account.reserved.append(most)
            return True

    async def work(client: "AsyncOpenAI", is_end_asked: Callable[[], bool]) -> None:
        """Send one request after the other, as long as there are any."""
        while waiting and not failures and not is_end_asked():
            name, request = waiting.popleft()
            most = (len(str(request).encode()) // BYTES_PER_TOKEN, settings.reply_tokens)
            if not await reserve(most):
                return
            try:
                reply = await _ask(client, request, most)
                keep_reply(replies, name, reply)
                found[name] = reply
                account.count(reply)
                account.sent += 1
            except (OpenAIError, ValidationError) as error:
                failures.append(partial(_explain_failure, error, request, key, account, replies))
            except ResurfaceError as error:  # the disk is full
                failures.append(partial(str, error))
            finally:
                async with has_changed:
                    account.reserved.remove(most)
                    has_changed.notify_all()

    with postponing_end() as is_end_asked:
        pool = DefaultAsyncHttpxClient(event_hooks={"request": [account.wait_for_turn]})
        async with AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            max_retries=settings.retries,
            timeout=settings.timeout,
            http_client=pool,
        ) as client:
            await asyncio.gather(*(work(client, is_end_asked) for _ in range(min(settings.concurrency, len(missing)))))
        if failures:
            raise ResurfaceError(failures[0]())
        if is_end_asked():
            raise Preempted(f"{account} are kept in {replies}, and the next run goes on from there")


async def _ask(client: "AsyncOpenAI", request: dict[str, Any], most: tuple[int, int]) -> Reply:
    """Send one request.

    Raises:
        openai.OpenAIError: the server fails, or refuses the request.
        ValidationError: it answers with something else than a chat completion.
    """
    from openai import APIStatusError

    try:
        answer = await client.chat.completions.with_raw_response.create(**request)
    except APIStatusError as error:
        if error.code in REFUSAL_CODES:
            return Reply(text="", end="refused", prompt_tokens=0, reply_tokens=0)
        raise
    completion = _Completion.model_validate_json(answer.content)
    choice, usage = completion.choices[0], completion.usage
    is_refused = bool(choice.message.refusal) or choice.finish_reason == "content_filter"
    return Reply(
        text=choice.message.content or "",
        end="refused" if is_refused else "cut" if choice.finish_reason == "length" else "whole",
        prompt_tokens=usage.prompt_tokens if usage else most[0],
        reply_tokens=usage.completion_tokens if usage else most[1],
    )


def _explain_cap(cap: str, most: tuple[int, int], account: Account, replies: Path) -> str:
    """That a cap is reached, for the reader."""
    return (
        f"preferences.{cap}: the cap of {getattr(account.settings, cap):,} is reached: {account}, and the next request may take "
        f"{sum(most):,} tokens more. All replies are kept in {replies}: raise preferences.{cap} to go on from there, or ask "
        "for fewer questions (preferences.forget_questions, preferences.benign_questions)"
    )


def _explain_failure(error: Exception, request: dict[str, Any], key: str, account: Account, replies: Path) -> str:
    """What went wrong with a request, for the reader: what the server did, and what to do."""
    import openai

    settings = account.settings
    tries = f"after {settings.retries} repetitions"
    if isinstance(error, openai.APITimeoutError):
        what = f"no answer within {settings.timeout:g} s, {tries}; raise preferences.timeout, or lower preferences.concurrency"
    elif isinstance(error, openai.APIConnectionError):
        what = f"cannot be reached {tries} ({type(error.__cause__).__name__}); check preferences.base_url, and that it runs"
    elif isinstance(error, openai.APIStatusError):
        status = error.status_code
        said = f"it answers {status}{_say(error, request, key)}"
        if status in (401, 403):
            name = settings.key_variable
            holder = (
                f"in the environment variable {name}" if name else "that it asks for (preferences.key_variable is null)"
            )
            what = f"it answers {status}; check the key {holder}, and that this key may use {settings.model}"
        elif status == 404:
            what = f"{said}; check preferences.model, found {settings.model!r}, and preferences.base_url, mostly with /v1 at its end"
        elif status == 429:
            what = (
                f"{said} {tries}: too many requests, or no credit; set preferences.requests_per_minute to what the account "
                "allows, lower preferences.concurrency, or look at the account"
            )
        elif status >= 500 or status in (408, 409):
            what = f"{said} {tries}; look at the server"
        else:
            what = (
                f"{said}; it does not take this request: preferences.length_parameter, temperature, reply_tokens and "
                "article_characters change it"
            )
    else:
        what = "it answers with something that is no chat completion; check preferences.base_url, mostly with /v1 at its end"
    return (
        f"{settings.base_url}: {what}. {account} are kept in {replies}: start again to go on from there, nothing is asked "
        "for twice"
    )


def _say(error: "openai.APIStatusError", request: dict[str, Any], key: str) -> str:
    """What a server says of a request that it refuses, unless it quotes the article or the key."""
    body = error.body
    found = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    said = " ".join(str(found or "").split())[:MOST_LETTERS]
    hidden = [(request["messages"][-1]["content"], LONGEST_QUOTE["article"]), (key, LONGEST_QUOTE["key"])]
    for text, longest in hidden:
        if SequenceMatcher(None, said, " ".join(text.split()), autojunk=False).find_longest_match().size > longest:
            return " (what it says quotes the request, and is not shown)"
    return f" ({said})" if said else ""
