"""The recipes that come with this package."""

from pathlib import Path


def recipes_folder() -> Path:
    """Where they lie: in the installed package, or in the checkout that the package runs from."""
    package = Path(__file__).parents[1]
    installed, checkout = package / "recipes", package.parents[1] / "recipes"
    return installed if installed.is_dir() else checkout


def find_recipe(path: Path) -> Path:
    """The file of this name or, where there is none, the recipe of this name that comes with the package.

    >>> find_recipe(Path("recipes/tiny.yaml")).name
    'tiny.yaml'
    """
    if path.is_absolute() or path.exists():
        return path
    shipped = recipes_folder() / (path.relative_to("recipes") if path.parts[:1] == ("recipes",) else path)
    return shipped if shipped.is_file() else path
