"""`plumbline chat`: a conversation in the terminal with whatever speaks OpenAI's API."""
