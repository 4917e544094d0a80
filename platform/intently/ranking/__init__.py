"""Floor 2, ranking: will this person like this item, from recent events and from lifelong interests."""
