"""Conditions on the columns of a manifest, as they stand in a configuration: comparisons and nothing else.

pandas evaluates them, which by itself would call any function a text names. A configuration is passed on from hand to
hand, so only what compares columns is let through.

What is empty is unknown: neither `bandwidth_hz > 18000` nor `not bandwidth_hz > 18000` holds for a track that was not
measured. Text is always known; where there is none it is ''.
"""

from __future__ import annotations

import ast
import io
import tokenize
from typing import TypeGuard

import pandas

from datamodules.data_config import DataConfigError

_ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr),
    *(ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple),
)
# Of text columns: name.str.startswith('live/').
_TEXT_METHODS = ("startswith", "endswith", "contains", "fullmatch")
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
# As pandas reads them: they bind less than a comparison.
_WORDS = {"&": "and", "|": "or"}


def fulfilled(table: pandas.DataFrame, text: str, key: str) -> pandas.Series:
    """For which rows the condition holds; where an empty number would have to be known, it does not.

    key: of the configuration, for messages.

    Raises:
        DataConfigError: no condition on the table's columns.
    """
    try:
        tree = _parsed(text)
        columns = _known_or_empty(table, tree)
        _require_comparisons(tree, columns)
        # The plain engine, because numexpr need not be installed and knows no strings.
        result = columns.eval(ast.unparse(_ThreeValued().visit(tree)), engine="python")
    except Exception as error:  # pandas raises whatever the text leads to
        raise _no_condition(table, key, text, str(error)) from error
    if not (isinstance(result, pandas.Series) and pandas.api.types.is_bool_dtype(result.dtype)):
        raise _no_condition(table, key, text, "it is neither true nor false for each track")
    return result.fillna(False).astype(bool)


def _parsed(text: str) -> ast.Expression:
    tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    words = [(tokenize.NAME, _WORDS[word]) if word in _WORDS else (kind, word) for kind, word, *_ in tokens]
    return ast.parse(tokenize.untokenize(words).strip(), mode="eval")


def _known_or_empty(table: pandas.DataFrame, tree: ast.Expression) -> pandas.DataFrame:
    """The columns that the condition names, in types that tell an empty value from a number."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    columns = {}
    for name in table.columns.intersection(list(names)):
        # Truths with empty ones among them are objects.
        column = table[name].convert_dtypes() if table[name].dtype == object else table[name]
        if isinstance(column.dtype, pandas.StringDtype):
            column = column.fillna("") if column.hasnans else column
        elif pandas.api.types.is_float_dtype(column.dtype):
            column = column.astype("Float64")
        columns[name] = column
    return pandas.DataFrame(columns, index=table.index)


def _require_comparisons(tree: ast.Expression, columns: pandas.DataFrame) -> None:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if _is_text_method(node):
            waiting += node.args
        elif not isinstance(node, _ALLOWED):
            raise ValueError(f"{type(node).__name__} is not allowed in it")
        elif _is_arithmetic(node) and _has_text(node, columns):
            # 'a' * 1000000000 would be a gigabyte.
            raise ValueError(f"{ast.unparse(node)!r} calculates with text, which can only be compared")
        else:
            waiting += ast.iter_child_nodes(node)


def _is_arithmetic(node: ast.AST) -> TypeGuard[ast.BinOp]:
    return isinstance(node, ast.BinOp) and isinstance(node.op, _ARITHMETIC)


def _has_text(node: ast.AST, columns: pandas.DataFrame) -> bool:
    """Whether the value is text, a list, or calculated from such."""
    if _is_arithmetic(node):
        return _has_text(node.left, columns) or _has_text(node.right, columns)
    if isinstance(node, ast.Name):
        return node.id in columns and not pandas.api.types.is_numeric_dtype(columns[node.id].dtype)
    return isinstance(node, (ast.List, ast.Tuple)) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
    )


class _ThreeValued(ast.NodeTransformer):
    """Makes `x in list` unknown where x is, which pandas calls false: it becomes `(x in list) == (x == x)`."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not any(isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops):
            return node
        if len(node.ops) > 1 or not isinstance(node.comparators[0], (ast.List, ast.Tuple)):
            raise ValueError(f"{ast.unparse(node)!r} is not possible; type \"genre in ['Rock', 'Jazz']\", by itself")
        is_known = ast.Compare(node.left, [ast.Eq()], [node.left])
        return ast.Compare(node, [ast.Eq()], [is_known])


def _is_text_method(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether it is COLUMN.str.METHOD(..) with one of the methods."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords):
        return False
    owner = node.func.value
    is_column_text = isinstance(owner, ast.Attribute) and owner.attr == "str" and isinstance(owner.value, ast.Name)
    return is_column_text and node.func.attr in _TEXT_METHODS


def _no_condition(table: pandas.DataFrame, key: str, text: str, reason: str) -> DataConfigError:
    return DataConfigError(
        f"{key}: {text!r} is no condition on the columns of a manifest ({reason}); type for instance "
        f"\"bandwidth_hz > 18000 and genre == 'Rock'\" with {', '.join(map(str, table))}"
    )
