"""The report's running text: captions, and how to read each section."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.analysis.on_the_way import steps_text
from prefopt.analysis.sentences import counted, listed
from prefopt.report.selftest import selftest_text
from prefopt.report.tuning import TUNING_CAPTIONS, tuning_text
from prefopt.storage.schema import ORACLE

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        key: Its anchor.
        title: Its heading.
        short: Its name in the navigation.
        text: Paragraphs above the figures.
        told: Makes further ones of ``results.json``.
        figures: Names of figures.
        tables: Names of tables.
        folded: Names of tables that open on demand.
        always: Shown for its text alone, too.
    """

    key: str
    title: str
    short: str
    text: Sequence[str] = ()
    figures: Sequence[str] = ()
    tables: Sequence[str] = ()
    folded: Sequence[str] = ()
    told: Callable[[Row], Sequence[str]] | None = None
    always: bool = False


MOST_OPEN_MATRIX = 7
CAPTIONS = {
    "winrate_forest": (
        "Win rate against the reference with its 95 % interval. Filled markers: the "
        "difference from 50 % is settled after correction for the number of comparisons. Ticks: single seeds. "
        "The band around 50 % is what counts as equal."
    ),
    "head_to_head": ("Win rate of the row against the column, in %."),
    "length_control": (
        "Triangles: raw win rate. Circles: win rate as it would be if both sides wrote equally long answers."
    ),
    "learning_curves": (
        "Held-out pairs by training step, mean over seeds; the band goes from the lowest to the highest seed. "
        "Margins in nats compare variants, margins in own units do not."
    ),
    "logps": (
        "Change of the mean log-probability of chosen and rejected responses of held-out pairs since step 0; "
        "mean and range over seeds."
    ),
    "calibration": (
        "On held-out pairs: how sure the calibrated margin is, and how often it is right. On the diagonal the "
        "two agree. Strokes are 95 % intervals of single bins, pairs taken as independent."
    ),
    "reward_kl": (
        "Each small marker is one run, each large one the mean of a variant; bars span the seeds. Left in "
        "nats, right against the square root, in which reward is often nearly straight. Best of n: the "
        "reference's own samples, picked by the gold reward, at its KL."
    ),
    "proxy_gold": (
        "Left the reward that labelled the training data, right the gold reward, of the same policies. Where the left "
        "rises and the right falls, the policy has learnt the first one's mistakes."
    ),
    "cost": ("Where the time of one run goes, mean over seeds."),
    "power": (
        "The true difference from the reference that a comparison would settle in four of five repetitions, "
        "from the variances found here."
    ),
    **TUNING_CAPTIONS,
}

FALLING = (
    "Why do log-probabilities of chosen responses fall? A preference loss rewards the gap between chosen and "
    "rejected, not the chosen response itself. Lowering both, the rejected one faster, widens the gap too, and is "
    "often the shortest way, because the two share words and style. The probability that they lose goes to other "
    "responses, which were in no pair. So a falling curve beside a rising margin is usual and is not a bug.",
    "Whether it does harm cannot be seen here: look at the reward and the win rate of fresh samples. If those "
    "rise, the probability went to better responses. If they fall while held-out accuracy rises, the policy has "
    "learned to rank and not to write (likelihood displacement, arXiv:2410.08847): a larger beta, fewer steps, or "
    "a loss that holds the chosen log-probability up are the usual cures.",
)


def _ratings_text(results: Row) -> tuple[str, ...]:
    misfit = results["misfit"]
    if misfit is None:
        return ()
    return (
        "One scale for all variants, from all comparisons together. The rank gives the places that the differences "
        "of ratings leave open, corrected for the number of pairs. The scale misses an observed win rate by at most "
        f"{100 * misfit:.1f} points; a large value would mean that there is no single order.",
    )


def _displacement_text(results: Row) -> tuple[str, ...]:
    gains = {row["variant"]: row["gain"] for row in results["rewards"]}
    fell = [row for row in results["displacement"] if row["chosen"]["high"] is not None and row["chosen"]["high"] < 0]
    if not fell:
        return ("Here no variant lowered the chosen responses for certain.",) if results["displacement"] else ()

    known = [(row["variant"], gain) for row in fell if (gain := gains.get(row["variant"])) and gain["low"] is not None]
    better = [name for name, gain in known if gain["low"] > 0]
    worse = [name for name, gain in known if gain["high"] < 0]
    told = [f"Here the chosen responses fell under {listed([row['variant'] for row in fell])}."]
    if better:
        told.append(f"The gold reward of samples rose all the same under {listed(better)}.")
    if worse:
        told.append(f"The gold reward of samples fell too under {listed(worse)}: this is displacement that does harm.")
    return (" ".join(told),)


def _judges_text(results: Row) -> tuple[str, ...]:
    if not results["judges"]:
        return ()
    task = results["setup"]["task"]
    text = [f"Win rates in this report are by the judge “{results['setup']['judge']}”; ties count half."]
    if results["setup"]["judge"] == ORACLE and task.get("reward"):
        accuracy = task.get("reward_accuracy")
        known = "" if accuracy is None else f" Its accuracy on held-out labels is {100 * accuracy:.1f} %."
        text.append(
            f"The oracle is the task's gold reward ({task['reward']}): every sample of one side against every "
            f"sample of the other, prompt by prompt.{known} The pairs were labelled by the same reward, so it is "
            "the right judge of who learned them best, and says nothing about tastes that it does not have."
        )
    return (" ".join(text),)


