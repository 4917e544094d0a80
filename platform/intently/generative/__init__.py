"""Floor 2: items as short codes (semantic IDs), a language model that writes them, and a search that writes only codes of items."""
