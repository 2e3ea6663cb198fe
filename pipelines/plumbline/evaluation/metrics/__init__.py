"""Measures of one text: against a reference, against a source, or of what it does with a request. Pure, but for BERTScore's encoder."""
