"""Plans: the units of work that a specification consists of."""

from .spec import BOUND, CLEAN, CORRUPTION, EXPLANATION, SOUNDNESS, Spec
from .store import Work


def attacks(spec: Spec) -> list[str]:
    """What tells how robust a block is, by label: the clean pass, then the attacks in their order."""
    return [CLEAN, *(a.label for a in spec.attacks)]


def parts(spec: Spec) -> list[str]:
    """What every block goes through, by label, in an order in which each finds what it needs."""
    return [*attacks(spec), *(BOUND + b.label for b in spec.bounds), *(CORRUPTION + name for name in spec.corruptions)]


def plan(spec: Spec, count: int, shard: tuple[int, int] = (0, 1)) -> list[Work]:
    """The units of work that belong to one of several processes: every so many-th block, with all its parts."""
    blocks = range(-(-count // spec.block_size))[shard[0] :: shard[1]]
    return [Work(m, label, b) for b in blocks for m in spec.names for label in parts(spec)]


def positions(spec: Spec, count: int, block: int) -> range:
    """Which of so many samples a block consists of."""
    return range(block * spec.block_size, min((block + 1) * spec.block_size, count))


def closing(spec: Spec) -> list[Work]:
    """What is done once, after all blocks."""
    labels = ([SOUNDNESS] if spec.soundness else []) + ([EXPLANATION] if spec.explain else [])
    return [Work(m, label, 0) for label in labels for m in spec.names]
