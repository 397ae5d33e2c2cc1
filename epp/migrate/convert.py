"""What becomes of a whole set of manifests: the old inference APIs' objects and whatever refers to them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from epp.errors import ConfigError
from epp.migrate import models, pools
from epp.migrate.documents import Mapping, Scalar, read, text, write
from epp.migrate.documents import Sequence as Items
from epp.migrate.fields import Fields, Report
from epp.migrate.names import NEW_GROUP, OBJECT_GROUP, OLD_GROUP, metadata

Converter = Callable[[Fields, Mapping], Iterable[Mapping]]

_CONVERTERS: dict[tuple[str, str], Converter] = {
    (f"{OLD_GROUP}/v1alpha2", "InferencePool"): pools.convert,
    (f"{OLD_GROUP}/v1alpha2", "InferenceModel"): models.convert,
    (f"{OLD_GROUP}/v1alpha1", "InferenceModel"): models.convert,
}
_MOVED = frozenset({"InferenceObjective", "InferenceModelRewrite"})
_CURRENT = frozenset({(f"{OLD_GROUP}/v1alpha1", "InferencePoolImport")})


@dataclass(frozen=True, slots=True)
class Migration:
    """The new manifests.

    Attributes:
        text: all documents as YAML, in their order.
        converted: how many objects are new or have changed.
        notes: what has changed in meaning, or is to be done by hand; each with its place.
    """

    text: str
    converted: int
    notes: tuple[str, ...]


def migrate(sources: Sequence[tuple[str, str]]) -> Migration:
    """Converts the objects of the old APIs, and passes everything else through as it is.

    Args:
        sources: the name of each file, and its text.

    Raises:
        ConfigError: something can't be converted without a loss. The message has one line for each such place.
    """
    report = Report()
    run = _Run(report)
    documents: list[Mapping] = []
    for file, source in sources:
        for document in read(source, file):
            documents += run.document(document, file)
    run.finish(documents)
    if report.problems:
        raise ConfigError("\n".join(report.problems))
    return Migration(write(documents), run.converted, tuple(dict.fromkeys(report.notes)))


class _Run:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._models = 0
        self.converted = 0

    def document(self, document: Mapping, file: str) -> Iterator[Mapping]:
        """What one document becomes: itself, or one or several others."""
        if _is_list(document):
            yield self._list(document, file)
            return
        version, kind = document.get("apiVersion"), document.get("kind")
        about = _about(document)
        fields = Fields(document, file, about, "", self._report)
        convert = _CONVERTERS.get((str(version), str(kind)))
        if convert is not None:
            self.converted += 1
            self._models += convert is models.convert
            yield from convert(fields, document)
        elif kind in _MOVED and version == f"{OLD_GROUP}/v1alpha2":
            self.converted += 1
            yield _moved(fields, document)
        elif str(version).startswith(f"{OLD_GROUP}/") and (version, kind) not in _CURRENT:
            known = ", ".join(f"{kind} {version.partition('/')[2]}" for version, kind in sorted(_CONVERTERS))
            fields.problem("apiVersion", f"{version} {kind} is not known; what can be converted: {known}")
        else:
            yield self._other(document, fields)

    def _list(self, document: Mapping, file: str) -> Mapping:
        """A list with what its items become; one of the old APIs' kinds is a plain List then, as kinds may differ."""
        version, kind = str(document.get("apiVersion")), str(document.get("kind"))
        old = version.startswith(f"{OLD_GROUP}/")
        items: list[Mapping] = []
        for item in document["items"] if isinstance(document["items"], Items) else ():
            if not isinstance(item, Mapping):
                raise ConfigError(f"{file}:{item.line}: {kind}: an item is a mapping with apiVersion and kind")
            of_list = {"apiVersion": text(version), "kind": text(kind.removesuffix("List"))} if old else {}
            items += self.document(Mapping((of_list | item).items(), item.line), file)
        changed = {"apiVersion": text("v1"), "kind": text("List")} if old else {}
        return Mapping((document | changed | {"items": Items(items)}).items())

    def _other(self, document: Mapping, fields: Fields) -> Mapping:
        """An object of somebody else's, whose references to an InferencePool follow it to its new group."""
        changed: Mapping = _repointed(document, {})
        if changed is not document:
            self.converted += 1
            fields.note("", f"its references to InferencePools are to {NEW_GROUP} now")
        for place, line in _mentions(changed, "", set()):
            fields.note(place, f"still says {OLD_GROUP}: {_remedy(place)}", line)
        return changed

    def finish(self, documents: Iterable[Mapping]) -> None:
        """Refuses two objects of one name, and says what holds for all."""
        seen: set[tuple[str, ...]] = set()
        for document in _flat(documents):
            about = _about(document)
            meta = document.get("metadata")
            name = (
                str(document.get("apiVersion")),
                about,
                str(meta.get("namespace")) if isinstance(meta, dict) else "",
            )
            if name in seen and document.get("kind") in {*_MOVED, "InferencePool"}:
                self._report.problems.append(f"{about}: there are two of that name now; rename one, or leave it out")
            seen.add(name)
        if self._models:
            self._report.notes.append(models.NOTE)


