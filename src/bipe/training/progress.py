"""What a person at a terminal sees of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .history import Progress, Row


@contextmanager
def progress_line(steps: int) -> Iterator[Progress]:
    """A bar with loss and tokens per second, advanced by history rows; none where there is no terminal."""
    with tqdm(total=steps, unit="step", disable=None, leave=False) as bar:

        def show(row: Row) -> None:
            if "tokens_per_second" in row:
                shown = {"loss": f"{row['loss']:.3f}", "tokens/s": f"{row['tokens_per_second']:,.0f}"}
                bar.set_postfix(shown, refresh=False)
            bar.update(row["step"] - bar.n)

        yield show
