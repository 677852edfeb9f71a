"""What all runs of a comparison share: reference, pairs, prompts, reference log-probabilities."""
