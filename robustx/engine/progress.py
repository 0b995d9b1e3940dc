"""Progress: a bar on standard error for work that takes long."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None, what: str, show: bool = True, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """Yields a function that is told how much more is done; draws nothing unless ``show``.

    Without a total it counts alone.
    """
    if not show:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit=unit, file=sys.stderr) as bar:
        yield bar.update
