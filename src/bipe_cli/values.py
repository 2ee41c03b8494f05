"""Option values that typer has no type for."""


def numbers(option: str, text: str | None) -> list[int]:
    """Read `128,512` as whole numbers; nothing is none.

    Raises:
        ValueError: a part is no whole number; the message names the option.
    """
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(
            f"{option} takes whole numbers with commas between, such as 128,512; got {text!r}."
        ) from None


def words(text: str | None) -> list[str]:
    """Read `rope,bipe-rope` as words; nothing is none."""
    return [part.strip() for part in text.split(",")] if text else []
