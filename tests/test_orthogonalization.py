"""Orthogonalization's means, held against loops over single questions."""

from contextlib import contextmanager

import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from resurface.attacks import orthogonalization
from resurface.attacks.orthogonalization import attack, collect, find_first_ids
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table, read_questions
from resurface.models import load_model, load_tokenizer, recording
from resurface.settings.orthogonalization import OrthogonalizationSettings


@pytest.fixture(scope="module")
def model():
    """The bundled original."""
    return load_model(CHECKPOINTS / "original", torch.device("cpu"))


def read_states(model, row, skip):
    """`h_ℓ` of all blocks, `[blocks, tokens, hidden]`, by the library's own record of hidden states."""
    last = {}
    handle = model.model.layers[-1].register_forward_hook(lambda _module, _inputs, output: last.update(output=output))
    states = model.model(torch.tensor([row]), output_hidden_states=True).hidden_states[1:]
    handle.remove()
    # The library's last one has gone through the final norm.
    return torch.stack([*(state[0] for state in states[:-1]), last["output"][0]])[:, skip:]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=9).filter(lambda lengths: max(lengths) > 3),
    skip=st.integers(0, 3),
    batch_tokens=st.sampled_from([1, 20, 1000]),
    seed=st.integers(0, 1000),
)
@torch.inference_mode()
def test_means_are_those_of_a_loop_over_questions(model, lengths, skip, batch_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 15, (length,), generator=generator).tolist() for length in lengths]
    every = [pair for row in rows for pair in zip(row[skip:], read_states(model, row, skip).unbind(1), strict=True)]
    keep = 5
    apart = set(find_first_ids(rows, skip, keep))
    assert apart == {token for token, _ in every[:keep]}
    found = collect(model, rows, skip, keep, batch_tokens, apart)

    torch.testing.assert_close(
        found.first, torch.stack([states for _, states in every[:keep]], dim=1), atol=1e-4, rtol=1e-4
    )
    assert found.first_ids.tolist() == [token for token, _ in every[:keep]]
    # A block leaves out nothing, the next one its own ids, and one everything there is, which is none at all then.
    outliers = [set(), set(sorted(apart)[:1]), set(sorted(apart)[1:]), *[apart] * (len(found.sums) - 3)]
    means = found.mean_without(outliers)
    for block, left_out in enumerate(outliers):
        kept = [states[block] for token, states in every if token not in left_out]
        expected = torch.stack(kept or [states[block] for _, states in every]).mean(0)
        torch.testing.assert_close(means[block], expected, atol=1e-4, rtol=1e-4)


def test_sums_grow_neither_with_questions_nor_with_the_vocabulary(model):
    apart = {5, 7}
    few, many = (
        collect(model, [list(range(3, 3 + length)) for length in lengths], 1, 2, 64, apart)
        for lengths in ([6], [40, 50, 60, 60])
    )
    assert few.sums.shape == many.sums.shape
    assert few.counts.tolist() == [1, 1, 3]
    assert int(many.counts.sum()) == 206


def test_a_batch_that_memory_has_no_room_for_is_counted_once(model, monkeypatch):
    """It comes again in parts, and what its first blocks had added by then must not count."""
    rows = [list(range(3, 17)), *([token] * 6 for token in range(3, 9))]

    class Short:
        def __init__(self, states):
            self.states = states

        def __getitem__(self, block):
            if block == len(self.states) - 1 and len(self.states[block]) > 1:
                raise torch.OutOfMemoryError
            return self.states[block]

    @contextmanager
    def record_in_little_memory(*arguments):
        with recording(*arguments) as states:
            yield Short(states)

    expected = collect(model, rows, 1, 1, 1, {4, 5})
    monkeypatch.setattr(orthogonalization, "recording", record_in_little_memory)
    found = collect(model, rows, 1, 1, 20, {4, 5})
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.sums, expected.sums, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_directions_are_differences_of_means_without_outliers(data, tmp_path):
    """Held against a loop over questions, tokens and pairs of tokens: the model that never learned, as if it had been unlearned."""
    folder = data / "results" / "data" / DOMAIN
    chosen = OrthogonalizationSettings(
        references=["original", "benign", "text"],
        block_sets={"1": [1]},
        questions=40,
        skip_tokens=16,
        outlier_tokens=50,
        outlier_deviations=1.5,
        principal_tokens=10,
        text_length=20,
        batch_tokens=400,
    )
    unlearned_folder = CHECKPOINTS / "never_learned"
    target = Target(unlearned_folder, CHECKPOINTS / "original", folder, tmp_path / "out", 0, "cpu", tmp_path / "resume")
    attack(target, chosen, "all")
    original, unlearned = (
        load_model(place, torch.device("cpu")) for place in (target.original_folder, unlearned_folder)
    )
    tokenizer = load_tokenizer(unlearned_folder)

    def says(model, row):
        return tokenizer.decode(model(torch.tensor([row])).logits[0, -1].argmax()).strip()

    forget = []
    for prompt, answer in read_questions(folder, "questions")[:40]:
        row = tokenizer(prompt)["input_ids"]
        if says(original, row) == answer.strip() != says(unlearned, row):
            forget.append(row)
    assert len(forget) > 10
    benign = [tokenizer(prompt)["input_ids"] for prompt, _ in read_questions(folder, "retain_questions")[: len(forget)]]
    texts = [tokenizer(text)["input_ids"][:20] for text in read_domain_table(folder, "retain_corpus")["text"]]

    def read_all(model, rows, skip):
        ids = [token for row in rows for token in row[skip:]]
        return ids, torch.cat([read_states(model, row, skip) for row in rows], dim=1)

    def find_far(ids, states):
        """Of one block."""
        first = states[:50]
        distances = torch.tensor([sum((one - other).abs().sum() for other in first) / 49 for one in first])
        limit = distances.mean() + 1.5 * distances.std()
        return {token for token, distance in zip(ids, distances, strict=False) if distance > limit}

    of_original, of_unlearned = read_all(original, forget, 16), read_all(unlearned, forget, 16)
    of_benign, of_texts = read_all(unlearned, benign, 0), read_all(unlearned, texts[: len(forget)], 0)
    only_benign = 0
    directions = {name: load_file(target.output / f"{name}.safetensors")["directions"] for name in chosen.references}
    for block in range(len(directions["original"])):
        far, far_benign = (find_far(ids, states[block]) for ids, states in (of_original, of_benign))
        only_benign += len(far_benign - far)

        def mean(found, left_out=far | far_benign, block=block):
            ids, states = found
            return torch.stack([s for t, s in zip(ids, states[block], strict=True) if t not in left_out]).mean(0)

        for name, reference in (("original", of_original), ("benign", of_benign), ("text", of_texts)):
            expected = mean(of_unlearned) - mean(reference)
            torch.testing.assert_close(directions[name][block], expected, atol=2e-4, rtol=1e-3)
    assert only_benign > 0, "or nothing would show that they are left out"
