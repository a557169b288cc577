"""Prints the test items of `smoke-math` afresh, as JSON lines: `smoke_math.jsonl` is the output of this."""

import json

from posttrainbench.smoke.problems import make_test_items

for item in make_test_items():
    print(json.dumps(item, ensure_ascii=False))
