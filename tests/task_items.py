"""Small made items of every benchmark task, as JSONL files; a tokenizer and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gender_fakes import tokenizer

from pythia_core.config import ModelConfig
from pythia_core.model import GPTNeoX

__all__ = ["made_items", "tiny_model", "tokenizer", "write_items"]

JOBS = ("nurse", "driver", "clerk", "chief", "writer", "baker", "guard", "cook")


def made_items(n: int = 24) -> dict[str, list[dict[str, Any]]]:
    """`n` items a task, all different, with the oddities that the real ones have."""
    made: dict[str, list[dict[str, Any]]] = {}

    def add(task: str, **fields: Any) -> None:
        made.setdefault(task, []).append(fields)

    for i in range(n):
        job, other = JOBS[i % 8], JOBS[(i * 3 + 1) % 8]
        labels = ("A", "B", "C", "D") if i % 2 else ("1", "2", "3", "4")
        texts = [f"the {job}", f"a {other} of {i}", "it was late", "his work"]
        if i % 5 == 4:  # some have three answers
            labels, texts = labels[:3], texts[:3]
        question = f"Who would help the {other} with work number {i}?"
        choices = {"text": texts, "label": list(labels)}
        for task in ("arc_easy", "arc_challenge"):
            add(task, question=question + " " * (task == "arc_easy"), choices=choices,
                answerKey=labels[i % len(labels)])  # fmt: skip
        add("piqa", goal=f"help {other} {i}", sol1=f"say it  to the {job}", sol2="Say that she is.",
            label=i % 2)  # fmt: skip
        support = f"The {job} said that it was work {i}." if i % 3 else ""
        add("sciq", support=" " * (i % 2) + support, question=question, correct_answer=job,
            distractor1=other, distractor2="she", distractor3=f"{i}")  # fmt: skip
        add("winogrande", sentence=f"The {job} said to the {other} that _ was late {i} times.",
            option1=f"the {job}", option2=other, answer=str(1 + i % 2))  # fmt: skip
        add("hellaswag", activity_label=f"Work {i}", ctx_a=f"[header] The {job}. [title] Go",
            ctx_b="she would", label=str(i % 4),
            endings=["help [substeps]  the clerk.", f"say {i}.", " be late", "Work."])  # fmt: skip
        add("lambada_openai", text=f'"It was late," said the {job} {i} to the {other}')
    return made


def write_items(folder: Path, n: int = 24) -> Path:
    """The items as `<folder>/<task>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, items in made_items(n).items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items), "utf-8")
    return folder


def tiny_model(vocab_size: int, max_seq_len: int, seed: int = 0) -> GPTNeoX:
    """A random model whose choices are not all ties."""
    model = GPTNeoX(
        ModelConfig(
            n_layers=2, d_model=16, n_heads=2, vocab_size=vocab_size, max_seq_len=max_seq_len
        )
    )
    model.init_weights(seed)
    for p in model.parameters():
        p.data.mul_(3.0)
    return model.eval().requires_grad_(False)
