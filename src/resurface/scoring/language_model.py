"""The harness's view of a model: an `lm_eval` model class that answers log-likelihood requests under interventions.

It subclasses `HFLM` for its tokenization, BOS and chat-template rules, so that results equal those of the harness's `hf`
model, and replaces how requests are computed:

- choices that differ only in their last token share one forward pass (`A` to `D` after the same prompt always do);
- what all rows of a task begin with (chat template, prefix, header) is computed once, and its keys and values are shared;
- rows are sorted by length and right-padded, which a causal model needs no mask for, and only the few positions that
  decide an answer are unembedded;
- prompts that a variant leaves alone are not read again;
- one pass may be read in several places at once (every stream and block of the logit lens).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from resurface.decoder import final_norm, unembed
from resurface.errors import ResurfaceError
from resurface.interventions import Prepend, Read, Rewrite, Variant, read_variants
from resurface.models import (
    continue_cache,
    for_batches,
    keep_cache,
    load_model,
    load_tokenizer,
    pad_right,
    pick_device,
    run_decoder,
)
from resurface.prompts import chat_messages, render_chat
from resurface.scoring.apply import Masks, change_model, prompt_changer, record_streams

LogLikelihood = tuple[float, bool]

LOGITS = 2**28  # at most so many in memory, 1 GiB, where several places are read at once


@dataclass(frozen=True)
class Row:
    """One forward pass: all requests of a question whose tokens are equal but for the last one.

    Attributes:
        task: the task that asks.
        tokens: the input ids, i.e. context and continuation without the last token.
        shared: how many of the continuation's tokens are among them.
        finals: the last token of each request.
        requests: the position of each request in the list that was asked.
        is_changed: whether the variant's change of the prompt changed this one.
    """

    task: str
    tokens: tuple[int, ...]
    shared: int
    finals: tuple[int, ...]
    requests: tuple[int, ...]
    is_changed: bool


@dataclass(frozen=True)
class Known:
    """What is known of lists of requests, by name, apart from any attack: computed once for all folders of variants.

    Attributes:
        rows: the requests, encoded as they are.
        answers: by place to read too, what the model as it is has answered, by a request's position.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    answers: dict[tuple[str, Read | None], dict[int, LogLikelihood]] = field(default_factory=dict)


