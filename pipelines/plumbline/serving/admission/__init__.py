"""Who may ask, and how much: API keys, limits, a bound on what waits, timeouts, an audit log."""
