"""What the syntax tree of a plugin's module says, so that it can be listed without being imported."""

from __future__ import annotations

import ast
from typing import Any


def plugin_class(tree: ast.Module, contract: str, kind: str) -> ast.ClassDef | None:
    """The first public class that, as far as the source tells, subclasses the contract or another plugin."""
    contracts = {contract}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("promptbench.")):
            contracts |= {
                alias.asname or alias.name for alias in node.names if alias.name in contracts or _is_sibling(node, kind)
            }
        if isinstance(node, ast.ClassDef) and contracts & {_last_part(base) for base in node.bases}:
            if not node.name.startswith("_"):
                return node
            contracts.add(node.name)
    return None


def _is_sibling(node: ast.ImportFrom, kind: str) -> bool:
    return bool(node.level) or (node.module or "").startswith(f"promptbench.{kind}.")


def _last_part(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def literals(cls: ast.ClassDef | None) -> dict[str, Any]:
    """Class attributes whose value is a literal, or a call with literal keywords."""
    found: dict[str, Any] = {}
    for node in cls.body if cls else ():
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                found |= _literal(target.id, value)
    return found


def _literal(name: str, value: ast.expr) -> dict[str, Any]:
    """`{name: value}` where the expression is a literal or a call with keywords, else nothing."""
    if isinstance(value, ast.Call):
        arguments: dict[str, Any] = {}
        for keyword in value.keywords:
            arguments |= _literal(keyword.arg, keyword.value) if keyword.arg else {}
        return {name: arguments} if arguments else {}
    try:
        return {name: ast.literal_eval(value)}
    except (ValueError, TypeError):
        return {}
