"""Who is in the pool as Kubernetes says it: an InferencePool, its pods, and the objects beside it."""
