"""Our harness model and the harness's own one agree on every item of every task."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from pythia_book.tasks.benchmarks import ALL_TASKS, task_named
from pythia_book.tasks.metrics import BuiltTask, GeneratedTask, build
from task_items import fake_items

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import EOD, train_bpe
from pythia_core.model import GPTNeoX

pytest.importorskip("lm_eval", reason="the evaluation harness is not installed")

LENGTH = 72
N = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe((str(item) for task in ALL_TASKS for item in fake_items(task, 30)), 420)


@pytest.fixture(scope="module")
def model() -> GPTNeoX:
    """A model with random weights, scaled so that answers differ clearly."""
    tiny = GPTNeoX(ModelConfig(2, 64, 2, 512, max_seq_len=LENGTH))
    tiny.init_weights(5)
    with torch.no_grad():
        tiny.embed_out.weight *= 6
    return tiny.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def built(tokenizer) -> list[BuiltTask]:
    return [
        build(name, fake_items(name, 30)[:N], fake_items(name, 30)[N:], shots, tokenizer, LENGTH)
        for name, task in ALL_TASKS.items()
        for shots in ((0, 2) if task.n_examples else (0,))
    ]


@pytest.fixture(scope="module")
def theirs(model: GPTNeoX, tokenizer, built: list[BuiltTask]) -> dict:
    """Results of the harness's own class for `transformers` models, on equal weights.

    The class imports `accelerate`, but does not use it if it gets a loaded model.
    """
    transformers = pytest.importorskip("transformers")
    from pythia_book.tasks.harness import evaluate_with_harness

    stand_in = types.ModuleType("accelerate")
    stand_in.utils = types.ModuleType("accelerate.utils")
    for name in ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size"):
        setattr(stand_in, name, None)
    stand_in.utils.get_max_memory = None
    absent = {k: v for k, v in (("accelerate", stand_in), ("accelerate.utils", stand_in.utils))
              if k not in sys.modules}  # fmt: skip
    try:
        import accelerate  # noqa: F401
    except ImportError:
        sys.modules.update(absent)
    else:
        absent = {}
    try:
        from lm_eval.models.huggingface import HFLM
    finally:
        for name in absent:
            del sys.modules[name]
    peer = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**hf.hf_config(model.config)))
    peer.load_state_dict(hf.to_hf_state(model.state_dict()))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOD, bos_token=EOD, pad_token="<|padding|>"
    )
    lm = HFLM(pretrained=peer.eval(), tokenizer=fast, batch_size=4, max_length=LENGTH)
    return evaluate_with_harness(lm, built) | {"lm": lm}


def test_every_item_agrees_with_the_harness_model(
    model: GPTNeoX, tokenizer, built: list[BuiltTask], theirs: dict
) -> None:
    from pythia_book.tasks.harness import adapter, evaluate_with_harness

    ours = evaluate_with_harness(adapter(model, tokenizer, 0, LENGTH), built)
    assert len({each.name for each in built}) >= 10
    assert set(ours) | {"lm"} == set(theirs)
    for key, mine in ours.items():
        np.testing.assert_array_equal(mine.acc, theirs[key].acc, err_msg=key)
        np.testing.assert_array_equal(mine.acc_norm, theirs[key].acc_norm, err_msg=key)
        for one, other in zip(mine.logprob, theirs[key].logprob, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4, err_msg=key)
        for metric, value in mine.metrics.items():
            assert value == pytest.approx(theirs[key].metrics[metric], abs=1e-4, rel=1e-5), key


def test_our_metrics_equal_those_of_the_harness(
    model: GPTNeoX, built: list[BuiltTask], theirs: dict
) -> None:
    for each in built:
        found, expected = each.metrics(each(model, 0)), theirs[each.key]
        if isinstance(each, GeneratedTask):
            right = expected.acc.reshape(N, -1)
            for metric, weights in task_named(each.name).metrics.items():
                value = sum(weight * right[:, q] for q, weight in weights.items())
                np.testing.assert_array_equal(found[metric], value)
        elif "pct_stereotype" in found:
            np.testing.assert_array_equal(found["pct_stereotype"], expected.acc)
            assert found["likelihood_difference"].mean() == pytest.approx(
                expected.metrics["likelihood_diff"], abs=1e-4
            )
        else:
            np.testing.assert_array_equal(found["acc"], expected.acc)
            if "acc_norm" in found:
                np.testing.assert_array_equal(found["acc_norm"], expected.acc_norm)
            if "logprob" in found:
                assert np.exp(-found["logprob"].mean()) == pytest.approx(
                    expected.metrics["perplexity"], rel=1e-4
                )


def test_rolling_and_generation_agree_with_the_harness_model(
    model: GPTNeoX, tokenizer, theirs: dict
) -> None:
    from lm_eval.api.instance import Instance
    from pythia_book.tasks.harness import adapter

    ours, other = adapter(model, tokenizer, 0, LENGTH), theirs["lm"]
    texts = ["What is wet? Water. ", "x", " ".join(f"On day {i} it rained." for i in range(40))]
    assert len(tokenizer.encode(texts[2]).ids) > 2 * LENGTH, "several windows"
    rolling = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(rolling), other.loglikelihood_rolling(rolling), atol=1e-3
    )
    for settings in (
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": ["a", " t"], "max_gen_toks": 30, "do_sample": False, "temperature": 0.0},
        {"until": [], "max_gen_toks": 8},
    ):
        requests = [
            Instance("generate_until", {}, (text, dict(settings)), i)
            for i, text in enumerate(texts)
        ]
        assert ours.generate_until(requests) == other.generate_until(requests)


def test_rolling_counts_every_token_once(model: GPTNeoX, tokenizer) -> None:
    """Also if windows have equal tokens, which the harness's own class confuses."""
    from lm_eval.api.instance import Instance
    from pythia_book.tasks.harness import adapter

    text = "What is wet? Water. " * 40
    ids = [0, *tokenizer.encode(text).ids]
    assert len(ids) > 2 * LENGTH
    total, done = 0.0, 1
    while done < len(ids):
        stop = min(done + LENGTH, len(ids))
        inputs = ids[max(0, stop - 1 - LENGTH) : stop - 1]
        logp = model(torch.tensor([inputs])).log_softmax(-1)[0]
        targets = torch.tensor(ids[done:stop])
        total += float(logp[-len(targets) :].gather(1, targets[:, None]).sum())
        done = stop
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    lm = adapter(model, tokenizer, 0, LENGTH)
    assert lm.loglikelihood_rolling([request]) == [pytest.approx(total, rel=1e-6)]


def test_sampling_depends_on_the_seed(model: GPTNeoX, tokenizer) -> None:
    from lm_eval.api.instance import Instance
    from pythia_book.tasks.harness import adapter

    lm = adapter(model, tokenizer, 0, LENGTH)

    def generate(**settings: object) -> list[str]:
        settings |= {"until": ["\n"], "max_gen_toks": 10}
        return lm.generate_until([Instance("generate_until", {}, ("What", settings), 0)])

    greedy = generate()
    assert generate(do_sample=False, temperature=0.7) == greedy
    assert generate(do_sample=True, temperature=2.0) == generate(do_sample=True, temperature=2.0)
    assert generate(do_sample=True, temperature=2.0) != greedy
    assert generate(do_sample=True, temperature=2.0, top_k=1) == greedy
    assert generate(temperature=2.0, seed=1) != generate(temperature=2.0, seed=2)
