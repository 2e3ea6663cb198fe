"""Model judges: what they are asked, and how their verdicts are read. Pure: nothing here speaks to a model."""
