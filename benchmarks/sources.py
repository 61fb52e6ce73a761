"""Where the recordings of real models come from, for the pages with figures of them."""

from __future__ import annotations

from typing import Final

RECORDINGS: Final = {
    "math500": "497 problems of MATH-500 under seven reasoning models of 9B to 32B, 80 or more samples "
    "of each, graded: github.com/jkomiyama/BoInf-code-publish, commit fbcb0970b0, no licence file",
    "math500_steps": "500 problems of MATH-500, four solutions of each in full: github.com/cuiluyi/openr, "
    "commit 10d3cbb57e, no licence",
    "math500_llama_beam_search": "MATH-500, or its first 100 problems of these runs, under beam search that "
    "a process reward model guides, by Llama 3.2 of 1B and 3B, 3.1 of 8B and Qwen2.5-Math of 7B: "
    "github.com/mert-cemri/search-and-learn, commit 900b127c28, Apache-2.0",
    "math500_llama_independent": "independent samples of the 3B and the 8B model, graded: the same source",
}
"""What each holds, and which repository published it."""


def told(*names: str) -> list[str]:
    """Lines of a page, of some of RECORDINGS."""
    return [
        "Recordings of real models, published by others: figures are computed from them, and none of their",
        "files is part of this project.",
        "",
        *(f"- `{name}`: {RECORDINGS[name]}." for name in names),
    ]
