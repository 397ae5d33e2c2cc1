"""Manifests of the inference APIs that are gone, as manifests of those that took their place."""

from epp.migrate.convert import Migration, migrate

__all__ = ["Migration", "migrate"]
