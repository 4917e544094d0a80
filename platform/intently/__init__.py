"""intently: from lifelong behaviour to recommendations with reasons."""
