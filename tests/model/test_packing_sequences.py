"""Attention as causal sequences (what runs on CUDA without a mask) is attention under the packed rows' mask."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from prefopt.model import attention
from prefopt.model.attention import causal_sequences
from prefopt.model.packing import Row, pack

ROWS = (
    Row((1, 2, 3), ((4, 5), (6, 7, 8, 9))),
    Row((1,), ((2,), (3, 4), (5,))),
    Row((1, 2, 3, 4, 5), ()),
    Row((1, 2), ((3, 4, 5),)),
)
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def lengths(rows):
    return [(len(row.prompt), [len(r) for r in row.responses]) for row in rows]


def slow_varlen(query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale):
    """One sequence after the other, the last query aligned with the last key."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    out = []
    for (q0, q1), (k0, k1) in zip(
        itertools.pairwise(query_ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True
    ):
        assert 0 < q1 - q0 <= longest_query
        assert q1 - q0 <= k1 - k0 <= longest_key
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        times = query.shape[1] // key.shape[1]
        k, v = (x[k0:k1].transpose(0, 1).repeat_interleave(times, 0) for x in (key, value))
        out.append(F.scaled_dot_product_attention(query[q0:q1].transpose(0, 1), k, v, seen, scale=scale))
    return torch.cat(out, 1).transpose(0, 1)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:]], ids=["all", "pair", "one response"])
def test_outputs_and_gradients_are_those_under_the_mask(rows, copies, monkeypatch):
    monkeypatch.setattr(attention, "varlen", slow_varlen)
    packed = pack(rows, copies=copies)
    source = torch.Generator().manual_seed(0)
    tokens = len(packed.input_ids)
    shapes = ((tokens, HEADS, SIZE), (tokens, KEY_HEADS, SIZE), (tokens, KEY_HEADS, SIZE))
    given = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
    weight = torch.randn(shapes[0], generator=source, dtype=torch.float64)

    def run(attend):
        leaves = [x.clone().requires_grad_() for x in given]
        out = attend(*leaves)
        (out * weight).sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    sequences = causal_sequences(lengths(rows), copies=copies)
    wanted = run(lambda q, k, v: under_mask(packed, q, k, v))
    for got, want in zip(run(lambda q, k, v: sequences.attend(q, k, v, 0.3)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def under_mask(packed, query, key, value):
    """The reference: scaled dot products over the padded grid under the dense mask."""
    q, k, v = (packed.to_grid(x) for x in (query, key, value))
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, packed.mask, scale=0.3)
    return out.transpose(1, 2).reshape(-1, HEADS, SIZE)[packed.grid]


def test_sequences_of_one_pair_by_hand():
    """Prompt 0 1 2, chosen 3 4, rejected 5 6 7 8."""
    s = causal_sequences(lengths(ROWS[:1]))
    assert s.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]
    assert s.query_ends.tolist() == [0, 5, 9]
    assert s.key_ends.tolist() == [0, 5, 12]
    assert (s.longest_query, s.longest_key) == (5, 7)
    assert s.first.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert s.repeats.tolist() == [5, 6, 7]
    assert s.repeated.tolist() == [0, 1, 2]


def test_a_cpu_batch_keeps_the_mask():
    assert pack(ROWS).sequences is None
    assert not attention.can_flash(torch.zeros(1, 1, 8, dtype=torch.bfloat16))
