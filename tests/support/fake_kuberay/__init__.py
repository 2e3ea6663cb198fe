"""A fake cluster for tests: it plays what KubeRay 1.7, Kueue, the Job controller, scheduler and kubelet do to our children."""

from support.fake_kuberay.cluster import Entry, FakeCluster

__all__ = ["Entry", "FakeCluster"]
