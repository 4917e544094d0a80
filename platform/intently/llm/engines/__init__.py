"""The engines behind the one request/reply contract: vLLM, any OpenAI-compatible endpoint, a scripted one for tests."""
