"""HTML made of elements: text is escaped because there is no other way in."""

from html import escape

_VOID = frozenset({"img", "meta", "line", "rect", "path"})
"""Elements without an end tag of their own."""


class Html(str):
    """Text that is HTML already; every other child of an element is escaped."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """An element with its children.

    Args:
        attributes: "class_" stands for class, "_" for "-"; None leaves an attribute out, True gives it without a value.
    """
    start = name + "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    return Html(f"<{start}/>" if name in _VOID else f"<{start}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Several pieces, one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
