"""One file per stage kind. `plumbline.api.run.Stage` is their registry: one field each."""
