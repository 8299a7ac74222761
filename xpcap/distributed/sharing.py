"""Work that ranks share out, do in turn, or check to be the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from xpcap.errors import ConfigurationError

if TYPE_CHECKING:
    from xpcap.distributed.ranks import Ranks

Value = TypeVar("Value")


def share_out(count: int, size: int, ranks: Ranks, work: Callable[[slice], Value]) -> list[Value]:
    """Split `count` items into parts that the ranks work on.

    Parameters
    ----------
    count
        Number of items.
    size
        The largest part. Parts, and so the results' bits, do not depend on the number of ranks.
    ranks
        They take parts in turn.
    work
        Called with each part.

    Returns
    -------
    list
        The results of all parts in order, on every rank.
    """
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    done = ranks.gather([work(part) for part in parts[ranks.rank :: ranks.size]])
    return [done[k % ranks.size][k // ranks.size] for k in range(len(parts))]


def by_first(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let rank 0 do something while the others wait, and return its result to all."""
    found: Any = ranks.gather(None if ranks.rank else work())[0]
    return found  # type: ignore[no-any-return]


def in_turn(ranks: Ranks, work: Callable[[], Value]) -> Value:
    """Let the ranks do something one after the other."""
    for _ in range(ranks.rank):
        ranks.gather(None)
    found = work()
    for _ in range(ranks.rank, ranks.size):
        ranks.gather(None)
    return found


def check_alike(ranks: Ranks, found: Mapping[str, Any]) -> None:
    """Check that all ranks have the same values by name.

    Raises
    ------
    ConfigurationError
        On every rank; it names the first difference.
    """
    first, *others = ranks.gather(dict(found))
    for number, other in enumerate(others, start=1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ConfigurationError(
                    f"ranks 0 and {number} were started with different {name}: {first.get(name)}"
                    f" and {other.get(name)}; expected the same"
                )
