"""The Kubernetes API server: where it is, a client of it, lists that are watched, a leader's Lease, and reviews."""
