"""The errors that this library raises deliberately.

The message of such an error says what was wrong, which value was found, what is accepted, and what
to do. If a user sees an exception of another class, e.g. a TypeError, the library has a bug.
"""

from __future__ import annotations


class PythiaError(Exception):
    """The base class of all errors that this library raises deliberately."""


class ConfigError(PythiaError):
    """A setting, or a combination of settings, is unknown or cannot work."""


class DataError(PythiaError):
    """A corpus, tokenizer, token file or evaluation item is missing or malformed."""


class FetchError(PythiaError):
    """A download failed, or its bytes do not match the pinned hash."""


class CheckpointError(PythiaError):
    """A checkpoint or run folder is absent, incomplete, corrupt or from another run."""


class TrainingError(PythiaError):
    """Training cannot continue.

    For example, the loss is not finite, the disk is full, or another process trains the same run.
    """


class MissingDependencyError(PythiaError):
    """An optional library is not installed; the message says how to install it."""


def raise_all(error: type[PythiaError], problems: list[str], subject: str) -> None:
    """Raise one `error` that lists all problems; do nothing if there are no problems.

    Args:
        error: the class of the error.
        problems: a sentence for each problem.
        subject: what has the problems, e.g. "ModelConfig"; the message begins with this.
    """
    if len(problems) == 1:
        raise error(f"{subject}: {problems[0]}")
    if problems:
        raise error(
            f"{subject} has {len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def one_of(value: object, accepted: list | tuple | dict, kind: str) -> str:
    """Return the error message for an unknown name, e.g. of a scale.

    The message lists the accepted names. If any of these names is similar to the unknown name, the
    message suggests the most similar name.

    Args:
        value: the unknown name.
        kind: what the accepted names stand for, e.g. "scale".
    """
    import difflib

    names = [str(name) for name in accepted]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {value!r}; accepted: {', '.join(names)}.{hint}"
