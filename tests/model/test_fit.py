"""What a model can take: lengths, windows, experts, heads, caches; found out before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import by_hand, draw
from training import LORA, train

from prefopt.config.schema import Lora
from prefopt.data import TokenPair
from prefopt.errors import UsageError
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base, load_base
from prefopt.model.generate import Sampling, sample
from prefopt.model.lengths import Lengths, fit_lengths
from prefopt.model.logps import score_rows
from prefopt.model.packing import Row
from prefopt.model.probe import probe

LoadTiny = Callable[..., Base]


def texts(prompt: int, response: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    source = torch.Generator().manual_seed(prompt)
    return draw(prompt, source), draw(response, source)


def pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    ids, one = texts(prompt, chosen)
    return TokenPair(ids, one, texts(rejected, rejected)[1], 0, 0, None, None, False, False)


def test_lengths_are_those_of_the_longest_texts() -> None:
    pairs = [pair(20, 3, 5), pair(4, 9, 2)]
    assert Lengths.of(pairs, [(1,) * 7, (1,) * 11], 6) == Lengths(25, 11, 6)
    assert Lengths.of(pairs, [], 6, crossed=True).row == 20 + 9
    assert (Lengths(25, 11, 6).longest, Lengths(5, 11, 6).longest) == (25, 17)


@pytest.mark.parametrize("kind", ["gpt2_short", "opt_short"])
def test_a_table_of_positions_ends(kind: str, tiny_base: LoadTiny) -> None:
    base, said = tiny_base(kind), []
    assert fit_lengths(base, Lengths(48, 30, 18), said.append) is base
    with pytest.raises(UsageError, match=r"has 48 positions, and the longest pair has 49 .*set data\.max_length to 48"):
        fit_lengths(base, Lengths(49, 30, 18), said.append)
    with pytest.raises(UsageError, match=r"the longest prompt has 30 tokens, and 19 are sampled.*max_new_tokens to 18"):
        fit_lengths(base, Lengths(48, 30, 19), said.append)
    assert said == []


def test_angles_do_not_end_and_it_is_said(tiny_base: LoadTiny) -> None:
    base, said = tiny_base("llama_short"), []
    assert fit_lengths(base, Lengths(60, 30, 18), said.append) is base
    assert said[0].startswith("the longest text has 60 tokens and the model was made for 48: ")
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["gemma3_short", "gemma3"])
def test_a_window_shorter_than_a_text_takes_the_plain_path(
    kind: str, tiny_base: LoadTiny, tiny_folder: Callable[[str], Path]
) -> None:
    base = tiny_base(kind)
    assert base.packed
    window = base.model.config.sliding_window
    assert fit_lengths(base, Lengths(window, 3, 4), print).packed
    prompt, response = texts(window - 6, 20)
    long = fit_lengths(base, Lengths(len(prompt) + len(response), 3, 4), print)
    assert long.why_plain == f"a window of {window} tokens, and the longest text has {window + 14}"
    (logp,) = score_rows(long, [Row(prompt, (response,))])
    assert logp == pytest.approx(by_hand(tiny_folder(kind), prompt, response), abs=2e-3)
    sampled_too = fit_lengths(tiny_base(kind), Lengths(3, window - 2, 3), print)
    model = probe(AdaptedModel.wrap(sampled_too, LORA, size=1))
    assert model.base.cached
    (drawn,) = sample(model, [prompt], adapters=None, how=Sampling(1, 12, temperature=1e-6), seed=0)[0]
    assert list(drawn.tokens) == greedy(tiny_folder(kind), prompt, 12)[: len(drawn.tokens)]


def greedy(folder: Path, prompt: tuple[int, ...], room: int) -> list[int]:
    """The most probable continuation, read from its beginning for every token."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(room):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_all_linear_layers_of_a_mixture_of_experts_are_those_beside_the_experts(kind: str, tiny_base: LoadTiny) -> None:
    base = tiny_base(kind)
    model = probe(AdaptedModel.wrap(base, LORA, size=2))
    assert {site.name.rpartition(".")[2] for site in model.adapters.sites} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not bool(model.adapters.params.any())
    assert not bool(model.adapters.grads.any())
    runs, _ = train(tiny_base(kind), ["dpo"])
    losses = [row.loss for row in runs[0].history]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("llama", ["q_proj", "lm_head"], "lm_head is the language-model head or an embedding, whose adapters are not"),
        ("llama_tied", ["embed_tokens"], "embed_tokens is the language-model head or an embedding"),
        ("gpt2", ["wte"], "wte is the language-model head or an embedding"),
        ("mixtral", ["gate_up_proj"], "does not fit this model"),
        ("llama", ["nothing"], "does not fit this model"),
    ],
)
def test_layers_that_would_not_be_trained_are_refused(
    kind: str, targets: list[str], said: str, tiny_base: LoadTiny
) -> None:
    with pytest.raises(UsageError, match=r"lora\.targets = \[") as caught:
        AdaptedModel.wrap(tiny_base(kind), Lora(rank=2, alpha=4, targets=targets), size=1)
    assert said in str(caught.value)


