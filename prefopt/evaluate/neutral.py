"""Did abilities drop? The likelihood of plain sentences that no preference data is about, before and after training.

A policy that only learnt what the pairs say gives them about the likelihood that it gave them before. One that forgot
how people write gives them less. The sentences were written for this purpose and are in no data set.
"""

from __future__ import annotations

from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.lengths import made_for
from prefopt.model.logps import score_rows
from prefopt.model.packing import Row

MOST_TOKENS = 96  # of a sentence, so that the shortest position tables hold it
SENTENCES = (
    "The train from the coast reached the station a few minutes before noon.",
    "Water turns to ice when it is cold enough, and the ice floats.",
    "She put the keys on the table and went to look for her other shoe.",
    "Most of the shops in the town close early on Wednesdays.",
    "A bridge of stone crosses the river just below the old mill.",
    "He read the letter twice before he answered it.",
    "Bread is made of flour, water, salt and some yeast.",
    "The meeting was moved to Thursday because two people were ill.",
    "In spring the hills behind the village are covered with grass.",
    "The library lends books for four weeks, and films for one.",
    "When the rain stopped, the children ran out into the yard.",
    "Copper is a metal that carries heat and electricity well.",
    "My grandfather kept bees and sold the honey at the market.",
    "The road is narrow there, so large trucks take the long way round.",
    "They painted the kitchen white and the door a dark green.",
    "A year has twelve months, and some of them are longer than others.",
    "The doctor told him to rest and to drink plenty of water.",
    "Snow fell all night, and by morning the street was silent.",
    "The museum is free on the first Sunday of every month.",
    "To open the box, turn the small handle to the left.",
    "Birds that live near the sea build their nests on the cliffs.",
    "The teacher drew a circle on the board and divided it into four.",
    "We missed the bus and walked home along the canal.",
    "The price of coffee rose again at the end of the year.",
    "A map of the region hangs on the wall behind the desk.",
    "He could not find his glasses, which were on his nose.",
    "The garden is watered early in the day, before it gets hot.",
    "Light travels faster than sound, so one sees the flash first.",
    "The old clock in the hall has not worked for many years.",
    "After dinner they played cards until it was time to leave.",
)


def neutral_text(model: AdaptedModel, slot: int) -> dict[str, list[float]]:
    """Log-probabilities of the sentences behind their first token, under a policy and under the reference.

    Args:
        model: The model with its adapters.
        slot: The policy's adapter.

    Returns:
        For each sentence ``tokens``, which are scored, and ``logps`` and ``ref_logps``, nats summed over them.
    """
    most = min(MOST_TOKENS, made_for(model.base) or MOST_TOKENS)
    encoded = [ids[:most] for ids in model.base.encode(SENTENCES)]
    rows = [Row(ids[:1], (ids[1:],)) for ids in encoded]
    with model.use(one(slot)):
        logps = score_rows(model.base, rows)
    with model.off():
        ref_logps = score_rows(model.base, rows)
    tokens = [float(len(ids) - 1) for ids in encoded]
    return {"tokens": tokens, "logps": logps.astype(float).tolist(), "ref_logps": ref_logps.astype(float).tolist()}
