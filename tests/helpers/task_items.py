"""Made-up items of every benchmark task."""

from __future__ import annotations

import json

from pythia_book.tasks.benchmarks import TASKS

WINOBIAS = {
    "sentence_pro": "The driver met the nurse, because she was lost.",
    "sentence_anti": "The driver met the nurse, because he was lost.",
    "occupation": "nurse", "pronoun_pro": "she", "pronoun_anti": "he",
}  # fmt: skip
ITEMS: dict[str, dict] = {
    "lambada_openai": {"text": "She opened the door and saw the garden"},
    "piqa": {"goal": "Boil water", "sol1": "Use a pot.", "sol2": "Use a hat.", "label": 0},
    "winogrande": {"sentence": "Ann met Eve, but _ left.", "option1": "Ann", "option2": "Eve",
                   "answer": "2"},
    "arc_easy": {"question": "What is wet?", "answerKey": "B",
                 "choices": {"text": ["fire", "water", "sand"], "label": ["A", "B", "C"]}},
    "arc_challenge": {"question": "What falls?", "answerKey": "1",
                      "choices": {"text": ["rain", "light"], "label": ["1", "2"]}},
    "sciq": {"support": " Ice floats.", "question": "What floats?", "distractor1": "iron",
             "distractor2": "gold", "distractor3": "lead", "correct_answer": "ice"},
    "hellaswag": {"activity_label": "Cooking", "ctx_a": "A man cuts bread.", "ctx_b": "he",
                  "endings": ["eats it. [step] Done", "flies", "sings", "[title] sleeps"],
                  "label": "0"},
    "crows_pairs_english": {"sent_more": "Old people are slow.", "sent_less": "Young ones are."},
    "crows_pairs_english_gender": {"sent_more": "She cries.", "sent_less": "He cries."},
    "winobias_mc": WINOBIAS,
    "winobias_em": WINOBIAS,
    "arithmetic": {"first": 12, "operation": "+", "second": 7, "answer": 19},
    "wsc": {"text": "Bob paid for Charlie 's tea . He is grateful , and did n't \" forget \" it .",
            "span1_text": "Charlie", "span2_text": "He", "span2_index": 7, "label": 1},
    "logiqa": {"context": "All cats purr.", "question": "Which follows?", "label": "c",
               "options": ["Dogs purr.", "Some cats bark.", "Tom, a cat, purrs.", "None."]},
    "triviaqa": {"question": "What is wet?", "aliases": ["Water", "the sea"]},
}  # fmt: skip


def fake_items(task: str, n: int) -> list[dict]:
    """Return `n` made-up items of a task, all of them different."""
    items = []
    for i in range(n):
        item = json.loads(json.dumps(ITEMS[task]))
        if task == "arithmetic":
            item |= {"first": i, "answer": i + 7}
        elif task == "winogrande":
            item["sentence"] = f"Day {i}. {item['sentence']}"
        elif task in TASKS:
            first = next(name for name, value in item.items() if isinstance(value, str))
            item[first] += f" {i}"
        for name in ("sent_more", "sentence_pro", "sentence_anti", "question", "span1_text"):
            if name in item and task not in TASKS:
                item[name] = f"On day {i}: {item[name]}"
        items.append(item)
    return items
