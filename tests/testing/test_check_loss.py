"""check_loss: every loss of ours passes, every mutant and every broken plugin is caught, with a line that says why."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden import GOLDEN, PAIRS, batch_of
from torch import Tensor

import prefopt
from prefopt import ChosenRejected, Loss, OffScaleWarning, PairLogps, hyper, loss_names, make_loss, register
from prefopt.contract import registry
from prefopt.contract.examples import ordinary_pairs, single_pairs
from prefopt.contract.groups import GroupLogps, GroupLoss
from prefopt.errors import DataError, UsageError
from prefopt.testing import ContractError, check_loss, contract_failures


@pytest.mark.parametrize("name", loss_names())
def test_every_registered_loss_is_in_order(name: str) -> None:
    check_loss(make_loss(name))


@pytest.mark.parametrize(
    "label",
    [
        "gpo[link=squared_hinge]", "gpo[link=savage]", "fdpo[divergence=js]", "fdpo[divergence=forward_kl]",
        "fdpo[divergence=reverse_kl]", "fdpo[alpha=0.8]", "alphapo[alpha=0.0]", "alphapo[alpha=-1.0]", "dpop[lam=50.0]",
        "odpo[alpha=0.0]", "cdpo[label_smoothing=0.0]", "simpo[beta=10.0,gamma_beta_ratio=0.0]", "kto[beta=1.0]",
        "beta_dpo[keep=1.0]", "ld_dpo[alpha=0.0]", "chipo[r_max=1.0]", "cpo[nll_weight=0.0]", "dpo[beta=5.0]",
        "rpo_reward[distance=fwd_kl]", "rpo_reward[distance=sq]", "alpha_dpo[alpha=0.0,decay=0.0]", "bpo[alpha=1.0]",
        "mix[1.0*simpo+0.5*wpo]", "mix[1.0*kto+2.0*odpo]", "mix[0.5*alpha_dpo+0.5*bco]", "mix[1.0*sft]", "irpo",
    ],
)  # fmt: skip
def test_other_settings_are_in_order(label: str) -> None:
    check_loss(make_loss(label))


def test_the_check_is_quick() -> None:
    started = time.process_time()
    for name in loss_names():
        contract_failures(make_loss(name))
    assert (time.process_time() - started) / len(loss_names()) < 0.2


# --- Mutants ---


def golden_failures(loss: Loss, name: str) -> list[str]:
    """The golden labels of a loss that ``loss``'s class misses."""
    missed = []
    for label in (label for label in GOLDEN if label.partition("[")[0] == name):
        given = {f.name: getattr(make_loss(label), f.name) for f in dataclasses.fields(loss)}
        value = type(loss)(**given)(batch_of(loss))[0]
        if abs(value.item() - GOLDEN[label]) > 1e-9 * max(1, abs(GOLDEN[label])):
            missed.append(label)
    return missed


def mutant(name: str, change: Callable[[Loss, PairLogps], tuple[Loss, PairLogps]]) -> Loss:
    """The loss with something done to it and to its input before each call; registered in its place."""
    original = registry.REGISTRY[name]

    def call(self: Loss, logps: PairLogps) -> Tensor:
        return original.__call__(*change(self, logps))

    def group(self: Loss, groups: GroupLogps) -> Tensor:
        changed, same = change(self, groups)  # type: ignore[arg-type]
        return original.group(changed, same)  # type: ignore[attr-defined]

    # A mutant that confuses fields does so in the formula, which of a loss of groups is that of the groups.
    of_fields = original.takes_groups and getattr(change, "of_fields", False)
    formula = {"group": group} if of_fields else {"__call__": call}
    cls: Any = type(original.__name__, (original,), {**formula, "__doc__": original.__doc__})
    cls = dataclass(frozen=True)(cls)
    registry.REGISTRY[name] = cls
    return cls()


def on_inputs(change: Callable[[PairLogps], PairLogps]) -> Callable[[Loss, PairLogps], tuple[Loss, PairLogps]]:
    return lambda loss, logps: (loss, change(logps))


