"""HTML of tables, stores and samples for notebooks and pages; all text is escaped."""

from collections.abc import Iterable, Mapping
from functools import cache, singledispatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from markupsafe import Markup

from cache.spec import CacheSpec
from cache.store.batch import TeacherBatch, TeacherSample
from cache.store.reader import TeacherCache
from cache.visualization.pictures import Map, maps, picture_uri
from cache.visualization.summary import array_table, layer_table, spec_table, store_tables
from cache.visualization.tables import Table


@cache
def environment() -> jinja2.Environment:
    """The templates of this folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def card(title: str, tables: Iterable[Table], pictures: Mapping[str, Map] = MappingProxyType({})) -> Markup:
    """A title over small pictures of maps and tables."""
    parts: Any = environment().get_template("parts.html").module
    return parts.card(title, {name: picture_uri(values, cells=128) for name, values in pictures.items()}, list(tables))


@singledispatch
def to_html(shown: Any) -> Markup:
    """HTML of an object, for a notebook's cell.

    Raises:
        TypeError: there is none for objects of this type.
    """
    raise TypeError(f"no HTML for objects of type {type(shown).__name__}")


@to_html.register
def _(shown: Table) -> Markup:
    parts: Any = environment().get_template("parts.html").module
    return parts.table(shown)


@to_html.register
def _(shown: CacheSpec) -> Markup:
    return card("CacheSpec", (spec_table(shown), layer_table(shown)))


@to_html.register
def _(shown: TeacherSample) -> Markup:
    return card(f"TeacherSample {shown.token}", [array_table(shown)], maps(shown))


@to_html.register
def _(shown: TeacherBatch) -> Markup:
    return card(f"TeacherBatch of {len(shown.tokens)} tokens", [array_table(shown)])


@to_html.register
def _(shown: TeacherCache) -> Markup:
    """Identity, layers and the sizes of one shard, which is all that is read, and the first sample's maps."""
    tables = store_tables(shown, shown.committed_shards()[:1])
    if not len(shown):
        return card("TeacherCache without a sample", tables)
    first = shown.tokens[0]
    return card(f"TeacherCache of {len(shown)} samples, the first of which is {first}", tables, maps(shown[first]))