def _power_text(results: Row) -> tuple[str, ...]:
    power = results["power"]
    if not power["curves"]:
        return ()
    text = (
        f"From the variances found here, corrected for {counted(power['tests'], 'comparison')} at its strictest. "
        f"The standard deviation between training runs is {100 * power['seed_sd']:.1f} points"
    )
    text += " (assumed: one seed cannot tell)." if power["assumed_seed_sd"] else "."
    seeds = len(results["seeds"])
    exact = (
        f" The exact sign-flip test over {counted(seeds, 'seed')} cannot give a p-value below "
        f"{2.0 ** (1 - seeds):.3g}, so it "
        + ("can reach .05 here." if seeds >= 6 else "cannot reach .05 here; it needs six seeds.")
    )
    advice = " More prompts help until the variance between runs dominates; then only more seeds do."
    return (text + advice + (exact if seeds > 1 else ""),)


def _steps_text(results: Row) -> tuple[str, ...]:
    return steps_text(results["over_steps"])


SECTIONS = (
    Section(
        "tuning",
        "Every loss at its best",
        "Tuning",
        figures=("tuned_forest", "score_rate", "tuning_curves"),
        tables=("tuned", "top_trials"),
        folded=("trials",),
        told=tuning_text,
    ),
    Section(
        "frontier",
        "The frontier of reward and KL",
        "Frontier",
        (
            "A loss that learns faster is further from the reference at equal steps, and has more reward for that "
            "alone. The frontier asks instead how much reward a loss has within a budget of KL, over all settings "
            "that were tried; every loss had as many.",
        ),
        ("tuning_frontier",),
        ("frontier_area",),
    ),
    Section(
        "head-to-head",
        "Head to head",
        "Head to head",
        (
            "Every two variants on the same prompts and seeds. A pair is settled when its p-value, corrected for the "
            "number of pairs, is below .05.",
        ),
        ("head_to_head",),
        ("matrix", "pairs"),
        ("versus_reference", "families"),
    ),
    Section("ratings", "Ratings", "Ratings", tables=("ratings",), told=_ratings_text),
    Section(
        "length",
        "Length control",
        "Length",
        (
            "Judges, and some rewards, like long answers. This asks how often a variant would win if its answers were "
            "as long as the reference's. A large gap between the two marks says that length explains part of the win "
            "rate.",
        ),
        ("length_control",),
        ("length_control",),
    ),
    Section(
        "heldout",
        "Margins and calibration on held-out pairs",
        "Margins",
        (
            "The log-ratio margin, in nats against one and the same reference, means the same for every variant. The "
            "reward margin is in the loss's own units: read it down one variant, never across. Accuracy on pairs is "
            "not quality of samples: a policy may rank well and write badly.",
            "The calibrated margin is the log-ratio margin in the log-odds that fit the labels best; a well calibrated "
            "implicit reward is as often right as it is sure.",
        ),
        ("learning_curves", "calibration"),
        ("margins", "ranking", "calibration"),
    ),
    Section(
        "likelihoods",
        "Log-probabilities during training",
        "Log-probabilities",
        FALLING,
        ("logps",),
        ("displacement",),
        told=_displacement_text,
    ),
    Section(
        "reward-kl",
        "Reward against KL",
        "Reward and KL",
        (
            "How much reward a policy has, and how far it went from the reference for it. Higher at the same KL is "
            "better; a higher reward further out may only mean longer training. Equal KL is not equal effort, so read "
            "this beside the win rates and not in their place.",
        ),
        ("reward_kl", "proxy_gold"),
        ("kl", "rewards"),
        ("matched_kl",),
    ),
    Section(
        "over-steps",
        "Samples during training",
        "Steps",
        (
            "What a policy writes on its way. Reward that rises with the KL and then falls is over-optimisation: the "
            "loss goes on falling, and what it was meant to stand for does not follow.",
        ),
        ("over_steps",),
        told=_steps_text,
    ),
    Section("text", "Length and diversity of samples", "Text", tables=("health", "text")),
    Section(
        "neutral",
        "Did abilities drop?",
        "Abilities",
        (
            "Plain sentences that have nothing to do with the pairs, scored before and after training. A rise near "
            "zero says that the policy still knows how people write; a large one that it has forgotten more than the "
            "pairs asked for. It is a quick look and no benchmark: `prefopt lm-eval` measures abilities.",
        ),
        tables=("neutral",),
    ),
    Section(
        "cost",
        "Cost",
        "Cost",
        ("All variants of a seed train on the same batches; what differs is the loss and what it has to compute.",),
        ("cost",),
        ("cost",),
    ),
    Section("judges", "Judges", "Judges", tables=("judges", "judge_bounds", "judge_controls"), told=_judges_text),
    Section(
        "power",
        "What this comparison can see",
        "Power",
        figures=("power",),
        tables=("seeds_needed", "power"),
        told=_power_text,
    ),
    Section("selftest", "Self-test", "Self-test", folded=("selftest",), told=selftest_text, always=True),
)


def sections(results: Row, tables: Collection[str], figures: Collection[str]) -> list[Section]:
    """Everything below the first screen that has something to show, in reading order.

    Args:
        results: ``results.json``.
        tables: Names of the tables there are.
        figures: Names of the figures there are.

    Returns:
        Sections with their text, and of tables and figures only those that there are.
    """
    names = (results["matrix"] or {"names": ()})["names"]
    sections = []
    for one in SECTIONS:
        large = [name for name in one.tables if name == "matrix" and len(names) > MOST_OPEN_MATRIX]
        kept = replace(
            one,
            text=(*one.text, *(one.told(results) if one.told else ())),
            figures=[name for name in one.figures if name in figures],
            tables=[name for name in one.tables if name in tables and name not in large],
            folded=[name for name in (*large, *one.folded) if name in tables],
        )
        if kept.always or kept.figures or kept.tables or kept.folded:
            sections.append(kept)
    return sections
