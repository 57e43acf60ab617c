"""Conditions on the columns of a manifest, as they stand in a configuration: comparisons and nothing else.

pandas evaluates them, which by itself would call any function a text names. A configuration is passed on from hand to
hand, so only what compares columns is let through.
"""

from __future__ import annotations

import ast

import pandas

from datamodules.data_config import DataConfigError
from datamodules.manifest import COLUMNS

_ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr),
    *(ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple),
)
# Of text columns: name.str.startswith('live/').
_TEXT_METHODS = ("startswith", "endswith", "contains", "fullmatch")


def fulfilled(table: pandas.DataFrame, text: str, key: str) -> pandas.Series:
    """For which rows the condition holds; an empty value fulfils no comparison.

    key: of the configuration, for messages.

    Raises:
        DataConfigError: no condition on the table's columns.
    """
    try:
        _require_comparisons(text)
        # The plain engine, because numexpr need not be installed and knows no strings.
        result = table.eval(text, engine="python")
    except Exception as error:  # pandas raises whatever the text leads to
        raise _no_condition(key, text, str(error)) from error
    if not (isinstance(result, pandas.Series) and pandas.api.types.is_bool_dtype(result.dtype)):
        raise _no_condition(key, text, "it is neither true nor false for each track")
    return result.fillna(False).astype(bool)


def _require_comparisons(text: str) -> None:
    tree = ast.parse(text.strip(), mode="eval")
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if _is_text_method(node):
            waiting += node.args  # type: ignore[attr-defined]
        elif isinstance(node, _ALLOWED):
            waiting += ast.iter_child_nodes(node)
        else:
            raise ValueError(f"{type(node).__name__} is not allowed in it")


def _is_text_method(node: ast.AST) -> bool:
    """Whether it is COLUMN.str.METHOD(..) with one of the methods."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords):
        return False
    owner = node.func.value
    is_column_text = isinstance(owner, ast.Attribute) and owner.attr == "str" and isinstance(owner.value, ast.Name)
    return is_column_text and node.func.attr in _TEXT_METHODS


def _no_condition(key: str, text: str, reason: str) -> DataConfigError:
    return DataConfigError(
        f"{key}: {text!r} is no condition on the columns of a manifest ({reason}); type for instance "
        f"\"bandwidth_hz > 18000 and genre == 'Rock'\" with {', '.join(COLUMNS)}"
    )