def with_tokens(logps: PairLogps, side: str, /, **values: Any) -> dict[str, Any]:
    tokens = getattr(logps, f"{side}_tokens")
    if tokens is None:
        return {}
    given = {name: value(tokens) for name, value in values.items() if getattr(tokens, name) is not None}
    return {f"{side}_tokens": dataclasses.replace(tokens, **given)}


def sum_for_mean(logps: PairLogps) -> PairLogps:
    return dataclasses.replace(
        logps, chosen_len=torch.ones_like(logps.chosen_len), rejected_len=torch.ones_like(logps.rejected_len)
    )


def mean_for_sum(logps: PairLogps) -> PairLogps:
    mean = logps.per_token()
    for side in ("chosen", "rejected"):
        length = getattr(logps, f"{side}_len")[:, None]
        scaled = {
            field: (lambda tokens, field=field, length=length: getattr(tokens, field) / length)
            for field in ("logps", "ref_logps")
        }
        mean = dataclasses.replace(mean, **with_tokens(mean, side, **scaled))
    return mean


def swapped_reference(logps: PairLogps) -> PairLogps:
    changed: dict[str, Any] = {"ref_chosen": logps.ref_rejected, "ref_rejected": logps.ref_chosen}
    if logps.chosen_tokens is not None and logps.rejected_tokens is not None:
        chosen, rejected = logps.chosen_tokens.ref_logps, logps.rejected_tokens.ref_logps
        changed |= with_tokens(logps, "chosen", ref_logps=lambda _: rejected)
        changed |= with_tokens(logps, "rejected", ref_logps=lambda _: chosen)
    return dataclasses.replace(logps, **changed)


def wrong_sign(logps: PairLogps) -> PairLogps:
    names = {f.name for f in dataclasses.fields(logps)}
    flip = {n: n.replace("chosen", "rejected") if "chosen" in n else n.replace("rejected", "chosen") for n in names}
    return dataclasses.replace(logps, **{n: getattr(logps, other) for n, other in flip.items()})


def detached(side: str) -> Callable[[PairLogps], PairLogps]:
    def change(logps: PairLogps) -> PairLogps:
        changed = {side: getattr(logps, side).detach()}
        tokens = {f: (lambda t, f=f: getattr(t, f).detach()) for f in ("logps", "ref_kl")}
        return dataclasses.replace(logps, **changed, **with_tokens(logps, side, **tokens))

    return change


def ignored(field: str) -> Callable[[Loss, PairLogps], tuple[Loss, PairLogps]]:
    def change(loss: Loss, logps: PairLogps) -> tuple[Loss, PairLogps]:
        default = next(f.default for f in dataclasses.fields(loss) if f.name == field)
        return dataclasses.replace(loss, **{field: default}), logps  # type: ignore[arg-type]

    change.of_fields = True  # type: ignore[attr-defined]
    return change


def mixed_up(one: str, other: str) -> Callable[[Loss, PairLogps], tuple[Loss, PairLogps]]:
    def change(loss: Loss, logps: PairLogps) -> tuple[Loss, PairLogps]:
        made: Any = object.__new__(type(loss))  # Past the checks of range: the mix-up is inside the loss.
        for f in dataclasses.fields(loss):
            source = {one: other, other: one}.get(f.name, f.name)
            object.__setattr__(made, f.name, getattr(loss, source))
        return made, logps

    change.of_fields = True  # type: ignore[attr-defined]
    return change