def test_a_layer_that_sees_other_tokens_is_refused(tiny_base: LoadTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an expert's would: its input is not one row a token of the stacked batch."""
    base = tiny_base()
    model = AdaptedModel.wrap(base, LORA, size=2)
    layer = base.model.model.layers[0].mlp
    inner = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: torch.cat([inner(x[:, :3]), inner(x[:, 3:])], 1))
    with pytest.raises(UsageError, match=r"adapters in down_proj, gate_proj, k_proj, .* cannot be trained"):
        probe(model)


def test_a_state_space_model_is_decoded_without_its_cache(
    tiny_base: LoadTiny, tiny_folder: Callable[[str], Path]
) -> None:
    model = probe(AdaptedModel.wrap(tiny_base("mamba"), Lora(rank=2, alpha=4, targets=["in_proj"]), size=2))
    assert (model.base.packed, model.base.cached) == (False, False)
    prompts = [draw(n, torch.Generator().manual_seed(n)) for n in (5, 2)]
    drawn = sample(model, prompts, adapters=slice(0, 2), how=Sampling(1, 6, temperature=1e-6), seed=0)
    for prompt, one in zip(prompts, drawn[1], strict=True):
        assert list(one.tokens) == greedy(tiny_folder("mamba"), prompt, 6)[: len(one.tokens)]


def test_every_end_token_of_the_generation_settings_ends_a_response(tmp_path: Path) -> None:
    import tiny

    folder = tiny.save(tmp_path / "model", "llama")
    settings = folder / "generation_config.json"
    settings.write_text(settings.read_text().replace('"eos_token_id": 2', '"eos_token_id": [2, 7]'))
    base = load_base(str(folder), dtype="float32", device=torch.device("cpu"))
    assert base.ends == (2, 7)
    model = AdaptedModel.wrap(base, LORA, size=1).ending([11])
    assert model.base.ends == (2, 7, 11)
    drawn = sample(model, [(5, 6, 8)], adapters=None, how=Sampling(200, 40), seed=0)[0]
    ended = [one for one in drawn if one.finished]
    assert {one.tokens[-1] for one in ended} == {2, 7, 11}
    for one in drawn:
        assert not {2, 7, 11} & set(one.tokens[:-1])
        assert one.finished or len(one.tokens) == 40
    token = base.tokenizer.convert_ids_to_tokens(7)
    text = model.base.decode([5, 7])
    assert text == base.tokenizer.decode([5]), f"the end token {token!r} is no part of the text"


def test_texts_end_a_response_and_are_no_part_of_it(tiny_base: LoadTiny) -> None:
    model = AdaptedModel.wrap(tiny_base(), LORA, size=1)
    plain = sample(model, [(5, 6, 8)], adapters=None, how=Sampling(60, 30), seed=0)[0]
    whole = [one.text(model.base) for one in plain]
    stop = ("t", "Q")
    stopped = sample(model, [(5, 6, 8)], adapters=None, how=Sampling(60, 30, stop=stop), seed=0)[0]
    for before, one, text in zip(plain, stopped, whole, strict=True):
        first = min((place for place in map(text.find, stop) if place >= 0), default=None)
        assert one.text(model.base) == (text if first is None else text[:first])
        assert one.tokens == before.tokens[: len(one.tokens)]
        assert one.finished == (before.finished or first is not None)
        assert bool(one.stopped_by) == (first is not None)
    assert 5 < sum(bool(one.stopped_by) for one in stopped) < 60


def test_top_p_draws_the_most_probable_tokens_alone(tiny_base: LoadTiny) -> None:
    model = AdaptedModel.wrap(tiny_base(), LORA, size=1)
    prompt = (5, 6, 8)
    logp = np.array([score_rows(model.base, [Row(prompt, ((token,),))])[0] for token in range(320)])
    order = np.argsort(-logp)
    kept = order[: int(np.searchsorted(np.exp(logp[order]).cumsum(), 0.3)) + 1]
    drawn = sample(model, [prompt], adapters=None, how=Sampling(2000, 1, top_p=0.3), seed=0)[0]
    counts = np.bincount([one.tokens[0] for one in drawn], minlength=320)
    assert set(np.flatnonzero(counts)) <= set(kept)
    expected = np.exp(logp[kept]) / np.exp(logp[kept]).sum() * 2000
    assert np.abs(counts[kept] - expected).max() < 5 * np.sqrt(expected.max())
    assert len(set(np.flatnonzero(counts))) >= len(kept) // 2
