"""Option values that typer has no type for."""


def numbers(option: str, text: str | None) -> list[int]:
    """Read `128,512` as whole numbers; None is none.

    Raises:
        ValueError: a part is no whole number; the message names the option.
    """
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{option} takes whole numbers with commas between, such as 128,512; got {text!r}."
        ) from None


def rates(option: str, text: str) -> list[float]:
    """Read `1e-3,3e-3` as positive numbers.

    Raises:
        ValueError: a part is none; the message names the option.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rate < float("inf") for rate in found):
        raise ValueError(
            f"{option} takes positive numbers with commas between, such as 1e-3,3e-3; got {text!r}."
        )
    return found


def words(text: str | None) -> list[str]:
    """Read `rope,bipe-rope` as words; None is none."""
    return [] if text is None else [part.strip() for part in text.split(",")]