def mutations(name: str) -> Iterator[tuple[str, Callable[[Loss, PairLogps], tuple[Loss, PairLogps]]]]:
    cls = registry.REGISTRY[name]
    reads_lengths = cls.length_normalized or name in ("r_dpo", "cpo", "rpo")
    if reads_lengths:
        yield "sum for mean", on_inputs(sum_for_mean)
    if not cls.length_normalized:
        yield "mean for sum", on_inputs(mean_for_sum)
    if cls.needs_reference:
        yield "swapped reference", on_inputs(swapped_reference)
    if name not in (
        "sppo_soft",
        "rpo_reward",
        "rloo",
        "grpo",
        "infonca",
    ):  # They take the label from the scores, which are swapped as well.
        yield "wrong sign", on_inputs(wrong_sign)
    yield "detached chosen", on_inputs(detached("chosen"))
    if name != "sft":  # It does not look at the rejected response.
        yield "detached rejected", on_inputs(detached("rejected"))
    fields = [f.name for f in dataclasses.fields(cls)]
    # A field that acts through the moving average does not act inside __call__.
    inside = [f for f in fields if f != "decay"]
    for field in inside:
        yield f"ignored {field}", ignored(field)
    numbers = [f.name for f in dataclasses.fields(cls) if isinstance(f.default, float)]
    for one, other in itertools.combinations(numbers, 2):
        yield f"{one} for {other}", mixed_up(one, other)


@pytest.mark.filterwarnings("ignore::prefopt.OffScaleWarning")
@pytest.mark.parametrize("name", [name for name in loss_names() if name != "noop"])
def test_mutants_are_killed(name: str) -> None:
    original = registry.REGISTRY[name]
    survivors = []
    for kind, change in mutations(name):
        loss = mutant(name, change)
        lines = contract_failures(loss)
        assert not any("raised TypeError" in line or "raised AttributeError" in line for line in lines), lines
        if not lines and not golden_failures(loss, name):
            survivors.append(kind)
        registry.REGISTRY[name] = original
    assert survivors == []


def test_the_mutant_that_changes_nothing_lives() -> None:
    loss = mutant("dpo", lambda loss, logps: (loss, logps))
    assert contract_failures(loss) == []
    assert golden_failures(loss, "dpo") == []


def test_sum_for_mean_is_found_by_the_contract_alone() -> None:
    (line,) = contract_failures(mutant("simpo", on_inputs(sum_for_mean)))
    assert line == "simpo: declarations: length_normalized is True, and saying every token twice changes the loss"


def test_a_lost_gradient_is_found_by_the_contract_alone() -> None:
    lines = contract_failures(mutant("cpo", on_inputs(detached("rejected"))))
    assert any("something is detached, or declare stops_gradient" in line for line in lines)


# --- Plugins that break the contract ---


class _Plugin:
    """What the plugins below share: DPO, written as a plugin's author would."""

    source = "a test"
    needs_reference = True
    length_normalized = False

    def rewards(self: Any, logps: PairLogps) -> ChosenRejected:
        h = logps.logratios()
        return ChosenRejected(self.beta * h.chosen, self.beta * h.rejected)


DOC = """A plugin.

        loss = -log sigmoid(beta * D)

    Args:
        beta: Scale, > 0; 0.1 is usual.

    Source:
        A test.
    """


def plugin(call: Callable[[Any, PairLogps], Any], **attributes: Any) -> Loss:
    namespace = {
        "__call__": call,
        "__doc__": DOC,
        "__annotations__": {"beta": "float"},
        "beta": hyper(0.1, "(0, inf)", paper=(0.01, 1)),
        **attributes,
    }
    return register("mine")(dataclass(frozen=True)(type("Mine", (_Plugin, Loss), namespace)))()


def dpo(self: Any, logps: PairLogps) -> Tensor:
    return -F.logsigmoid(self.rewards(logps).margin)


def test_a_plugin_in_order_passes() -> None:
    check_loss(plugin(dpo))


def test_a_plugin_with_plain_fields_passes() -> None:
    check_loss(plugin(dpo, beta=0.1))


def mutates(self: Any, logps: PairLogps) -> Tensor:
    with torch.no_grad():
        logps.ref_chosen.add_(1)  # type: ignore[union-attr]
    return dpo(self, logps)


def nan_at_zero(self: Any, logps: PairLogps) -> Tensor:
    h = logps.logratios().margin
    return dpo(self, logps) * h / h


def overflows(self: Any, logps: PairLogps) -> Tensor:
    return torch.exp(-self.rewards(logps).margin)


def boom(self: Any, logps: PairLogps) -> Tensor:
    raise KeyError("no such thing")


