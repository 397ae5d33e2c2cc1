"""The ext_proc protocol: codec (messages to events), session (no I/O), server (gRPC), TLS and health."""
