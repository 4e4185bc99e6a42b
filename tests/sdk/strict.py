"""Whether an event is one of the SDK's own types, with every field known and none missing."""
import typing

from pydantic import BaseModel

# Padding that the service adds to deltas and the SDK's types leave out.
KNOWN_EXTRAS = {"obfuscation"}


def _classes(union):
    for part in typing.get_args(union):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
        else:
            yield from _classes(part)


def _type_of(cls):
    return typing.get_args(cls.model_fields["type"].annotation)[0]


class Checker:
    def __init__(self, union, also=()):
        """`union`: the SDK's server events; `also`: the ends of paths of fields that its types leave out."""
        self.classes = {_type_of(cls): cls for cls in _classes(union)}
        self.also = tuple(also)
        self.seen = set()

    def check(self, event: dict):
        kind = event.get("type")
        assert kind in self.classes, f"{kind} is none of the SDK's events"
        model = self.classes[kind].model_validate(event)  # raises where a field is missing or of another type
        left = sorted(self._leftovers(model, kind))
        assert not left, f"{kind} has fields that the SDK does not know: {left}"
        self.seen.add(kind)
        return model

    def _leftovers(self, value, path):
        if isinstance(value, BaseModel):
            for name in value.model_extra or {}:
                if name not in KNOWN_EXTRAS and not f"{path}.{name}".endswith(self.also):
                    yield f"{path}.{name}"
            for name in type(value).model_fields:
                yield from self._leftovers(getattr(value, name), f"{path}.{name}")
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self._leftovers(item, f"{path}[]")
