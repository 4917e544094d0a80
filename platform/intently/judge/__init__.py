"""Floor 2: language models that judge what language models wrote, criterion by criterion."""
