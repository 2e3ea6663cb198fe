"""What Plumbline brings along: the `builtin://skills` tasks and the `builtin://tiny` model."""
