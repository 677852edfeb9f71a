"""Replies of judges: dressing is taken off, thoughts are left out, and whatever leaves a doubt is no verdict."""

from __future__ import annotations

import pytest

from prefopt.judges import parse_reply
from prefopt.judges.replies import without_thoughts

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>B"


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        ("A", 1.0), ("B.", 0.0), ("C", 0.5), (" b ", 0.0), ("[[A]]", 1.0), ("[[C]]", 0.5), ('"A"', 1.0), ("(A)", 1.0),
        ("**B**", 0.0), ("__A__", 1.0), ("`A`", 1.0), ("**Verdict: A**", 1.0), ("\\boxed{B}", 0.0),
        ("$\\boxed{\\text{A}}$", 1.0), ("<answer>A</answer>", 1.0), ("```\nB\n```", 0.0), ("A<|im_end|>", 1.0),
        ("A.</s>", 1.0), ("B<end_of_turn>\n", 0.0), ("Final verdict: A", 1.0), ("The answer is B.", 0.0),
        ("Response A is better.", 1.0), ("My final verdict is: [[A]]", 1.0),
        ('{"verdict": "B"}', 0.0), ('{"verdict": "A", "reason": "longer"}', 1.0),
        ('```json\n{"verdict": "A"}\n```', 1.0),
        ("A\n\nBecause it is longer.", 1.0), ("It is longer.\n\n**Final verdict: A**", 1.0),
        ("<think>\nA? no.\n</think>\n\nB", 0.0), ("Both are fine.\n</think>\n\nB", 0.0), ("[THINK]hm[/THINK]A", 1.0),
        ("<seed:think>hm</seed:think>A", 1.0), ("<thinking>A</thinking>\nB", 0.0),
        ("<|START_THINKING|>x<|END_THINKING|>A", 1.0),
        ("<|begin_of_thought|>h<|end_of_thought|>A", 1.0), (HARMONY, 0.0),
    ],
)  # fmt: skip
def test_one_verdict_is_read_however_it_is_dressed(reply: str, first: float) -> None:
    assert parse_reply(reply) == first


@pytest.mark.parametrize(
    "reply",
    [
        "", "{", "{}", "[[D]]", "AB", "A and B", "A B", "A\nB", "[[A]] [[B]]", "**A** vs **B**", "I think A is better",
        "A good answer", "The verdict is not A", "Both are fine, but A and B differ.", "Intro\nA\nOutro",
        "Response A and response B", "I am sorry, I cannot help with that.", '{"verdict": "A"} because',
        '{"verdict": "A", "verdict": "B"}', '{"verdict": "A", "verdict": "A"}', '{"verdict": {"verdict": "A"}}',
        '{"verdict": ["A"]}', "<think>A", "<think>A</think>", "<|channel|>analysis<|message|>A", "[THINK]B",
    ],
)  # fmt: skip
def test_what_leaves_a_doubt_is_not_guessed_at(reply: str) -> None:
    assert parse_reply(reply) is None


def test_thoughts_that_do_not_end_are_known() -> None:
    assert without_thoughts("<think>so A") == ("<think>so A", True)
    assert without_thoughts("<think>x</think>A") == ("A", False)
    assert without_thoughts("x</think>A<think>") == ("A<think>", True)
