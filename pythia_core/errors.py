"""The errors that this library raises deliberately.

Each message says what was wrong, which value was found, what is accepted, and what to do. An
exception of another class, e.g. a TypeError, is a bug in the library.
"""

from __future__ import annotations


class PythiaError(Exception):
    """The base class of the library's errors."""


class ConfigError(PythiaError):
    """A setting, or a combination of settings, is unknown or cannot work."""


class DataError(PythiaError):
    """A corpus, tokenizer, token file or evaluation item is missing or malformed."""


class FetchError(PythiaError):
    """A download failed, or its bytes do not match the pinned hash."""


class CheckpointError(PythiaError):
    """A checkpoint or run folder is absent, incomplete, corrupt or from another run."""


class TrainingError(PythiaError):
    """Training cannot continue, e.g. because the loss is not finite or the disk is full."""


class TakenElsewhere(PythiaError):
    """Another process is doing this job; this process can find the result later."""


class CorpusChangedError(DataError):
    """The text has changed while it was being prepared."""


class MissingDependencyError(PythiaError):
    """An optional library is not installed; the message says how to install it."""


def raise_all(error: type[PythiaError], problems: list[str], subject: str) -> None:
    """Raise one `error` that lists all problems, if there are any.

    Args:
        subject: what has the problems, e.g. "ModelConfig"; begins the message.
    """
    if len(problems) == 1:
        raise error(f"{subject}: {problems[0]}")
    if problems:
        raise error(
            f"{subject} has {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def one_of(value: object, accepted: list | tuple | dict, kind: str) -> str:
    """Return the error message for an unknown name, which lists the accepted names.

    The message suggests the most similar accepted name. `kind` says what is named, e.g. "scale".
    """
    import difflib

    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}; accepted: {', '.join(names)}.{hint}"


def count_of(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, e.g. "1 run"; `plural` is needed unless it is the noun + s."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"