def noisy(self: Any, logps: PairLogps) -> Tensor:
    return dpo(self, logps) + torch.rand(())


BROKEN: dict[str, tuple[Callable[[Any, PairLogps], Any], str]] = {
    "scalar": (lambda s, x: dpo(s, x).mean(), r"mine: output: shape must be \(5,\), one value a pair; got \(\)"),
    "two columns": (lambda s, x: torch.stack([dpo(s, x)] * 2), r"shape must be \(5,\).*got \(2, 5\)"),
    "a number": (lambda s, x: 0.5, "must return a tensor; got float"),
    "detached": (lambda s, x: dpo(s, x).detach(), "carries no gradient; do not detach"),
    "dtype": (lambda s, x: dpo(s, x).half(), "dtype must be the input's, torch.float32; got torch.float16"),
    "device": (lambda s, x: dpo(s, x).to("meta"), "device must be the input's, cpu; got meta"),
    "mutates": (mutates, "purity: __call__ or rewards changes its input ref_chosen"),
    "nan": (nan_at_zero, "start: value at policy = reference is .nan"),
    "overflow": (overflows, r"extremes: loss is inf at policy log-probabilities -10000, 0, lengths 1, 1"),
    "exception": (boom, "output: raised KeyError: 'no such thing'"),
    "random": (noisy, "purity: two calls on one input differ"),
    "half detached": (
        lambda s, x: -F.logsigmoid(s.beta * (x.logratios().chosen - x.logratios().rejected.detach())),
        "gradient: autograd gives 0 for rejected",
    ),
    "wrong sign": (lambda s, x: -dpo(s, x), "start: raises_margin is True, and the first step's gradient is"),
    "ignored": (lambda s, x: -F.logsigmoid(0.1 * x.logratios().margin), "hyperparameters: beta has no effect"),
    "coupled": (lambda s, x: dpo(s, x) - dpo(s, x).mean() / 2, "batch_coupled is False, and a pair's loss changes"),
    "normalised": (lambda s, x: dpo(s, x.per_token()), "length_normalized is False, and .* changes nothing"),
    "reference": (lambda s, x: -F.logsigmoid(s.beta * (x.chosen - x.rejected)), "needs_reference is True"),
    "scores": (lambda s, x: dpo(s, x) - x.scores().margin, "raised DataError: this loss needs a score for each"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_refused_with_a_line(kind: str) -> None:
    call, message = BROKEN[kind]
    with pytest.raises(ContractError, match=message) as caught:
        check_loss(plugin(call))
    assert all(line.startswith("mine: ") and "\n" not in line for line in caught.value.failures)
    assert isinstance(caught.value, UsageError)


DECLARED: dict[str, tuple[dict[str, Any], str]] = {
    "coupled": ({"batch_coupled": True}, "batch_coupled is True, and a pair's loss does not change"),
    "normalised": ({"length_normalized": True}, "length_normalized is True, and .* changes the loss"),
    "reference": ({"needs_reference": False}, "raised ValueError: log-ratios need reference"),
    "scores": ({"needs_scores": True}, "needs_scores is True, and other scores give the same loss"),
    "mismatched": ({"needs_mismatched": True}, "needs_mismatched is True, and other mismatched log-ratios"),
    "tokens": ({"token_fields": frozenset({"logps"})}, "token_fields has logps, and other values"),
    "stops": ({"stops_gradient": True}, "stops_gradient is declared, and autograd equals finite differences"),
    "raises": ({"raises_margin": False}, "raises_margin is False"),
    "no formula": ({"__doc__": "A loss.\n\nSource:\n    Mine."}, "no indented formula"),
    "no docs": ({"__doc__": None}, "needs a docstring"),
    "no args": ({"__doc__": DOC.replace("beta:", "bete:")}, "do not explain beta"),
    "no source": ({"__doc__": DOC.replace("Source", "Sauce")}, "no section Source"),
    "no default": ({"beta": dataclasses.field()}, "raised TypeError"),
    "bad range": ({"__post_init__": lambda self: None}, "beta = 0.0 is out of range .*, and is accepted"),
    "unwarned": ({"__post_init__": lambda self: None}, "off the paper's scale, and there is no OffScaleWarning"),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_a_false_declaration_is_refused_with_a_line(kind: str) -> None:
    attributes, message = DECLARED[kind]
    with pytest.raises((ContractError, TypeError), match=message if kind != "no default" else "beta"):
        check_loss(plugin(dpo, **attributes))


def test_a_class_that_is_not_registered_is_refused() -> None:
    loss = plugin(dpo)
    del registry.REGISTRY["mine"]
    assert contract_failures(loss) == ['mine: spec: not registered; put @register("name") above the class']


# --- Ranges, scales and names ---


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("cdpo[label_smoothing=0.5]", "cdpo: label_smoothing must lie in [0.0, 0.5); got 0.5"),
        ("exo[label_smoothing=0.0]", "exo: label_smoothing must lie in (0.0, 0.5); got 0.0"),
        ("dpo[beta=0]", "dpo: beta must lie in (0, inf); got 0.0"),
        ("dpo[beta=nan]", "dpo: beta must be finite; got nan"),
        ("dpo[label_smoothing=0.1]", "dpo has no hyperparameter label_smoothing; it has beta"),
        ("noop[beta=0.1]", "noop has no hyperparameter beta; it has none"),
        ("gpo[link=cubic]", "gpo: link must be one of exponential, squared_hinge, savage; got 'cubic'"),
        ("fdpo[divergence=js,alpha=0.3]", "fdpo: alpha has no effect with divergence js; leave it out"),
        ("dop", "unknown loss 'dop'; did you mean dpo?"),
    ],
)
def test_mistakes_get_one_line(label: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_loss(label)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("simpo[beta=0.1]", "simpo: beta = 0.1 is off its scale; the paper and its users take 2 to 10"),
        (
            "simpo[gamma_beta_ratio=5.0]",
            "simpo: gamma_beta_ratio = 5 is off its scale; the paper and its users take 0 to 1",
        ),
        ("sppo[beta=0.1]", "sppo: beta = 0.1 is off its scale; the paper and its users take 0.0001 to 0.01"),
        ("dpo_norm[beta=0.1]", "dpo_norm: beta = 0.1 is off its scale; the paper and its users take 2 to 10"),
    ],
)
def test_off_scale_is_accepted_with_a_warning(label: str, message: str) -> None:
    with pytest.warns(OffScaleWarning) as caught:
        make_loss(label)
    assert [str(w.message) for w in caught] == [message]