@register_model("resurface")
class ResurfaceLM(HFLM):
    """A Hugging Face decoder under an intervention, for every multiple-choice task of the harness.

    Args:
        pretrained: checkpoint folder.
        interventions: an attack's folder (`variants.json`), or None for the model as it is.
        variant: which of its variants to apply; None leaves the model as it is.
        batch_tokens: padded tokens per forward pass.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` or a torch dtype's name.
        batch_size, max_batch_size: accepted for the harness's sake; `batch_tokens` rules.

    Raises:
        ResurfaceError: the checkpoint cannot be loaded, or there is no such variant.
    """

    def __init__(
        self,
        pretrained: str,
        interventions: str | None = None,
        variant: str | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        path = Path(pretrained)
        super().__init__(
            pretrained=load_model(path, pick_device(device or "auto"), dtype),
            tokenizer=load_tokenizer(path),
            batch_size=1,
        )
        self.batch_tokens = int(batch_tokens)
        self.checkpoint = path
        self.folder = Path(interventions) if interventions else path
        self.variant = Variant(variant="none")
        if variant is not None:
            found = {known.variant: known for known in read_variants(self.folder)}
            if variant not in found:
                raise ResurfaceError(f"{self.folder}: no variant {variant!r}; allowed are {', '.join(found)}")
            self.variant = found[variant]
        self._messages: dict[str, list[dict[str, str]]] = {}
        self._encoded: dict[str, list[int]] = {}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation in the paper's chat form: with an empty system turn unless it has one.

        What was rendered is remembered, because interventions change prompts before templating.
        """
        if not add_generation_prompt:
            return str(super().apply_chat_template(chat_history, add_generation_prompt=False))
        if chat_history[0]["role"] != "system":
            chat_history = [*chat_messages("")[:1], *chat_history]
        text = render_chat(self.tokenizer, chat_history)
        self._messages[text] = chat_history
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """Answer the harness under this model's variant: (log-probability in nats, is it the greedy choice)."""
        with change_model(self.model, self.variant.model, self.folder):
            rows = self.plan_rows(requests, self.variant)
            answer = self.answer(rows, [self.variant], disable_tqdm)[0]
            return [answer[position] for position in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused."""
        raise ResurfaceError("resurface answers multiple-choice tasks only; this task asks for rolling log-likelihoods")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Refused."""
        raise ResurfaceError("resurface answers multiple-choice tasks only; this task asks for generated text")

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Encode a text by the harness's rules, or look it up among those that were encoded at once."""
        if string in self._encoded and not args and not kwargs:
            return self._encoded[string]
        return list(super().tok_encode(string, *args, **kwargs))

    def _encode_at_once(self, texts: list[str]) -> dict[str, list[int]]:
        """What `tok_encode` makes of texts, in a fraction of the time; those that begin with BOS are left to it."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        others = [text for text in dict.fromkeys(texts) if text and not text.startswith(bos)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        if not others:
            return {}
        if getattr(self.tokenizer, "is_fast", False):
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            found = [encoded.ids for encoded in backend.encode_batch_fast(others, **special)]
        else:
            found = self.tokenizer(others, **special)["input_ids"]
        return dict(zip(others, found, strict=True))

    def _encode_without_context(self, answer: str) -> tuple[list[int], list[int]]:
        """Encode a continuation of nothing as `HFLM.loglikelihood` does: after BOS, or else EOS."""
        tokens = list(super().tok_encode(answer, add_special_tokens=False))
        return ([self.prefix_token_id], tokens) if tokens[0] != self.prefix_token_id else (tokens[:1], tokens[1:])

    def plan_rows(self, requests: Sequence[Instance], variant: Variant) -> list[Row]:
        """Encode requests as the harness does, under a variant's change of the prompt, and merge them into rows."""
        rows: list[Row] = []
        change = prompt_changer(variant.prompt, self.folder)
        contexts = {request.args[0]: "" for request in requests}
        for context in contexts:
            messages = self._messages.get(context)
            if variant.prompt is None:
                changed = context
            elif messages is None:
                changed = change(context)
            else:
                user = {"role": "user", "content": change(messages[-1]["content"])}
                changed = render_chat(self.tokenizer, [*messages[:-1], user])
            contexts[context] = changed
        pairs = [(contexts[request.args[0]], request.args[1]) for request in requests]
        self._encoded = self._encode_at_once(
            [context.rstrip() for context in contexts.values()] + [context + answer for context, answer in pairs]
        )
        encoded, longest = [], self.max_length + 1
        for position, (request, pair) in enumerate(zip(requests, pairs, strict=True)):
            prompt, answer = self._encode_pair(*pair) if pair[0] else self._encode_without_context(pair[1])
            tokens = tuple((prompt + answer)[-longest:])
            encoded.append(((request.task_name, request.doc_id), tokens[:-1], len(answer) - 1, tokens[-1], position))
        self._encoded = {}
        for ((task, _), tokens, shared), group in groupby(encoded, key=lambda row: row[:3]):
            members = list(group)
            finals, positions = tuple(row[3] for row in members), tuple(row[4] for row in members)
            is_changed = any(pairs[position][0] != requests[position].args[0] for position in positions)
            rows.append(Row(task, tokens, shared, finals, positions, is_changed))
        return rows

    def answer(
        self, rows: Sequence[Row], variants: Sequence[Variant], disable_tqdm: bool = False
    ) -> list[dict[int, LogLikelihood]]:
        """Answer requests for several variants from one pass over the model as it is now.

        Args:
            rows: the requests, encoded by `plan_rows` under the variants' prompt.
            variants: variants with the same change of model (applied by the caller) and prompt; only `read` may differ.
            disable_tqdm: show no progress bar.

        Returns:
            for each variant, by the position of a request: log-probability of the continuation [nats, float32 precision], and
            whether each of its tokens is the most probable one.

        Raises:
            ResurfaceError: a log-probability is not finite: the model, or what a variant makes of it, has diverged.
        """
        assert len({variant.prompt for variant in variants}) == 1, "variants of one pass share their prompt"
        answers: list[dict[int, LogLikelihood]] = [{} for _ in variants]
        reads = [variant.read for variant in variants if variant.read is not None]
        head = widen(self.model.get_output_embeddings())
        with (
            torch.inference_mode(),
            record_streams(self.model, reads) as streams,
            tqdm(
                total=len(rows), desc=f"score {variants[0].variant}", disable=True if disable_tqdm else None
            ) as progress,
        ):
            for beginning, members in group_by_beginning(rows):
                cache = keep_cache(self.model, beginning)[0] if beginning else None
                start = len(beginning) if cache else 0

                def answer_batch(
                    positions: list[int], members: Any = members, cache: Any = cache, start: int = start
                ) -> None:
                    batch = [members[position] for position in positions]
                    input_ids = pad_right([row.tokens[start:] for row in batch], self.tokenizer.pad_token_id)
                    input_ids = input_ids.to(self.device)
                    kept = continue_cache(cache, torch.zeros_like(input_ids[:, 0])) if cache else {}
                    output = run_decoder(self.model, input_ids, **kept).last_hidden_state
                    hidden = [
                        (variant.read, output if variant.read is None else streams[variant.read])
                        for variant in variants
                    ]
                    found = self._read_answers(batch, start, hidden, head)
                    for answer, of_batch in zip(answers, found, strict=True):
                        answer |= of_batch
                    progress.update(len(batch))

                # Batches are cut by whole rows, because shared keys and values take room in each of them.
                for_batches([row.tokens for row in members], self.batch_tokens, answer_batch)
        for variant, answer in zip(variants, answers, strict=True):
            self._check_finite(variant, answer)
        return answers

    def _check_finite(self, variant: Variant, answer: dict[int, LogLikelihood]) -> None:
        """Raise a `ResurfaceError` if an answer is no number: its question would count as answered with the first choice."""
        wrong = [value for value, _ in answer.values() if not math.isfinite(value)]
        if wrong:
            raise ResurfaceError(
                f"{self.checkpoint}: under the variant {variant.variant!r} of {self.folder}, {len(wrong)} of {len(answer)} "
                f"log-probabilities are not finite (the first is {wrong[0]}): the model or the attack's change of it has "
                "diverged. Look at its losses, lower the learning rate of the method or the attack, and run the workflow again"
            )

    def _read_answers(
        self,
        batch: Sequence[Row],
        start: int,
        streams: Sequence[tuple[Read | None, torch.Tensor]],
        head: torch.nn.Module,
    ) -> list[dict[int, LogLikelihood]]:
        """Unembed the positions that decide the rows' answers, in every place to read, and look the answers up.

        `streams` are these places and what was found there `[rows, seq, hidden]`, from the rows' token `start` on. All that is
        read is copied from the device at once.
        """
        places: list[tuple[int, int]] = []  # (row, position) before each token that is looked up
        wanted: list[tuple[int, int]] = []  # of each request, its tokens: (which place, token)
        begins: list[int] = []  # of each request, in `wanted`
        for i, row in enumerate(batch):
            first = len(row.tokens) - 1 - start - row.shared
            numbers = range(len(places), len(places) + row.shared + 1)
            places += [(i, first + j) for j in range(row.shared + 1)]
            for final in row.finals:
                begins.append(len(wanted))
                wanted += zip(numbers, (*row.tokens[len(row.tokens) - row.shared :], final), strict=True)
        requests = [request for row in batch for request in row.requests]
        rows, positions = torch.tensor(places, device=self.device).T
        numbers_of, tokens = torch.tensor(wanted, device=self.device).T
        chosen = [
            hidden[rows, positions] if read is None else final_norm(self.model)(hidden[rows, positions])
            for read, hidden in streams
        ]
        logprobs, is_greedy = [], []
        # One product for many places to read: for each alone a device waits for the head's weights.
        for several in torch.stack(chosen).split(max(1, LOGITS // (len(places) * len(head.get_parameter("weight"))))):
            with tensor_cores(is_exact=head is not self.model.get_output_embeddings()):
                logits = unembed(self.model, several.float(), head)
            logprobs.append(logits[:, numbers_of, tokens] - logits.logsumexp(-1)[:, numbers_of])
            is_greedy.append(logits.argmax(-1)[:, numbers_of] == tokens)
        sums = np.add.reduceat(torch.cat(logprobs).cpu().double().numpy(), begins, axis=1)
        greedy = np.logical_and.reduceat(torch.cat(is_greedy).cpu().numpy(), begins, axis=1)
        pairs = [zip(*of_read, strict=True) for of_read in zip(sums.tolist(), greedy.tolist(), strict=True)]
        return [dict(zip(requests, of_read, strict=True)) for of_read in pairs]


def group_by_beginning(rows: Sequence[Row]) -> list[tuple[tuple[int, ...], list[Row]]]:
    """Rows by task, and the tokens that all rows of a task begin with, none of which decides an answer."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    groups = []
    for members in by_task.values():
        undecided = [row.tokens[: len(row.tokens) - 1 - row.shared] for row in members]
        # In lexical order all others lie between the first and the last, so these two differ first.
        pairs = zip(min(undecided), max(undecided), strict=False)
        groups.append((tuple(token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), members))
    return groups


def widen(head: torch.nn.Module) -> torch.nn.Module:
    """The unembedding in float32: as it is if it has that precision, else a copy, hooks included.

    In bfloat16 logits near 20 are an eighth apart, and choices would tie.
    """
    return head if head.weight.dtype == torch.float32 else deepcopy(head).float()


@contextmanager
def tensor_cores(is_exact: bool) -> Iterator[None]:
    """Let float32 products on GPUs use TF32 if that is exact: if both factors were widened from bfloat16 or float16; else change nothing.

    TF32 holds such numbers as they are, multiplies them exactly and adds up in float32, several times as fast. Other products of a model,
    such as those of its rotary angles, must stay outside.
    """
    before = torch.backends.cuda.matmul.fp32_precision
    if is_exact:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def answer_variants(
    model: ResurfaceLM,
    request_lists: dict[str, list[Instance]],
    variants: list[Variant],
    report: Callable[[str], Any],
    known: Known | None = None,
) -> dict[tuple[str, str], list[LogLikelihood]]:
    """Answer lists of requests under every variant of an attack, with the model loaded once.

    Variants that change the model and the prompt in the same way share their passes. Prompts that a variant leaves alone are read
    once by the model as it is: of all that rewrite a domain's questions, the general ones are answered once.

    Args:
        model: the model class, with `folder` the attack's folder.
        request_lists: name (a template) → requests.
        variants: what to apply.
        report: called with a line before each pass.
        known: of these very lists; what is found out now goes there too.

    Returns:
        (variant's name, name of the list) → one answer per request.
    """
    known = known or Known()
    answers: dict[tuple[str, str], list[LogLikelihood]] = {}
    passes: dict[tuple[str | None, Prepend | Rewrite | None], list[Variant]] = {}
    masks: Masks = {}
    for variant in variants:
        change = variant.model.model_dump_json() if variant.model else None
        passes.setdefault((change, variant.prompt), []).append(variant)
    for number, members in enumerate(passes.values(), 1):
        report(f"pass {number} of {len(passes)}: {members[0].variant}{' …' if len(members) > 1 else ''}")
        with change_model(model.model, members[0].model, model.folder, masks):
            for name, requests in request_lists.items():
                planned = known.rows.get(name) if members[0].prompt is None else None
                if planned is None:
                    planned = model.plan_rows(requests, members[0])
                if members[0].prompt is None:
                    known.rows[name] = planned
                before = [
                    known.answers.setdefault((name, variant.read), {}) if members[0].model is None else {}
                    for variant in members
                ]
                unread = [
                    row
                    for row in planned
                    if row.is_changed or not all(row.requests[0] in answered for answered in before)
                ]
                for variant, answered, answer in zip(members, before, model.answer(unread, members), strict=True):
                    found = answered | answer
                    answers[variant.variant, name] = [found[position] for position in range(len(requests))]
                    answered |= {place: answer[place] for row in unread if not row.is_changed for place in row.requests}
    return answers
