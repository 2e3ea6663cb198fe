"""The page for people at `/`: one or two served models, asked the same, side by side."""
