"""Which rows say what another row says already: the same text, nearly the same words, the same meaning."""
