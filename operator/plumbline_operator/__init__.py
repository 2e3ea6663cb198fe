"""The Plumbline operator. It may use `plumbline.api` and `plumbline.graph` and no other part of the library."""
