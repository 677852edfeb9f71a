"""Split by prompt, leaks, and the order of training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data import LoadedPairs, LoadReport, Message, Pair, check_no_leak, pair_order, split_by_prompt
from prefopt.errors import DataError, UsageError
from prefopt.runtime.seeding import numpy_generator


def pair(prompt: str | tuple[Message, ...], prompt_id: int, row: int = 1) -> Pair:
    return Pair(prompt, "a", "b", None, None, prompt_id=prompt_id, row=row)


PAIRS = tuple(pair(f"prompt {i // 3}", i // 3, row=i) for i in range(90))


@given(st.integers(0, 10**6), st.one_of(st.integers(1, 29), st.floats(0.01, 0.9)))
def test_split_parts_prompts_and_keeps_order(seed, heldout):
    train, out = split_by_prompt(PAIRS, heldout=heldout, seed=seed)
    assert not {p.prompt_id for p in train} & {p.prompt_id for p in out}
    assert sorted([*train, *out], key=lambda p: p.row) == list(PAIRS)
    assert [p.row for p in train] == sorted(p.row for p in train)
    expected = heldout if isinstance(heldout, int) else int(np.ceil(heldout * 30))
    assert len({p.prompt_id for p in out}) == expected


def test_split_depends_on_the_seed_and_not_on_other_rows():
    first = split_by_prompt(PAIRS, heldout=10, seed=0)[1]
    assert first == split_by_prompt(PAIRS, heldout=10, seed=0)[1]
    assert first != split_by_prompt(PAIRS, heldout=10, seed=1)[1]
    fewer = [p for p in PAIRS if p.prompt_id != first[0].prompt_id]
    assert {p.prompt_id for p in first} - {first[0].prompt_id} < {
        p.prompt_id for p in split_by_prompt(fewer, heldout=10, seed=0)[1]
    }


@pytest.mark.parametrize("heldout", [0, 30, 0.999, 31, -1])
def test_split_needs_both_sides(heldout):
    with pytest.raises(UsageError, match="both sides need at least one"):
        split_by_prompt(PAIRS, heldout=heldout, seed=0)


def loaded(name: str, *prompts: str | tuple[Message, ...]) -> LoadedPairs:
    return LoadedPairs(tuple(pair(p, i, row=i + 1) for i, p in enumerate(prompts)), name, "0" * 64, LoadReport())


@pytest.mark.parametrize("leak", ["cafe\u0301  au lait", "caf\u00e9 au lait\n"])
def test_leak_between_files_names_both_lines(leak):
    train = loaded("train.jsonl", "tea", "caf\u00e9 au lait")
    with pytest.raises(DataError) as caught:
        check_no_leak(train, loaded("test.jsonl", "milk", "water", leak))
    assert str(caught.value).startswith('error[DATA019] test.jsonl:3 field "prompt": also in the training data, train')
    assert "train.jsonl:2; 1 held-out rows leak" in str(caught.value)


def test_leak_of_chats_looks_at_roles_too():
    ask, tell = (Message("user", "Hi"),), (Message("system", "Hi"),)
    check_no_leak(loaded("a", ask), loaded("b", tell))
    with pytest.raises(DataError, match="DATA019"):
        check_no_leak(loaded("a", ask), loaded("b", (Message("user", " Hi "),)))


@given(st.integers(1, 50), st.integers(0, 100), st.integers(0, 20), st.integers(1, 50))
def test_order_is_one_permutation_after_another(n_pairs, seed, steps, pairs_per_step):
    if n_pairs < pairs_per_step:
        with pytest.raises(DataError, match=f"DATA032.*give at least {pairs_per_step} pairs"):
            pair_order(n_pairs, seed=seed, steps=steps, pairs_per_step=pairs_per_step)
        return
    order = pair_order(n_pairs, seed=seed, steps=steps, pairs_per_step=pairs_per_step)
    assert order.shape == (steps, pairs_per_step)
    assert order.dtype == np.int64
    flat = order.reshape(-1)
    for epoch in range(len(flat) // n_pairs):
        part = flat[epoch * n_pairs : (epoch + 1) * n_pairs]
        assert np.array_equal(part, numpy_generator(seed, "pair_order", epoch).permutation(n_pairs))


def test_order_of_fewer_steps_is_the_beginning_of_more():
    long = pair_order(40, seed=3, steps=30, pairs_per_step=8)
    assert np.array_equal(long[:7], pair_order(40, seed=3, steps=7, pairs_per_step=8))
    assert not np.array_equal(long, pair_order(40, seed=4, steps=30, pairs_per_step=8))


def test_order_never_changes_between_versions():
    assert pair_order(10, seed=0, steps=2, pairs_per_step=5).tolist() == [[6, 5, 2, 4, 1], [7, 8, 9, 0, 3]]
