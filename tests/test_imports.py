"""A rule on imports that a layer contract cannot state."""

import grimp
import pytest

GRAPH = grimp.build_graph("bipe", "bipe_cli", cache_dir=None)


@pytest.mark.parametrize("module", sorted(GRAPH.modules))
def test_module_does_not_import_its_own_package(module: str) -> None:
    """Such an import works or fails by the order in which modules happen to be loaded."""
    parts = module.split(".")
    packages = {".".join(parts[:depth]) for depth in range(1, len(parts))}
    assert not packages & GRAPH.find_modules_directly_imported_by(module)
