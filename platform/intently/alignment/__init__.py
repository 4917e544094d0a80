"""Floor 2, teaching: writes the examples that language models are trained on."""
