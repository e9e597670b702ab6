"""The errors that this library raises deliberately.

A message says what was wrong, the value seen, what is accepted and what to do. Any other exception
that escapes (a TypeError, an IndexError) is a bug in this library.
"""

from __future__ import annotations


class PythiaError(Exception):
    """Base class of all deliberate errors."""


class ConfigError(PythiaError):
    """A size, scale, study, parameter or combination of settings that cannot work."""


class DataError(PythiaError):
    """A corpus, tokenizer, token file or evaluation item that is missing or malformed."""


class FetchError(PythiaError):
    """A download that failed, or whose bytes do not match the pinned hash."""


class CheckpointError(PythiaError):
    """A checkpoint or run folder that is absent, incomplete, corrupt or from another run."""


class TrainingError(PythiaError):
    """Training cannot continue: a non-finite loss, no space left, another process on the run."""


class MissingDependencyError(PythiaError):
    """An optional library is not installed; the message says how to install it."""


def raise_all(error: type[PythiaError], problems: list[str], subject: str) -> None:
    """Raise `error` with all problems at once; do nothing if there are none.

    Args:
        error: the class to raise.
        problems: one sentence each.
        subject: the heading, e.g. "ModelConfig".
    """
    if len(problems) == 1:
        raise error(f"{subject}: {problems[0]}")
    if problems:
        raise error(
            f"{subject} has {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def one_of(value: object, accepted: list | tuple | dict, kind: str) -> str:
    """The error message for an unknown name: the accepted names and the most similar one."""
    import difflib

    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}; accepted: {', '.join(names)}.{hint}"
