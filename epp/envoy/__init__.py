"""Envoy beside the picker: the bootstraps it runs with, and a process that runs one for the demo and the tests."""
