"""`smoke-math`: a built-in benchmark small enough for a laptop, with a generator of unlimited training problems."""

from posttrainbench.smoke.problems import PROMPT, Problem, generate, render_prompt, test_items

__all__ = ["PROMPT", "Problem", "generate", "render_prompt", "test_items"]
