"""Floor 1, figures: numpy only, formula and shapes in each docstring."""
