"""The model's code as one flat module beside its weights, for use where this package is not installed.

transformers takes such a module along with a checkpoint and runs it where `trust_remote_code=True` allows it.
"""

import ast
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from .configuration import BipeConfig

MODULE = "modeling_bipe"
ROOTS = ("bipe.models.configuration", "bipe.models.modeling")
CLASSES = {"AutoConfig": "BipeConfig", "AutoModel": "BipeModel", "AutoModelForCausalLM": "BipeForCausalLM"}
HEADER = '''"""BiPE models for transformers: {names}.

Generated from the sources of bipe {version} (Apache-2.0) by `bipe convert --standalone`; change those and not
this. Bilevel positional encoding: He et al. 2024, arXiv:2401.16421.
"""
'''


def write_standalone(folder: str | Path) -> Path:
    """Write the module into a model's folder and name it in the config.

    Args:
        folder: holds a `config.json` of this project.

    Returns:
        The module's path.

    Raises:
        ValueError: the folder holds no model of this project.
    """
    folder = Path(folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if fields.get("model_type") != "bipe":
        raise ValueError(f"{folder} holds no model of this project, so there is no code to put beside it.")
    module = folder / f"{MODULE}.py"
    module.write_text(flat_module(), encoding="utf-8")
    fields["auto_map"] = {auto: f"{MODULE}.{name}" for auto, name in CLASSES.items()}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return module


def without_auto_map(config: BipeConfig) -> BipeConfig:
    """A config that no longer names a module beside it, since what is written from it has none."""
    vars(config).pop("auto_map", None)
    return config


def flat_module() -> str:
    """The source of all modules that the model needs, in an order in which each follows what it imports.

    Raises:
        AssertionError: two modules define the same name, or import one of ours under another.
    """
    order: list[str] = []
    for root in ROOTS:
        _append(root, order, [])
    imports: list[ast.stmt] = []
    body: list[ast.stmt] = []
    owner: dict[str, str] = {}
    for name in order:
        tree = _Flat(name).visit(_parse(name))
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports.append(statement)
                continue
            for defined in _defined(statement):
                if defined == "__all__":
                    break
                assert defined not in owner, f"{defined} is defined in {owner[defined]} and in {name}"
                owner[defined] = name
            else:
                body.append(statement)
    flat = ast.Module(body=[*_unique(imports), *body], type_ignores=[])
    version = importlib.metadata.version("bipe")
    header = HEADER.format(names=", ".join(CLASSES.values()), version=version)
    return f"{header}\n{ast.unparse(ast.fix_missing_locations(flat))}\n"


class _Flat(ast.NodeTransformer):
    """Takes out the module's docstring and what it imports from this package."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Module(self, node: ast.Module) -> ast.Module:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        self.generic_visit(node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if not _ours(self.name, node):
            return node
        assert all(alias.asname is None for alias in node.names), f"{self.name} renames what it imports"
        return None

    def visit_If(self, node: ast.If) -> ast.If | None:
        self.generic_visit(node)
        return node if node.body else None  # a block for type checkers that held nothing else


def _append(name: str, order: list[str], under_way: list[str]) -> None:
    if name in order or name in under_way:  # a cycle is one of annotations only
        return
    under_way.append(name)
    for node in ast.walk(_parse(name)):
        if isinstance(node, ast.ImportFrom) and (source := _ours(name, node)):
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                _append(inner if _path(inner) else source, order, under_way)
    order.append(name)


def _ours(name: str, node: ast.ImportFrom) -> str | None:
    """The module of this package that a module imports from, None for others' modules."""
    path = _path(name)
    package = name if path and path.name == "__init__.py" else name.rpartition(".")[0]
    module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    return module if module.partition(".")[0] == "bipe" else None


def _path(name: str) -> Path | None:
    base = Path(__file__).parents[2].joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _parse(name: str) -> ast.Module:
    path = _path(name)
    assert path is not None, name
    return ast.parse(path.read_text(encoding="utf-8"))


def _defined(statement: ast.stmt) -> Iterable[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _unique(imports: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Each import once."""
    return list({ast.unparse(statement): statement for statement in imports}.values())
