"""How pages are made: each template extends `templates/page.html`, in the theme that all share; texts are escaped."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_environment(
    filters: Mapping[str, Callable[..., Any]], functions: Mapping[str, Callable[..., Any]]
) -> Environment:
    """Where a page's templates are rendered: an unknown name is an error, a text of the data is no HTML."""
    made = Environment(
        loader=PackageLoader("torchrec_mt.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= filters
    made.globals |= functions
    return made
