"""Floor 1, language models: one request/reply contract, the engines behind it, prompts, structured output, text encoder, student."""
