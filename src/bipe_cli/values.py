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


def words(text: str | None) -> list[str]:
    """Read `rope,bipe-rope` as words; None is none."""
    return [] if text is None else [part.strip() for part in text.split(",")]
