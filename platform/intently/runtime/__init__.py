"""Floor 1, Ray: the session, mapping over parts, the Train harness, sweeps."""
