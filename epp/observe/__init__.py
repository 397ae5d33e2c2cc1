"""Seeing it: metrics, logs, decisions and the guard around plugin calls."""
