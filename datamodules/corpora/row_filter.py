"""Conditions on the columns of a manifest, from a configuration: comparisons and nothing else.

Users share configurations, so a condition must not call any function: only the nodes that are named here are allowed in
its syntax tree.

An empty number is unknown: neither `bandwidth_hz > 18000` nor `not bandwidth_hz > 18000` holds for a track that was not
measured. An empty text is ''.
"""

from __future__ import annotations

import ast
import io
import operator
import tokenize
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import pandas
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from datamodules.data_config import DataConfigError

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    **{ast.And: operator.and_, ast.Or: operator.or_, ast.Not: operator.invert, ast.Invert: operator.invert},
    **{ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Eq: operator.eq, ast.NotEq: operator.ne},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
}
# Of text columns: name.str.startswith('live/').
_TEXT_METHODS = ("startswith", "endswith", "contains", "fullmatch")
# With the precedence that they have in pandas: below comparisons.
_WORDS = {"&": "and", "|": "or"}


def fulfilled(table: pandas.DataFrame, text: str, key: str) -> pandas.Series:
    """Return for which rows a condition holds; it does not hold if it depends on an empty number.

    Args:
        table: A manifest.
        text: The condition.
        key: Key of the configuration, for messages.

    Raises:
        DataConfigError: The text is no condition on the table's columns.
    """
    try:
        result = _value(_parsed(text).body, table)
    except Exception as error:  # pandas raises many kinds
        raise _no_condition(table, key, text, str(error)) from error
    if not (isinstance(result, pandas.Series) and is_bool_dtype(result.dtype)):
        raise _no_condition(table, key, text, "it is neither true nor false for each track")
    return result.fillna(False).astype(bool)


def _parsed(text: str) -> ast.Expression:
    tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    words = [(tokenize.NAME, _WORDS[word]) if word in _WORDS else (kind, word) for kind, word, *_ in tokens]
    return ast.parse(tokenize.untokenize(words).strip(), mode="eval")


def _value(node: ast.expr, table: pandas.DataFrame) -> Any:
    """Return a column, a constant, or a list of constants."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return _column(table, name)
        case ast.List(elements) | ast.Tuple(elements):
            return [_value(element, table) for element in elements]
        case ast.UnaryOp(operation, operand):
            return _OPERATORS[type(operation)](_value(operand, table))
        case ast.BoolOp(operation, operands):
            return reduce(_OPERATORS[type(operation)], [_value(operand, table) for operand in operands])
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operation, right):
            values = _value(left, table), _value(right, table)
            if not all(map(_is_number, values)):
                # 'a' * 1000000000 would be a gigabyte.
                raise ValueError(f"{ast.unparse(node)!r} calculates with text, which can only be compared")
            return _OPERATORS[type(operation)](*values)
        case ast.Compare():
            return _compared(node, table)
        case ast.Call(ast.Attribute(ast.Attribute(ast.Name(name), "str"), method), arguments, []):
            if method in _TEXT_METHODS:
                return getattr(_column(table, name).str, method)(*[_value(one, table) for one in arguments])
    raise ValueError(f"{type(node).__name__} is not allowed in it")


def _column(table: pandas.DataFrame, name: str) -> pandas.Series:
    """Return a column, with a type that has missing values."""
    if name not in table:
        raise ValueError(f"name {name!r} is not defined")
    # A boolean column with missing values has the type object.
    column = table[name].convert_dtypes() if table[name].dtype == object else table[name]
    if isinstance(column.dtype, pandas.StringDtype):
        return column.fillna("") if column.hasnans else column
    return column.astype("Float64") if is_float_dtype(column.dtype) else column


def _is_number(value: Any) -> bool:
    return is_numeric_dtype(value.dtype) if isinstance(value, pandas.Series) else isinstance(value, int | float)


def _compared(node: ast.Compare, table: pandas.DataFrame) -> Any:
    values = [_value(operand, table) for operand in (node.left, *node.comparators)]
    is_listed = isinstance(values[-1], list)
    if not is_listed and not any(isinstance(one, ast.In | ast.NotIn) for one in node.ops):
        pairs = zip(node.ops, values, values[1:], strict=False)
        return reduce(operator.and_, [_OPERATORS[type(one)](left, right) for one, left, right in pairs])
    is_membership = len(values) == 2 and isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq | ast.NotEq)
    if not (is_listed and is_membership and isinstance(values[0], pandas.Series)):
        raise ValueError(f"{ast.unparse(node)!r} is not possible; type \"genre in ['Rock', 'Jazz']\", by itself")
    # For pandas, `x in list` is false if x is missing.
    is_in = values[0].isin(values[1]).astype("boolean").mask(values[0].isna())
    return is_in if isinstance(node.ops[0], ast.In | ast.Eq) else ~is_in


def _no_condition(table: pandas.DataFrame, key: str, text: str, reason: str) -> DataConfigError:
    return DataConfigError(
        f"{key}: {text!r} is no condition on the columns of a manifest ({reason}); type for instance "
        f"\"bandwidth_hz > 18000 and genre == 'Rock'\" with {', '.join(map(str, table))}"
    )
