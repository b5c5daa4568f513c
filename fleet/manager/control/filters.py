"""How lists are narrowed (API-15): each filter's values are alternatives, different filters must all hold."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.api.http import Filters

__all__ = ["any_prefix", "has_labels", "one_of"]


def any_prefix(filters: Filters, name: str, *values: str) -> bool:
    """Whether one of ``values`` begins with one of the filter's, or the filter is absent."""
    wanted = filters.get(name)
    return not wanted or any(value.startswith(text) for text in wanted for value in values if value)


def one_of(filters: Filters, name: str, *values: str) -> bool:
    """Whether one of ``values`` is among the filter's, or the filter is absent."""
    wanted = filters.get(name)
    return not wanted or not set(wanted).isdisjoint(values)


def has_labels(filters: Filters, name: str, labels: Mapping[str, str]) -> bool:
    """``key`` (present) or ``key=value`` (equal); unlike other filters all must hold, as in Docker."""
    return all(_has_label(text, labels) for text in filters.get(name, ()))


def _has_label(text: str, labels: Mapping[str, str]) -> bool:
    key, separator, value = text.partition("=")
    return key in labels and (not separator or labels[key] == value)
