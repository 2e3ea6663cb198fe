"""`kubectl plumbline …`: the commands that work on runs in a cluster."""
