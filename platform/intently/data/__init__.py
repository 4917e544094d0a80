"""Floor 1, behaviours: source adapters, the marketplace simulator, splits, reliable extraction, compression, chunking."""
