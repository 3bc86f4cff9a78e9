"""What can still be expected to end in time, judged by what was measured before."""

from collections.abc import Sequence


def fits(left: float, expected: float) -> bool:
    """Returns whether something that takes `expected` seconds (0: nobody knows) ends within the `left` seconds."""
    return left > 0 and expected <= left


def expect_trial(program: str, here: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]] = ()) -> float:
    """Returns the seconds that a trial can be expected to take; 0 if there is nothing to judge by.

    Args:
      program: whose trial it is.
      here: programs and seconds of the trials of this comparison so far, in their order. The last one of the same
        program counts: the first of all compiled it.
      before: of earlier comparisons in the same call. Without one above, the longest of the same program counts, and
        without that the longest of any.
    """
    if own := [seconds for name, seconds in here if name == program]:
        return own[-1]
    same = [seconds for name, seconds in before if name == program]
    return max(same or [seconds for _, seconds in (*before, *here)], default=0.0)
