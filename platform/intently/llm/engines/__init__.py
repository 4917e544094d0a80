"""One file an engine; `build` chooses."""
