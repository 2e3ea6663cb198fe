"""Ratings from stored judgments: win rates, length control, Elo, Bradley–Terry and mean scores. Pure but for `formats`."""