def test_defaults_are_on_their_own_scale() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in loss_names():
            make_loss(name)


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loss name 'dpo' is taken by prefopt\.losses\.dpo\.DPO"):
        register("dpo")(type(plugin(dpo)))


def test_scores_that_are_missing_are_named() -> None:
    with pytest.raises(DataError, match="give every row chosen_score and rejected_score"):
        make_loss("odpo")(dataclasses.replace(PAIRS, chosen_score=None))


@pytest.mark.parametrize("name", [n for n in loss_names() if registry.REGISTRY[n].batch_coupled])
def test_coupled_losses_change_with_the_batch_they_see(name: str) -> None:
    loss = make_loss(name)
    batch = ordinary_pairs(type(loss), dtype=torch.float64)
    alone = torch.cat([loss(pair) for pair in single_pairs(type(loss), batch)])
    assert abs(loss(batch).mean() - alone.mean()).item() > 1e-6


def test_no_module_asks_for_a_loss_by_name() -> None:
    names = set(loss_names())
    found = []
    for path in sorted(Path(prefopt.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                about_name = any("name" in ast.unparse(s) or "loss" in ast.unparse(s) for s in sides)
                literal = any(isinstance(s, ast.Constant) and s.value in names for s in sides)
                if about_name and literal:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_no_loss_inherits_from_another() -> None:
    for cls in registry.REGISTRY.values():
        assert cls.__bases__ in ((Loss,), (GroupLoss,))