def _flat(documents: Iterable[Mapping]) -> Iterator[Mapping]:
    for document in documents:
        if _is_list(document):
            yield from _flat(document["items"])
        else:
            yield document


def _is_list(document: Mapping) -> bool:
    """Whether it is a List, or one of a kind, as InferencePoolList is; one without items may have null in their place.

    Somebody else's object may be called a list and have items that are no objects.
    """
    kind, items = str(document.get("kind")), document.get("items")
    if kind == "List" or str(document.get("apiVersion")).startswith(f"{OLD_GROUP}/"):
        return kind.endswith("List") and (isinstance(items, Items) or (isinstance(items, Scalar) and items.null))
    return kind.endswith("List") and isinstance(items, Items) and all(isinstance(item, Mapping) for item in items)


def _about(document: Mapping) -> str:
    meta = document.get("metadata")
    name = meta.get("name", "") if isinstance(meta, Mapping) else ""
    return " ".join(str(part) for part in (document.get("kind", "an object without a kind"), name) if part)


def _moved(fields: Fields, document: Mapping) -> Mapping:
    """An InferenceObjective or InferenceModelRewrite, which has only changed its group."""
    changed: Mapping = _repointed(document, {})
    made = Mapping(changed.items())
    made["apiVersion"] = text(f"{OBJECT_GROUP}/v1alpha2")
    made["metadata"] = metadata(fields)
    made.pop("status", None)
    return made


def _repointed(value: Any, made: dict[int, Any]) -> Any:
    """The value with every reference to an InferencePool in the new group; the very same if there is none."""
    if id(value) in made:
        return made[id(value)]
    result = value
    if isinstance(value, Mapping):
        pairs = [(key, _repointed(item, made)) for key, item in value.items()]
        if value.get("group") == OLD_GROUP and (value.get("kind") == "InferencePool" or "kind" not in value):
            pairs = [(key, text(NEW_GROUP) if key == "group" else item) for key, item in pairs]
        if any(item is not value[key] for key, item in pairs):
            result = Mapping(pairs, value.line)
    elif isinstance(value, Items):
        items = [_repointed(item, made) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            result = Items(items, value.line)
    made[id(value)] = result
    return result


def _mentions(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Where the old group is still named: path and line."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _mentions(item, f"{path}.{key}" if path else str(key), seen)
    elif isinstance(value, Items):
        for index, item in enumerate(value):
            yield from _mentions(item, f"{path}[{index}]", seen)
    elif isinstance(value, Scalar) and OLD_GROUP in value:
        yield path, value.line


def _remedy(place: str) -> str:
    if "apiGroups" in place:
        return f"add {NEW_GROUP} (InferencePools) and {OBJECT_GROUP} (the others) beside it"
    if "args" in place or "command" in place:
        return f"leave --pool-group out, or set it to {NEW_GROUP}"
    return f"see whether it should be {NEW_GROUP}"
