"""The demo: engines, the picker and Envoy as processes of this machine, a seeded load, and what came of it."""
