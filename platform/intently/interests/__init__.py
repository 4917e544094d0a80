"""Floor 2, why: user interests, tags and explanations, written by language models and checked."""
