"""Running the language model: base, adapters, packed rows, attention, log-probabilities, sampling."""
