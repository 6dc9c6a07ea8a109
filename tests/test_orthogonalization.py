"""Orthogonalization's means, held against loops over single questions."""

import pytest
import torch
from conftest import CHECKPOINTS
from hypothesis import given, settings
from hypothesis import strategies as st

from resurface.attacks.orthogonalization import collect, find_first_ids
from resurface.models import load_model


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
