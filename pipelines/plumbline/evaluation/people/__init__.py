"""People as judges: blind sheets for them to fill in, and figures from what they said."""
