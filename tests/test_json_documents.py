"""JSON that is checked against what is expected of it."""

import typing

from tasks.io import json_documents
from tasks.store.store import _PlainHeader


def test_types_are_resolved_once_not_for_each_object(monkeypatch) -> None:
    asked = []

    def counted(kind: type) -> dict[str, object]:
        asked.append(kind)
        return typing.get_type_hints(kind)

    monkeypatch.setattr(json_documents, "get_type_hints", counted)
    json_documents._hints.cache_clear()
    classes = [{"name": str(number), "start": number, "stop": number + 1} for number in range(1000)]
    header = {"sha256": "", "name": "", "image_shape": [1, 2, 2], "classes": classes, "splittings": {}}
    header |= dict.fromkeys(("source", "citation", "preprocessing"), "")
    assert json_documents.check_json(header, _PlainHeader, "a header", "mend it") == header
    assert len(asked) == 2
