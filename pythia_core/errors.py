"""The errors this library raises on purpose.

One root, a few children. A message says what was wrong, the value seen, what is accepted and what
to do. Anything else that escapes (a TypeError, an IndexError) is a bug of ours, not of the user.
"""

from __future__ import annotations


class PythiaError(Exception):
    """Root of all deliberate errors: catch this to catch every one of them."""


class ConfigError(PythiaError):
    """A size, scale, study, parameter or combination of settings that cannot work."""


class DataError(PythiaError):
    """A corpus, tokenizer, token file or evaluation item that is missing or malformed."""


class FetchError(PythiaError):
    """A download that failed, or whose bytes are not the pinned ones."""


class CheckpointError(PythiaError):
    """A checkpoint or run folder that is absent, incomplete, corrupt or of another run."""


class TrainingError(PythiaError):
    """Training cannot go on: a non-finite loss, no space left, a run locked by another process."""


class MissingDependencyError(PythiaError):
    """An optional library is needed here; the message names what to install."""


def raise_all(error: type[PythiaError], problems: list[str], what: str) -> None:
    """Raise `error` with every problem found at once; do nothing if there is none.

    Args:
        error: the class to raise.
        problems: one sentence each.
        what: what is invalid, for the heading, e.g. "ModelConfig".
    """
    if len(problems) == 1:
        raise error(f"{what}: {problems[0]}")
    if problems:
        raise error(
            f"{what} has {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def one_of(value: object, accepted: list | tuple | dict, what: str) -> str:
    """A message for an unknown name: the value seen, what is accepted, the nearest match."""
    import difflib

    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {value!r}; accepted: {', '.join(names)}.{hint}"
