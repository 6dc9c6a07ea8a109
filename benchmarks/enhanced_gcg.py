"""Steps of enhanced GCG: `python -m benchmarks.enhanced_gcg`.

The plain way goes question by question, all candidates at once, through both models whole, from the first token on, and unembeds every
position. Two models of random weights of which one is a little disturbed stand for original and unlearned.
"""

import random
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts
from resurface.attacks.enhanced_gcg import Problem, Search, complete, evaluate, propose, state_problem, take_step
from resurface.attacks.prefix import draw_prefix, set_chats
from resurface.settings.enhanced_gcg import EnhancedGCGSettings

TOKENS = 163
STEPS = {"swap": (1.0, 0.0, 0.0, 0.0), "delete": (0.0, 0.0, 1.0, 0.0)}


def plain_losses(problem: Problem, prefixes: list[list[int]], has_gradient: bool = False) -> list[float]:
    """What both models say of L for prefixes of one length, question by question; with its gradient by the embeddings on demand."""
    settings, before, device = problem.settings, problem.chats.before, problem.unlearned.device
    completed = [complete(problem, prefix) for prefix in prefixes]
    losses = torch.zeros(len(prefixes))
    for question, (completion, clean) in enumerate(zip(problem.completions, problem.clean, strict=True)):
        rows = [[*before, *prefix, *rows[question]] for prefix, rows in zip(prefixes, completed, strict=True)]
        tokens = torch.tensor(rows, device=device)
        models = (problem.unlearned, problem.original)
        embedded = [model.get_input_embeddings()(tokens).detach().requires_grad_(has_gradient) for model in models]
        outputs: list[Any] = [
            model(inputs_embeds=vectors, output_hidden_states=True, use_cache=False)
            for model, vectors in zip(models, embedded, strict=True)
        ]
        matched, prompt = clean.shape[1], tokens.shape[1] - len(completion)
        ours, theirs = (
            torch.stack([output.hidden_states[block + 1][:, -matched:].float() for block in problem.blocks])
            for output in outputs
        )
        logits = outputs[0].logits[:, :-1].float()
        surprise = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        surprise = surprise.reshape(len(prefixes), -1)
        loss = (
            surprise[:, prompt - 1 : prompt - 1 + settings.forced_tokens].mean(1)
            + settings.distance_weight * (ours - theirs).norm(dim=-1).mean((0, 2))
            + settings.cosine_weight * (1 - functional.cosine_similarity(ours, clean[:, None], dim=-1)).mean((0, 2))
            + settings.fluency_weight * surprise[:, : prompt - 1].mean(1)
        )
        if has_gradient:
            torch.autograd.grad(loss.sum(), embedded)
        losses += loss.detach().cpu() / len(problem.completions)
    return losses.tolist()


def plain_step(problem: Problem, prefix: list[int], candidates: list[list[int]], kind: str) -> list[float]:
    """A step's work: the gradient if tokens are swapped by it, and the losses of its candidates."""
    if kind == "swap":
        plain_losses(problem, [prefix], has_gradient=True)
    with torch.no_grad():
        return plain_losses(problem, candidates)


def measure(bench: Bench) -> None:
    """One plain step and several of ours for each kind, and with candidates screened on some of the questions."""
    unlearned, tokenizer = bench.load()
    original, _ = bench.load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = unlearned.get_submodule("model.layers.1.mlp.down_proj").weight
        weight += 0.01 * torch.randn(weight.shape, generator=generator).to(weight)
    for model in (unlearned, original):
        model.requires_grad_(False)
    blocks = bench.choose([1, 2], [7, 8, 9])
    prefix_length, steps = bench.choose(12, 100), bench.choose(2, 5)
    settings = EnhancedGCGSettings(
        minimum_lengths=(1, 2),
        forced_tokens=10,
        matched_tokens=bench.choose(5, 35),
        candidates=bench.choose(4, 16),
        top_k=bench.choose(16, 64),
    )
    chats = set_chats(tokenizer, make_prompts(tokenizer, even_lengths(7, bench.choose(80, TOKENS))), False)
    problem = state_problem(unlearned, original, chats, blocks, settings)
    prefix = draw_prefix(chats, prefix_length, random.Random(0))
    width = sum(map(len, complete(problem, prefix))) + 7 * (len(chats.before) + len(prefix))

    for kind, shares in STEPS.items():
        chosen = replace(problem, settings=settings.model_copy(update={"step_shares": shares}))
        _, candidates = propose(chosen, prefix, 10**6, random.Random(0))
        # A token of a candidate passes two models once; for the gradient, two models and back.
        tokens, unit = width * len(candidates), f"{kind} step"
        passes = 2 + (4 / len(candidates) if kind == "swap" else 0)
        plain_step(chosen, prefix, candidates, kind)
        losses = bench.take_time(
            "question by question",
            unit,
            1,
            lambda chosen=chosen, candidates=candidates, kind=kind: plain_step(chosen, prefix, candidates, kind),
            tokens,
            passes,
            is_plain=True,
        )
        found = evaluate(chosen, candidates)
        ours = [parts["loss"] - parts["repetition"] for parts in found]
        difference = max(abs(one - other) for one, other in zip(ours, losses, strict=True))
        ways = {"resurface": None, "resurface, screened on 2 of 7, 6 kept": 2}
        for way, screening in ways.items():
            # With six of 16 candidates kept a search comes to the same loss (tests/workflow/test_whole_science.py).
            update = {"step_shares": shares, "screening_questions": screening, "screened": 6}
            chosen = replace(problem, settings=settings.model_copy(update=update))
            # Seeded alike, whatever the way.
            first = (evaluate(chosen, [prefix])[0]["loss"], prefix)
            search = Search(10**6, [first], first)

            def go_on(chosen: Problem = chosen, search: Search = search, kind: str = kind) -> None:
                for step in range(steps):
                    search.buffer = [(0.0, prefix)]
                    take_step(chosen, search, random.Random(f"{kind}{step}"))

            bench.take_time(way, unit, steps, go_on, tokens * steps, passes)
            bench.note(largest_difference=difference)


if __name__ == "__main__":
    main("enhanced_gcg", measure)
