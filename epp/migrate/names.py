"""Groups, and what every converted object has in common."""

from epp.migrate.documents import Mapping
from epp.migrate.fields import Fields

OLD_GROUP = "inference.networking.x-k8s.io"
NEW_GROUP = "inference.networking.k8s.io"
OBJECT_GROUP = "llm-d.ai"

_SERVER_SIDE = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
"""What the API server writes into an object's metadata: it is the old object's, and a new one can't have it."""


def metadata(fields: Fields) -> Mapping:
    """An object's metadata without what an API server put there."""
    with fields.mapping("metadata", required=True) as found:
        if found is None:
            return Mapping()
        if not found.has("name") and not found.has("generateName"):
            found.problem("name", "is missing")
        return found.rest(_SERVER_SIDE)
